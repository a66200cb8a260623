"""`medichat keys`: the master key's versions. It works on the keyring and the database directly.

Every act is in the log before the keyring changes; no key is in the log. What `rotate` and `drop-old` print
on standard output is a whole keyring or nothing, to be kept as it is; all else goes to standard error.
"""

import argparse
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.db import Database
    from shared.privacy.keyring import Keyring
    from shared.privacy.master_keys import Source


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `keys` to the command line."""
    text = "the master key: list its versions, rotate it, drop old versions"
    actions = commands.add_parser("keys", help=text, description=text).add_subparsers(
        required=True, metavar="ACTION"
    )
    text = "show the versions of the master key, and how many data keys are under each"
    actions.add_parser("list", help=text, description=text).set_defaults(run=_list)

    text = "add a version of the master key and bring every data key under it, while everything runs"
    rotate = actions.add_parser(
        "rotate",
        help=text,
        description=text,
        epilog="One that was broken off goes on where it stopped. Where the keyring cannot be written, it is "
        "printed; store that very output at every host, then run the command again, without --print.",
    )
    rotate.add_argument(
        "--print",
        action="store_true",
        help="print the new keyring instead of writing it: several hosts must all have the same one first. "
        "Once it is stored, and until data keys are under it, this prints it again; 1 is the exit status if "
        "none was printed",
    )
    rotate.set_defaults(run=_rotate)

    text = "remove the older versions from the keyring, once no data key is under them"
    drop = actions.add_parser("drop-old", help=text, description=text)
    drop.add_argument(
        "--at-once",
        action="store_true",
        help="do not wait until every process has looked: all were started again since the rotation",
    )
    drop.set_defaults(run=_drop_old)


def _list(_options: argparse.Namespace) -> None:
    from shared.privacy.rotation import count_by_version

    with _opened() as (source, database):
        keyring = source.read()
        _log(database, "keys.listed")
        with database.read() as connection:
            counts = count_by_version(connection)
    print(f"The master key is in {source.name}.")
    for version in sorted({*keyring.keys, *counts}):
        of_it = "newest" if version == keyring.newest else "" if version in keyring.keys else "missing"
        print(f"  version {version:<4} data keys: {counts.get(version, 0):<10} {of_it}".rstrip())


def _rotate(options: argparse.Namespace) -> int:
    from shared.privacy.rotation import ROTATED, count_by_version

    with _opened() as (source, database):
        keyring = source.read()
        with database.read() as connection:
            unused = len(keyring.keys) > 1 and not count_by_version(connection).get(keyring.newest)
        if options.print and unused:
            _print(source, database, "keys.printed", keyring)
            return 0
        done, counts = _rewrap(database, keyring)
        if not done and (len(keyring.keys) == 1 or counts.get(keyring.newest)):  # none was broken off
            keyring = keyring.with_new()
            if options.print or not source.is_writable:
                _print(source, database, "keys.version-made", keyring)
                _say("Nothing has changed yet. Until this is stored, another run makes another key.")
                _say("When every host and process has it, run this command again, without --print.")
                return 0
            _write(source, database, "keys.version-made", keyring)
            done, counts = _rewrap(database, keyring)
        left = sum(count for version, count in counts.items() if version != keyring.newest)
        _log(database, ROTATED, version=keyring.newest, rewrapped=done, left=left)
    _say(f"{done} data keys were brought under version {keyring.newest} of the master key.")
    if left:
        _say(
            f"{left} could not be opened, or were made meanwhile: run this again, then `medichat keys list`."
        )
    if options.print:
        _say("No keyring was printed, for one that was broken off went on. Run this again for a new one.")
    return 1 if options.print else 0


def _rewrap(database: "Database", keyring: "Keyring") -> tuple[int, dict[int, int]]:
    """Bring the data keys under the newest version; returns how many, and how many are under each then."""
    from services.cli_client import ProgressLine
    from shared.privacy.envelope import Envelope
    from shared.privacy.rotation import count_by_version, rewrap_all

    line = ProgressLine()
    try:
        done = rewrap_all(database, Envelope(keyring), told=lambda count: line.show(f"{count} data keys"))
    finally:
        line.end()
    with database.read() as connection:
        return done, count_by_version(connection)


def _drop_old(options: argparse.Namespace) -> int:
    from services.cli_client import CommandRefused
    from shared.clock import DatabaseClock
    from shared.privacy.rotation import count_by_version, settled_at

    with _opened() as (source, database):
        keyring = source.read()
        old = sorted({*keyring.keys} - {keyring.newest})
        if not old:
            _say(
                f"There is no version beside the newest, {keyring.newest}: no keyring was written or printed."
            )
            return 0 if source.is_writable else 1
        with database.read() as connection:
            counts = count_by_version(connection)
            settled, now = settled_at(connection, keyring.newest), DatabaseClock().now(connection)
        if any(counts.get(version) for version in old) or settled is None:
            raise CommandRefused(
                f"data keys may be under version {', '.join(map(str, old))}: run `medichat keys rotate` first"
            )
        if now < settled and not options.at_once:
            raise CommandRefused(
                "a process that has not looked at the keyring since then may still use an old version: "
                f"run this at {settled:%H:%M} UTC or later, or start all processes again and add --at-once"
            )
        versions = ", ".join(map(str, old))
        if source.is_writable:
            _write(source, database, "keys.dropped", keyring.only_newest(), dropped=old)
            _say(f"Version {versions} is no longer in {source.name}.")
        else:
            _print(source, database, "keys.dropped", keyring.only_newest(), dropped=old)
            _say(f"It lacks version {versions}.")
    return 0


def _write(source: "Source", database: "Database", action: str, keyring: "Keyring", **details: Any) -> None:
    from services.setup import write_private

    _log(database, action, version=keyring.newest, written=True, **details)
    write_private(source.path, keyring.text())


def _print(source: "Source", database: "Database", action: str, keyring: "Keyring", **details: Any) -> None:
    """Print the whole keyring. Raises OSError when it could not be: the exit status must tell."""
    _log(database, action, version=keyring.newest, written=False, **details)
    _say(f"Store this very output in {source.name}, at every host, and keep a copy elsewhere:")
    print(keyring.text(), end="", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _log(database: "Database", action: str, *, version: int | None = None, **details: Any) -> None:
    from shared.audit import record
    from shared.clock import DatabaseClock
    from shared.privacy.rotation import master_key_name

    with database.write() as connection:
        record.append(
            connection,
            now=DatabaseClock().now(connection),
            actor=record.OPERATOR_ACTOR,
            action=action,
            object=master_key_name(version) if version is not None else None,
            details=details,
        )


@contextmanager
def _opened() -> "Iterator[tuple[Source, Database]]":
    """Where the keyring is, and the database that it belongs to; no other such command runs meanwhile.

    Raises ValueError for a keyring of another database, and CommandRefused beside another command.
    """
    from services import setup
    from shared.privacy.envelope import Envelope
    from shared.privacy.keys import compare_master_key
    from shared.privacy.master_keys import find_source

    settings = setup.load_installed()
    source = find_source(settings)
    with _alone_at(source), setup.open_as_application(settings) as database:
        with database.read() as connection:
            compare_master_key(connection, Envelope(source.read()))
        yield source, database


@contextmanager
def _alone_at(source: "Source") -> Iterator[None]:
    """Two that write the keyring at once would lose a version. One that can only print it loses nothing."""
    from services.cli_client import CommandRefused
    from services.setup import own_like

    if not source.is_writable:
        yield
        return
    with source.path.with_name(f"{source.path.name}.lock").open("w") as lock:
        with suppress(
            PermissionError
        ):  # made by root, the owner of the keyring must be able to open it later
            own_like(lock.fileno(), source.path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandRefused(
                "another `medichat keys` is at work; wait until it has ended, then run this again"
            ) from error
        yield

"""`medichat backup` and `medichat restore`: the database, and with it a local storage, as one file.

They work as the owner of the tables. The file holds hashes of passwords and of API keys, and texts that the
master key opens, erased ones too if it was taken before.
"""

import argparse
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from shared.db import Database

_COPY_TOO = (
    "It holds hashes of passwords and API keys, and what is erased later stays in it: keep it private, and "
    "delete it in time. Copy these elsewhere too, apart from it: the folder of secrets (without the master "
    "key no text can be read)"
)


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `backup` and `restore` to the command line."""
    text = "write the database into one file, while everything runs"
    backup = commands.add_parser("backup", help=text, description=text)
    backup.add_argument("file", type=Path, metavar="FILE", help="a new file; only you can read it")
    backup.add_argument(
        "--with-storage", action="store_true", help="and the files of a storage that is a folder"
    )
    backup.set_defaults(run=_backup)
    text = "bring a backup into an empty database; what was erased since stays erased"
    restore = commands.add_parser("restore", help=text, description=text)
    restore.add_argument("file", type=Path, metavar="FILE", help="what `medichat backup` wrote")
    restore.set_defaults(run=_restore)


def _backup(options: argparse.Namespace) -> None:
    from services import setup
    from services.cli_client import CommandRefused, ProgressLine
    from shared.audit import record
    from shared.backup.tables import check_revision
    from shared.backup.take import take_backup
    from shared.clock import DatabaseClock
    from shared.storage import Storage

    settings = setup.load_installed()
    storage = Storage.from_settings(settings) if options.with_storage else None
    if storage is not None and not storage.is_local:
        raise CommandRefused(
            "--with-storage packs a storage that is a folder; copy the bucket with the tools of its provider"
        )
    line = ProgressLine()
    with setup.open_as_owner(settings) as database, _new_file(options.file) as file:
        with database.write() as connection:
            check_revision(connection)
            now = DatabaseClock().now(connection)
            details = {"with_storage": storage is not None}
            record.append(
                connection, now=now, actor=record.OPERATOR_ACTOR, action="backup.taken", details=details
            )
        manifest = take_backup(
            database, file, now=now, storage=storage, told=lambda name, count: line.show(f"{name}: {count}")
        )
        line.end()
    rows = sum(table.rows for table in manifest.tables.values())
    print(f"{options.file} holds {rows} rows of {len(manifest.tables)} tables. {_COPY_TOO}", end="")
    print(", and the lists of what was erased and what is held (MEDICHAT_CHECKPOINT_URL)", end="")
    print("." if storage is not None else ", and the storage (MEDICHAT_STORAGE_URL).")


def _restore(options: argparse.Namespace) -> None:
    from services import setup
    from services.cli_client import ProgressLine
    from shared.audit.checkpoint import Signer
    from shared.backup.opened import Backup
    from shared.backup.restore import restore
    from shared.clock import DatabaseClock
    from shared.settings import load_settings
    from shared.storage import Storage

    settings, line = load_settings(), ProgressLine()
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with options.file.open("rb") as file:
        backup = Backup(file, told=lambda count: line.show(f"checked: {count // 1_000_000} MB"))
        with setup.open_as_owner(settings) as database:
            _make_tables(database, backup.manifest.revision)
            done = restore(
                database,
                backup,
                clock=DatabaseClock(),
                checkpoints=Storage.of_checkpoints(settings, patient=True),
                storage=Storage.from_settings(settings),
                signer=Signer(settings.secret("audit_key")),
                told=lambda name, count: line.show(f"{name}: {count}"),
            )
        line.end()
    print(
        f"{done.rows} rows and {done.files} files were restored, as of {backup.manifest.taken_at:%F %T} UTC. "
        f"Keys destroyed since then that were destroyed again: {done.erased_again}, and what belongs to them "
        f"was erased. Legal holds placed since then that were placed again: {done.held_again}. "
        "Everybody logs in again."
    )
    if done.superseded:
        print(f"The log says that it is shorter than {done.superseded} checkpoints that were signed since.")
    if done.holds_doubted:
        print(
            f"Legal holds placed since {backup.manifest.taken_at:%F %T} UTC may not be here: their list in "
            "MEDICHAT_CHECKPOINT_URL is not there, or not whole. Is it the right place? If so, set every "
            "MEDICHAT_RETENTION_…_DAYS to 0 before you start the processes, and place those holds again."
        )
    if done.unlisted:
        print(
            f"{done.unlisted} keys were destroyed before the backup that the list in MEDICHAT_CHECKPOINT_URL "
            "lacks. Is it the right place? What was erased since the backup, and is not listed, is back."
        )


def _make_tables(database: "Database", revision: str) -> None:
    """Make the tables where there are none. Raises CommandRefused when the backup is of other tables."""
    from services.cli_client import CommandRefused
    from shared.backup.tables import check_owner, check_revision
    from shared.db import migrate

    if revision != migrate.newest():
        raise CommandRefused(
            f"the backup has tables of revision {revision}, and this release of {migrate.newest()}: restore "
            "it with the release that took it, then run `medichat migrate` of this one"
        )
    with database.read() as connection:
        check_owner(connection)
        has_none = migrate.current(connection) is None
    if has_none:
        migrate.upgrade(database.writer)
    with database.read() as connection:
        check_revision(connection)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that only its owner may read; it appears whole or not at all, and replaces none."""
    from services.cli_client import CommandRefused

    if path.exists():
        raise CommandRefused(f"{path} exists, and is not replaced; name a new file")
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise

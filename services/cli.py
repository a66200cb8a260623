"""`medichat`: the operator's commands. It knows what can be run, and leaves the doing to others.

What a command needs is imported by the command, so that Ctrl-C finds `main` from the first moment.
"""

import argparse
import fcntl
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

    from shared.settings import Settings

MIN_FREE_BYTES = 500_000_000


class Refused(Exception):
    """The command cannot run here; the message says what to change."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    try:
        with _ended_like_by_ctrl_c():
            options = build_parser().parse_args(arguments)
            return int(options.run(options) or 0)
    except KeyboardInterrupt as stop:
        with suppress(OSError):  # the terminal may be gone
            print(f"medichat: {_with_notes('stopped', stop)}", file=sys.stderr)
        return 130
    except Exception as error:
        if (told := _explain(error)) is None:
            raise
        print(f"medichat: {_with_notes(told, error)}", file=sys.stderr)
        return 1


def _with_notes(told: str, error: BaseException) -> str:
    """What is told of an error, and what was added on its way up; one line."""
    notes: list[str] = getattr(error, "__notes__", [])
    return " ".join([told.rstrip(".") + ".", *notes]) if notes else told


def build_parser() -> argparse.ArgumentParser:
    """The command line of `medichat`."""
    from services import (
        cli_adapters,
        cli_audit,
        cli_backup,
        cli_export,
        cli_keys,
        cli_models,
        cli_people,
        cli_training,
    )

    parser = argparse.ArgumentParser(prog="medichat", description="A self-hosted medical assistant.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("up", _up, "prepare this machine and run everything on it until Ctrl-C")
    add("init", _init, "make secrets, tables and the first log-ins, where they are missing")
    add("migrate", _migrate, "bring the database's tables to the newest version, as their owner")
    add("smoke", _smoke, "start everything in a temporary folder, ask a question, check every trace of it")
    cli_people.add_commands(commands)
    cli_models.add_commands(commands)
    cli_training.add_commands(commands)
    cli_adapters.add_commands(commands)
    cli_export.add_command(commands)
    cli_audit.add_commands(commands)
    cli_keys.add_commands(commands)
    cli_backup.add_commands(commands)
    return parser


@contextmanager
def _ended_like_by_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal (SIGHUP, unless `nohup` had it ignored) end a command as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may, and is told of, signals
        return
    signals = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _init(_options: argparse.Namespace) -> None:
    from services import setup
    from shared.settings import load_settings

    logins = setup.prepare(load_settings())
    print(setup.describe_logins(logins) if logins else "Everything was there already.")


def _migrate(_options: argparse.Namespace) -> None:
    from services import setup
    from shared.settings import load_settings

    with setup.open_as_owner(load_settings()) as database:
        setup.migrate_tables(database)


def _smoke(_options: argparse.Namespace) -> int:
    from services.smoke import smoke

    return smoke()


def _up(_options: argparse.Namespace) -> int:
    from services import foreground, setup
    from shared.settings import load_settings

    settings = load_settings()
    _check_model(settings)
    _check_machine(settings)
    with _alone_in(settings.state_dir):
        logins = setup.prepare(settings)
        if logins:
            print(setup.describe_logins(logins))
            print(f"  (also in {settings.state_dir / setup.LOGINS_FILE}, which only you can read)\n")
        return foreground.run_honcho(
            settings, on_ready=lambda: _announce(settings), on_wait=_still, on_stop=_stopping
        )


@contextmanager
def _alone_in(folder: "Path") -> Iterator[None]:
    """Keep a second start out of the folder: two Redis servers would write the same file there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"MediChat runs in {folder} already; stop it, or set MEDICHAT_STATE_DIR to another folder"
            ) from error
        yield


def _announce(settings: "Settings") -> None:
    print(f"\n  MediChat is ready: {settings.public_ui_url}   (Ctrl-C stops it)\n", flush=True)


def _still(missing: str) -> None:
    print(f"\n  Not ready yet: still waiting for {missing}.\n", flush=True)


def _stopping() -> None:
    with suppress(OSError):  # the terminal may be gone
        print(
            "\n  Stopping. A training under way saves its state first, which may take a minute; "
            "Ctrl-C again ends everything at once.\n",
            flush=True,
        )


def _check_model(settings: "Settings") -> None:
    from shared.catalogue import find_model

    find_model(settings.model)
    folder = settings.model_path
    if folder is not None and not folder.is_dir():
        raise Refused(
            f"there is no folder {folder}; set MEDICHAT_MODEL_PATH to the model's folder, or unset it"
        )


def _check_machine(settings: "Settings") -> None:
    from urllib.parse import urlsplit

    from services import local

    for setting, folder in _folders(settings).items():
        free = local.free_disk_bytes(folder.absolute())
        if free < MIN_FREE_BYTES:
            raise Refused(
                f"only {free // 1_000_000} MB are free on the disk of {folder}; "
                f"free at least {MIN_FREE_BYTES // 1_000_000} MB, or set {setting} to another disk"
            )
    names = {urlsplit(url).hostname for url in (settings.public_api_url, settings.public_ui_url)}
    if len(names) > 1:
        raise Refused(
            f"browsers would log in at {settings.public_api_url} and be sent on to {settings.public_ui_url}, "
            "where that log-in does not count; let both listen at one address, or set "
            "MEDICHAT_PUBLIC_API_URL and MEDICHAT_PUBLIC_UI_URL to one host"
        )
    environment = local.local_environment(settings)
    seen: dict[int, str] = {}
    for name, host, port, setting in (
        ("Redis", "127.0.0.1", int(environment["MEDICHAT_REDIS_PORT"]), "MEDICHAT_REDIS_URL"),
        ("the gateway", settings.api_host, settings.api_port, "MEDICHAT_API_PORT"),
        ("the dashboard", settings.ui_host, settings.ui_port, "MEDICHAT_UI_PORT"),
    ):
        if port in seen:
            raise Refused(f"{seen[port]} and {name} have the same port, {port}; set {setting} to another")
        seen[port] = name
        try:
            taken = local.port_in_use(host, port)
        except OSError as error:
            raise Refused(
                f"port {port} of {host} for {name} cannot be used ({error.strerror}); "
                f"set {setting} to another"
            ) from error
        if taken:
            raise Refused(
                f"port {port} for {name} is in use (is MediChat running already?); "
                f"stop what uses it, or set {setting}"
            )


def _folders(settings: "Settings") -> dict[str, "Path"]:
    """Where it will write on this machine, by the setting that says so."""
    from pathlib import Path

    from shared.db.engine import sqlite_file

    folders = {"MEDICHAT_STATE_DIR": settings.state_dir}
    if (file := sqlite_file(settings.database_url)) is not None:
        folders["MEDICHAT_DATABASE_URL"] = file.parent
    if "://" not in settings.storage_url:
        folders["MEDICHAT_STORAGE_URL"] = Path(settings.storage_url)
    return folders


def _explain(error: Exception) -> str | None:
    """One line for an operator; None for an error that nobody foresaw."""
    import httpx

    from services.cli_client import CommandRefused
    from services.local import StartFailed
    from shared.errors import MediChatError
    from shared.settings import describe_wrong

    if isinstance(error, ValueError):
        return describe_wrong(error)
    if isinstance(error, httpx.TransportError):
        return f"the gateway cannot be reached ({type(error).__name__}); see MEDICHAT_API_URL"
    if isinstance(error, httpx.InvalidURL):
        return f"the gateway's address cannot be used ({error}); see MEDICHAT_API_URL"
    told = Refused | CommandRefused | StartFailed | MediChatError | OSError
    return str(error) if isinstance(error, told) else None


if __name__ == "__main__":
    sys.exit(main())

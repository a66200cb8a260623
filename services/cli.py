"""`medichat`: the operator's commands. It knows what can be run, and leaves the doing to others."""

import argparse
import subprocess
import sys
import threading
from pathlib import Path

import httpx
from pydantic import ValidationError

from services import cli_training, local, setup
from services.smoke import smoke
from shared.db import migrate, open_database
from shared.settings import Settings, load_settings

MIN_FREE_BYTES = 500_000_000


class Refused(Exception):
    """The command cannot run here; the message says what to change."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = build_parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except httpx.TransportError as error:
        print(
            f"medichat: the gateway cannot be reached ({type(error).__name__}); see MEDICHAT_API_URL",
            file=sys.stderr,
        )
        return 1
    except (Refused, cli_training.CommandRefused, local.StartFailed, ValueError, OSError) as error:
        print(f"medichat: {_explain(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line of `medichat`."""
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
    cli_training.add_commands(commands)
    return parser


def _init(_options: argparse.Namespace) -> None:
    logins = setup.prepare(load_settings())
    print(setup.describe_logins(logins) if logins else "Everything was there already.")


def _migrate(_options: argparse.Namespace) -> None:
    settings = load_settings()
    database = open_database(settings, owner=True, pool_size=1)
    try:
        migrate.upgrade(database.writer)
    finally:
        database.close()


def _smoke(_options: argparse.Namespace) -> int:
    return smoke()


def _up(_options: argparse.Namespace) -> int:
    settings = load_settings()
    _check_machine(settings)
    logins = setup.prepare(settings)
    if logins:
        print(setup.describe_logins(logins))
        print(f"  (also in {settings.state_dir / setup.LOGINS_FILE}, which only you can read)\n")
    honcho = Path(sys.executable).with_name("honcho")
    process = subprocess.Popen(
        [str(honcho), "start", "-f", str(local.PROCFILE)],
        env=local.local_environment(settings, {"KEEP": f"{sys.executable} -m services.keep"}),
        cwd=local.ROOT,
    )
    threading.Thread(target=_announce, args=(settings, process), daemon=True).start()
    while True:
        try:
            status = process.wait()
            return 0 if status in (130, 143, -2, -15) else status
        except KeyboardInterrupt:
            continue  # honcho got it too, and is stopping everything


def _announce(settings: Settings, process: "subprocess.Popen[bytes]") -> None:
    if local.wait_serving(settings, process):
        print(f"\n  MediChat is ready: {settings.public_ui_url}   (Ctrl-C stops it)\n", flush=True)


def _check_machine(settings: Settings) -> None:
    free = local.free_disk_bytes(settings.state_dir.absolute())
    if free < MIN_FREE_BYTES:
        raise Refused(
            f"only {free // 1_000_000} MB are free on the disk of {settings.state_dir}; "
            f"free at least {MIN_FREE_BYTES // 1_000_000} MB, or set MEDICHAT_STATE_DIR to another disk"
        )
    environment = local.local_environment(settings)
    for name, host, port, setting in (
        ("Redis", "127.0.0.1", int(environment["MEDICHAT_REDIS_PORT"]), "MEDICHAT_REDIS_URL"),
        ("the gateway", settings.api_host, settings.api_port, "MEDICHAT_API_PORT"),
        ("the dashboard", settings.ui_host, settings.ui_port, "MEDICHAT_UI_PORT"),
    ):
        if local.port_in_use(host, port):
            raise Refused(
                f"port {port} for {name} is in use (is MediChat running already?); "
                f"stop what uses it, or set {setting}"
            )


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        field = "_".join(str(part) for part in first["loc"]).upper()
        return f"the setting MEDICHAT_{field} is wrong: {first['msg']}" if field else str(first["msg"])
    return str(error)


if __name__ == "__main__":
    sys.exit(main())

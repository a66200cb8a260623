"""Reads the keyring from where the operator keeps it: a secret file, the environment, or a key service.

A key service is asked by a command that prints the keyring. It stores nothing and knows no data key.
"""

import os
import shlex
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from shared.privacy.envelope import Envelope
from shared.privacy.keyring import Keyring
from shared.settings import Settings

COMMAND = "MEDICHAT_MASTER_KEY_COMMAND"
_VARIABLE = "MEDICHAT_MASTER_KEY"
_FILE = "medichat_master_key"
_COMMAND_S = 15.0
#: Every process looks at the keyring this often, so that new data keys are soon under the newest version.
LOOK_EVERY_S = 30.0


class Kind(StrEnum):
    """Where a keyring is kept."""

    COMMAND = "command"
    ENVIRONMENT = "environment"
    FILE = "file"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the keyring is kept; `read` looks there anew."""

    kind: Kind
    settings: Settings
    path: Path

    def read(self) -> Keyring:
        """The keyring as it is there now. Raises ValueError, naming the way out, when there is none."""
        match self.kind:
            case Kind.COMMAND:
                command = self.settings.master_key_command
                return Keyring.parse(_printed_by(command.get_secret_value() if command else ""))
            case Kind.ENVIRONMENT:
                return Keyring.parse(self.settings.secret("master_key"))
            case Kind.FILE:
                return Keyring.parse(_content_of(self.path))

    @property
    def name(self) -> str:
        """Where that is, for an operator."""
        names = {Kind.COMMAND: f"the place that {COMMAND} reads", Kind.ENVIRONMENT: _VARIABLE}
        return names.get(self.kind, f"the file {self.path}")

    @property
    def is_writable(self) -> bool:
        """Whether a new keyring can be written there."""
        return (
            self.kind is Kind.FILE and os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        )


def find_source(settings: Settings) -> Source:
    """Where the keyring is kept: what the command prints comes first, then the environment, then the file.

    Raises ValueError, naming the way out, when there is none at all.
    """
    path = (settings.secrets_dir or settings.state_dir / "secrets") / _FILE
    if settings.master_key_command and settings.master_key_command.get_secret_value().strip():
        return Source(kind=Kind.COMMAND, settings=settings, path=path)
    if not os.environ.get(_VARIABLE) and path.is_file():
        return Source(kind=Kind.FILE, settings=settings, path=path)
    settings.secret("master_key")
    return Source(kind=Kind.ENVIRONMENT, settings=settings, path=path)


def is_kept_here(settings: Settings) -> bool:
    """Whether this process was given a keyring."""
    try:
        find_source(settings)
    except ValueError:
        return False
    return True


def open_envelope(settings: Settings) -> Envelope:
    """An envelope that follows its keyring. Raises ValueError, naming the way out, when there is none."""
    source = find_source(settings)
    envelope = Envelope(source.read(), look=source.read)
    if source.kind is not Kind.ENVIRONMENT:
        followed = weakref.ref(envelope)
        threading.Thread(target=_follow, args=(followed,), name="keyring", daemon=True).start()
    return envelope


def _follow(followed: "weakref.ref[Envelope]") -> None:
    """Look again from time to time, until nobody has the envelope any more."""
    while True:
        time.sleep(LOOK_EVERY_S)
        envelope = followed()
        if envelope is None:
            return
        envelope.look_again()
        del envelope


def _content_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ValueError(f"the master key's file {path} cannot be read ({reason}): put it back") from error


def _printed_by(command: str) -> str:
    """What the command prints. Nothing that it says is shown: it may hold keys."""
    by_hand = "run it by hand to see why"
    try:
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the command of {COMMAND} took over {_COMMAND_S:.0f} s: {by_hand}") from None
    except (OSError, ValueError):  # no such program; quotes that do not close; output that is no text
        raise ValueError(
            f"the command of {COMMAND} cannot be run: write the full path of a program and its arguments"
        ) from None
    if done.returncode != 0:
        raise ValueError(f"the command of {COMMAND} ended with status {done.returncode}: {by_hand}")
    if not done.stdout.strip():
        raise ValueError(f"the command of {COMMAND} printed nothing: {by_hand}")
    return done.stdout

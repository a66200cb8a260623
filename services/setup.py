"""Prepares an installation: secrets, tables, first log-ins. It starts nothing."""

import base64
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DatabaseError, DataError, IntegrityError

from shared.auth.accounts import create_first_users
from shared.clock import DatabaseClock
from shared.db import Database, migrate, open_database
from shared.db.engine import database_setting, is_away, sqlite_file
from shared.policies.store import PolicyStore
from shared.privacy.envelope import new_master_key
from shared.privacy.keys import compare_master_key
from shared.privacy.master_keys import COMMAND, is_kept_here, open_envelope
from shared.settings import Settings, load_settings

LOGINS_FILE = "first-logins.txt"


def prepare(settings: Settings) -> list[tuple[str, str, str]]:
    """Make whatever is missing; safe to repeat.

    Returns the new log-ins as (name, role, password), which are also written to a file that only
    the owner may read; empty when there were users already.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    (settings.state_dir / "redis").mkdir(exist_ok=True, mode=0o700)
    if "MEDICHAT_SECRETS_DIR" not in os.environ:
        make_secrets(settings.state_dir)
    return make_tables(load_settings())


def make_secrets(state_dir: Path) -> None:
    """Write random keys (master, token, audit), unless they are there or in the environment.

    Raises ValueError instead of making a second master key for a database that needs the first.
    """
    folder = state_dir / "secrets"
    folder.mkdir(exist_ok=True, mode=0o700)
    made = {
        "master_key": new_master_key(),
        "token_key": secrets.token_urlsafe(48),
        "audit_key": base64.b64encode(secrets.token_bytes(32)).decode(),
    }
    for name, value in made.items():
        path = folder / f"medichat_{name}"
        if path.exists() or os.environ.get(f"MEDICHAT_{name.upper()}"):
            continue
        if name == "master_key" and os.environ.get(COMMAND):
            continue
        if name == "master_key" and (state_dir / "medichat.db").exists():
            raise ValueError(f"{path} is missing, and without it no conversation can be read: put it back")
        write_private(path, value)


def make_tables(settings: Settings) -> list[tuple[str, str, str]]:
    """Migrate the database as its owner and make the first users; returns those made.

    Raises ValueError when the database's texts are under another master key than the one at hand, if any.
    """
    with open_as_owner(settings) as database:
        migrate_tables(database)
        if is_kept_here(settings):  # where it is kept from who owns the tables, the processes ask
            with database.read() as connection:
                compare_master_key(connection, open_envelope(settings))
        with database.write() as connection:
            logins = create_first_users(connection, datetime.now(UTC))
            if logins:  # written before the commit: a password in the file may be void, never lost
                write_private(settings.state_dir / LOGINS_FILE, describe_logins(logins))
        return logins


def migrate_tables(database: Database) -> None:
    """Bring the tables to the newest version, and keep the policy that this release comes with."""
    migrate.upgrade(database.writer)
    with database.write() as connection:
        PolicyStore(DatabaseClock()).keep_packaged(connection)


def load_installed() -> Settings:
    """The settings of an installation that is there, for what is to make none.

    Raises FileNotFoundError where a file for the database is named that there is not: opening would make it.
    """
    settings = load_settings()
    path = sqlite_file(settings.database_url)
    if path is not None and not path.exists():
        in_state = path.parent == settings.state_dir.absolute()
        setting = "MEDICHAT_STATE_DIR" if in_state else "MEDICHAT_DATABASE_URL"
        raise FileNotFoundError(
            f"there is no installation here, for there is no {path}; run this in the project's folder, or "
            f"set {setting}"
        )
    return settings


def open_as_owner(settings: Settings) -> AbstractContextManager[Database]:
    """The database as its owner. Raises ConnectionError, naming the setting, when it cannot be used."""
    return _reached(settings, owner=True)


def open_as_application(settings: Settings) -> AbstractContextManager[Database]:
    """The database as the processes open it. Raises ConnectionError likewise."""
    return _reached(settings, owner=False)


@contextmanager
def _reached(settings: Settings, *, owner: bool) -> Iterator[Database]:
    database = open_database(settings, owner=owner, pool_size=1)
    try:
        yield database
    except DatabaseError as error:
        if isinstance(error, DataError | IntegrityError):  # its reason may hold what was to be stored
            raise
        done = "reached" if is_away(error) else "used"
        reason = " ".join(str(error.orig).split())
        raise ConnectionError(
            f"the database cannot be {done}, see {database_setting(settings, owner=owner)}: {reason}"
        ) from error
    finally:
        database.close()


def describe_logins(logins: list[tuple[str, str, str]]) -> str:
    """The log-ins as text, a line each."""
    head = "Log-ins made at the first start. Change the passwords, then delete this file."
    return "\n".join(
        [head, *(f"  {role:8} name: {name:8} password: {secret}" for name, role, secret in logins), ""]
    )


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all: a new one only its owner may read.

    One that is replaced keeps its owner, group and mode, so that who could read it still can. Raises
    PermissionError, with the file as it was, to who may not give it back to its owner.
    """
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        try:
            own_like(descriptor, path)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        except OSError as error:
            temporary.unlink()
            if error.filename is None:  # a full disk names none
                raise type(error)(error.errno, error.strerror, str(path)) from error
            raise
    temporary.replace(path)


def own_like(descriptor: int, path: Path) -> None:
    """Give a new file the owner, group and mode of the one at `path`, if there is one.

    Raises PermissionError, with the way out, to who may not.
    """
    try:
        former = path.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, 0o600)
        return
    made = os.fstat(descriptor)
    try:
        if (made.st_uid, made.st_gid) != (former.st_uid, former.st_gid):
            os.fchown(descriptor, former.st_uid, former.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(former.st_mode))
    except PermissionError as error:
        told = "the file would change its owner: run this as its owner or as root"
        raise PermissionError(error.errno, told, str(path)) from error

"""Fixtures: one Redis and one PostgreSQL a run, a fresh database and gateway a test, on both dialects."""

import base64
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from services.local import free_ports
from shared.db import migrate
from shared.db.engine import SQLITE_PRAGMAS, Database, connect, sqlite_file
from shared.ids import new_id
from shared.privacy.envelope import new_master_key
from shared.queue import open_redis
from shared.settings import Settings
from tests.postgresql import PostgresServer
from tests.support import Api, RedisServer

gc.disable()  # until all is collected: importing leaves no garbage

OWNER, APPLICATION = "medichat_owner", "medichat"
DIALECTS = ("sqlite", "postgresql")


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of whoever runs the tests do not count."""
    for name in list(os.environ):
        if name.startswith("MEDICHAT_") and not name.startswith("MEDICHAT_REQUIRE_"):
            monkeypatch.delenv(name)


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage took a fifth of the time of the tests."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A crash of this machine may lose the databases of SQLite, as it may those of PostgreSQL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SQLITE_PRAGMAS, "synchronous", "OFF")
        yield


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for tests that do not harm it."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.kill()


class Databases:
    """Makes empty, migrated databases: copies of one that was migrated once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sqlite = folder / "template.db"
        self._dropping = ThreadPoolExecutor(1)
        database = connect(f"sqlite:///{self._sqlite}")
        migrate.upgrade(database.writer)
        database.close()  # the last connection moves the write-ahead log into the file
        self.server = PostgresServer(folder / "postgres")
        self._admin = create_engine(self._url("postgres", "postgres"), isolation_level="AUTOCOMMIT")
        with self._admin.connect() as connection:
            # a crash of this machine may lose it all; looking what to vacuum in hundreds of databases costs
            for setting in ("fsync", "full_page_writes", "autovacuum"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("ALTER SYSTEM SET file_copy_method = clone"))  # the kernel copies
            connection.execute(text("SELECT pg_reload_conf()"))
            # the same roles as in deploy/postgres/roles.sh
            connection.execute(text(f"CREATE ROLE {OWNER} LOGIN"))
            connection.execute(text("CREATE ROLE medichat_app NOLOGIN"))
            connection.execute(text(f"CREATE ROLE {APPLICATION} LOGIN IN ROLE medichat_app"))
        self.empty_postgresql("template_medichat")
        owner = connect(self._url(OWNER, "template_medichat"))
        migrate.upgrade(owner.writer)
        owner.close()

    def _url(self, role: str, database: str) -> str:
        head, _, tail = self.server.url.partition("@")
        path, _, query = tail.partition("?")
        host = path.rpartition("/")[0]
        return f"{head.rpartition('//')[0]}//{role}@{host}/{database}" + (f"?{query}" if query else "")

    def empty_postgresql(self, name: str) -> str:
        """A database without tables; returns its owner's URL."""
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} OWNER {OWNER}"))
        return self._url(OWNER, name)

    def make(self, dialect: str) -> tuple[str, str]:
        """A migrated database without rows; returns the application's URL and the owner's."""
        name = f"t{new_id().replace('-', '')}"
        if dialect == "sqlite":
            path = self._folder / f"{name}.db"
            shutil.copy(self._sqlite, path)
            return f"sqlite:///{path}", f"sqlite:///{path}"
        with self._admin.connect() as connection:
            template = "TEMPLATE template_medichat STRATEGY file_copy"
            connection.execute(text(f"CREATE DATABASE {name} OWNER {OWNER} {template}"))
        return self._url(APPLICATION, name), self._url(OWNER, name)

    def drop(self, url: str) -> None:
        """Take a database of PostgreSQL away from whoever is connected."""
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)"))

    def forget(self, url: str) -> None:
        """Drop a database that nobody needs any more, a moment later.

        Thousands of them would keep a disk busy with gigabytes that nobody reads.
        """
        path = sqlite_file(url)
        if path is None:
            self._dropping.submit(self.drop, url)
            return
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the server."""
        self._dropping.shutdown()
        self._admin.dispose()
        self.server.stop()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The maker of databases."""
    made = Databases(tmp_path_factory.mktemp("databases"))
    yield made
    made.close()


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it runs on SQLite and on PostgreSQL."""
    return str(request.param)


@pytest.fixture
def database(databases: Databases, dialect: str) -> Iterator[Database]:
    """An empty, migrated database, opened as the application's role."""
    url = databases.make(dialect)[0]
    made = connect(url)
    yield made
    made.close()
    databases.forget(url)


MakeSettings = Callable[..., Settings]
MakeApi = Callable[..., Api]


def fresh_settings(
    databases: Databases, dialect: str, redis_server: RedisServer, state_dir: Path, **overrides: object
) -> Settings:
    """Settings of a fresh installation; keywords override."""
    (api_port,) = free_ports(1)
    url, owner_url = databases.make(dialect)
    values: dict[str, object] = {
        "state_dir": state_dir,
        "database_url": url,
        "database_owner_url": owner_url,
        "redis_url": redis_server.url,
        "master_key": new_master_key(),
        "token_key": "a test's key, which is long enough to sign with, whatever the algorithm",
        "api_port": api_port,
        "logins_per_minute": 10_000,
        "requests_per_minute": 100_000,
        "audit_key": base64.b64encode(os.urandom(32)).decode(),
        "reconcile_s": 0.2,
        "seal_s": 3600,
        **overrides,
    }
    return Settings(**values)  # type: ignore[arg-type]


@pytest.fixture
def make_settings(
    databases: Databases, dialect: str, redis_server: RedisServer, tmp_path: Path
) -> Iterator[MakeSettings]:
    """Settings of a fresh installation on the test's dialect; keywords override."""

    with closing(open_redis(Settings(redis_url=redis_server.url))) as client:
        client.flushall()
    made: list[Settings] = []

    def make(**overrides: object) -> Settings:
        made.append(fresh_settings(databases, dialect, redis_server, tmp_path, **overrides))
        return made[-1]

    yield make
    for settings in made:
        databases.forget(settings.database_url)


@pytest.fixture
def make_api(make_settings: MakeSettings) -> Iterator[MakeApi]:
    """Starts gateways, and stops them at the end of the test."""
    made: list[Api] = []

    def make(**overrides: object) -> Api:
        made.append(Api(make_settings(**overrides)))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """A gateway with the usual settings."""
    return make_api()

"""`medichat backup` and `restore`: all comes back unaltered on any database, and what was erased does not."""

import base64
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Select, Table, delete, func, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError

from services import cli
from shared.audit import record
from shared.audit.checkpoint import Signer
from shared.audit.checkpoints import FOLDER
from shared.auth.roles import Role
from shared.backup.manifest import LEFT_OUT, Manifest
from shared.backup.take import take_backup
from shared.clock import DatabaseClock
from shared.db import Database
from shared.db.engine import connect
from shared.db.tables import audit_events, audit_seals, data_keys, messages, metadata, sessions, users
from shared.db.tables_audit import audit_pending
from shared.db.tables_guard import guard_policies
from shared.db.tables_privacy import legal_holds, search_pending, search_terms
from shared.ids import new_id
from shared.policies.store import PolicyStore
from shared.privacy.erased import note_erased
from shared.privacy.held import hold_of, note_holds
from shared.storage import Storage
from tests.conftest import DIALECTS, Databases, MakeApi
from tests.drawn import image
from tests.registry import add_good_adapter, sha_of
from tests.support import Api, ask_async

QUESTION = "Is zymurgyphobia a disease?"
#: Written by the restore itself, and by the migrations of a new database.
OWN = ("audit_events", "audit_pending", "guard_policies")
Rows = dict[str, list[tuple[Any, ...]]]


class Source:
    """An installation that was used, at rest: what it holds, and the command's environment on its machine."""

    def __init__(self, api: Api, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.settings, self._patch = folder, api.settings, monkeypatch
        self.file = folder / "backup.tar"
        self.checkpoints = Storage.of_checkpoints(api.settings)
        self.on(api.settings.database_url, api.settings.database_owner_url)

    def on(self, url: str, owner_url: str) -> None:
        """From now on commands work on this database."""
        for name, value in (
            ("STATE_DIR", str(self.folder)),
            ("DATABASE_URL", url),
            ("DATABASE_OWNER_URL", owner_url),
            ("AUDIT_KEY", self.settings.secret("audit_key")),
        ):
            self._patch.setenv(f"MEDICHAT_{name}", value)


@pytest.fixture
def source(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    """One that holds what is hard to carry: later accounts, JSON with and without a value, moments, bytes."""
    admin, person = api.person(Role.ADMIN), api.person()
    ask_async(api.client(person), QUESTION, images=[image()])
    api.answer("It is not.")
    add_good_adapter(api, admin, sha_of("good"))
    api.set(users, users.c.id == admin.id, approved_by=api.person(Role.AUDITOR).id)
    with api.gateway.database.write() as connection:
        event = connection.execute(select(func.min(audit_events.c.id))).scalar_one()
        now = api.gateway.clock.now(connection)
        seal = {"sequence": 0, "event_id": event, "leaf_hash": b"\x00" * 32, "sealed_at": now}
        connection.execute(insert(audit_seals).values(seal))
        connection.execute(delete(audit_pending).where(audit_pending.c.event_id == event))
        connection.execute(delete(search_pending))
        asked = connection.execute(select(messages.c.conversation_id).limit(1)).scalar_one()
        connection.execute(insert(search_terms).values(term=b"\xff\x00", conversation_id=asked))
    api.close()
    return Source(api, monkeypatch, tmp_path)


@pytest.fixture
def target(databases: Databases, request: pytest.FixtureRequest) -> tuple[str, str]:
    """An empty database, migrated: its application's address and its owner's."""
    return databases.make(getattr(request, "param", "sqlite"))


def content(url: str) -> Rows:
    """Every row of every table that a backup holds, as the program reads it, and which JSON has no value."""
    with closing(connect(url)) as database, database.read() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(_with_nulls(table))]
            for table in metadata.sorted_tables
            if table.name not in LEFT_OUT
        }


def _with_nulls(table: Table) -> Select[Any]:
    """JSON that has no value and JSON whose value is null are the same to Python, and not to a query."""
    missing = (column.is_(None) for column in table.columns)
    return select(table, *missing).order_by(*table.primary_key.columns)


def backup(source: Source, *arguments: str) -> None:
    assert cli.main(["backup", str(source.file), *arguments]) == 0


def restore(source: Source, target: tuple[str, str]) -> int:
    source.on(*target)
    return cli.main(["restore", str(source.file)])


def last_event(url: str) -> dict[str, Any]:
    """The details of the newest entry of the log, which is the restore's."""
    with closing(connect(url)) as database, database.read() as connection:
        newest = connection.execute(select(audit_events).order_by(audit_events.c.id.desc()).limit(1)).one()
    assert (newest.action, newest.actor) == ("backup.restored", "operator")
    details: dict[str, Any] = json.loads(newest.canonical_bytes)["details"]
    return details


def signed_word(source: Source, details: dict[str, Any]) -> set[tuple[int, bytes]]:
    """The checkpoints that the log's key says the restored log is older than."""
    return Signer(source.settings.secret("audit_key")).verifier.read_restore(details["statement"])


@pytest.mark.parametrize("target", DIALECTS, indirect=True)
def test_every_row_comes_back_on_either_kind_of_database(source: Source, target: tuple[str, str]) -> None:
    backup(source)
    before = content(source.settings.database_owner_url)
    assert restore(source, target) == 0
    after = content(target[1])
    assert {name: rows for name, rows in after.items() if name not in OWN} == {
        name: rows for name, rows in before.items() if name not in OWN
    }
    for name, more in (("audit_events", 1), ("audit_pending", 1), ("guard_policies", 0)):
        assert set(before[name]) <= set(after[name]), name
        assert len(after[name]) == len(before[name]) + more, name
    assert last_event(target[1]) == {
        "backup_size": 1,
        "superseded": [],
        "erased_again": 0,
        "held_again": 0,
        "statement": Signer(source.settings.secret("audit_key")).sign_restore(1, []),
    }


@pytest.mark.parametrize("target", DIALECTS, indirect=True)
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_rules_of_the_tables_hold_afterwards(source: Source, target: tuple[str, str]) -> None:
    backup(source)
    assert restore(source, target) == 0
    with closing(connect(target[1])) as database:
        for table in (audit_events, audit_seals):
            with pytest.raises(DBAPIError, match="insert-only"), database.write() as connection:
                connection.execute(delete(table))
        with database.write() as connection:
            waiting = connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
            record.append(
                connection, now=DatabaseClock().now(connection), actor=record.SYSTEM_ACTOR, action="a"
            )
            now_waiting = connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
            assert now_waiting == waiting + 1
        with database.writer.connect() as connection, pytest.raises(DBAPIError):
            connection.execute(update(users).values(approved_by=new_id()))  # at once, not at the commit
        if database.dialect == "postgresql":
            with database.read() as connection:
                keys = inspect(connection).get_foreign_keys("users")
                assert all(not key["options"].get("deferrable") for key in keys)


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("target", ["postgresql"], indirect=True)
def test_a_gateway_reads_the_texts_of_a_restored_database(
    source: Source, target: tuple[str, str], make_api: MakeApi
) -> None:
    backup(source)
    assert restore(source, target) == 0
    key = source.settings.master_key
    api = make_api(database_url=target[0], database_owner_url=target[1], master_key=key)
    with api.gateway.database.read() as connection:
        asked = connection.execute(select(messages.c.conversation_id)).scalars().first()
        texts = [each.text for each in api.gateway.conversations.read_messages(connection, str(asked))]
    assert texts == [QUESTION, "It is not."]
    assert api.count(sessions) == 0, "everybody logs in again"


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_holds_every_table_of_the_database(source: Source) -> None:
    backup(source)
    with closing(connect(source.settings.database_url)) as database, database.read() as connection:
        tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
    with tarfile.open(source.file) as tar:
        packed = Manifest.model_validate_json(tar.extractfile("manifest.json").read())  # type: ignore[union-attr]
    assert set(packed.tables) == tables - set(LEFT_OUT)


def test_a_backup_is_of_one_moment_whatever_is_written_meanwhile(
    database: Database, databases: Databases, dialect: str
) -> None:
    url, owner_url = databases.make(dialect)
    written: list[str] = []

    def write_more(_table: str, _count: int) -> None:
        with closing(connect(url)) as other, other.write() as connection:
            written.append(
                record.append(
                    connection, now=DatabaseClock().now(connection), actor=record.SYSTEM_ACTOR, action="a"
                )
            )

    with closing(connect(owner_url)) as owner:
        write_more("", 0)
        with owner.read() as connection:
            now = DatabaseClock().now(connection)
        manifest = take_backup(owner, io.BytesIO(), now=now, storage=None, told=write_more)
    assert len(written) > 2
    assert manifest.tables["audit_events"].rows == manifest.tables["audit_pending"].rows == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_is_private_holds_no_text_and_is_in_the_log(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    assert stat.S_IMODE(source.file.stat().st_mode) == 0o600
    packed = source.file.read_bytes()
    assert b"zymurgyphobia" not in packed
    assert source.settings.secret("master_key").encode() not in packed
    told = capsys.readouterr().out
    assert "Copy these elsewhere too" in told
    assert "MEDICHAT_STORAGE_URL" in told
    events = [row for row in content(source.settings.database_url)["audit_events"] if "backup.taken" in row]
    assert len(events) == 1
    assert base64.b64encode(b'"action":"backup.taken"')[4:20] in packed or b"backup.taken" in packed


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_file_that_is_there_is_not_replaced_and_half_a_file_not_left(
    source: Source, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source.file.write_text("mine")
    assert cli.main(["backup", str(source.file)]) == 1
    assert "is not replaced" in capsys.readouterr().err
    assert source.file.read_text() == "mine"
    (tmp_path / "none.db").touch()
    source.on(f"sqlite:///{tmp_path}/none.db", f"sqlite:///{tmp_path}/none.db")
    assert cli.main(["backup", str(tmp_path / "other.tar")]) == 1
    assert "run `medichat migrate` first" in capsys.readouterr().err
    assert list(tmp_path.glob("other*")) == []


def changed(file: Path, member: str) -> None:
    """One bit of the member is another."""
    with tarfile.open(file) as tar:
        place = tar.getmember(member).offset_data
    packed = bytearray(file.read_bytes())
    packed[place + 3] ^= 1
    file.write_bytes(packed)


def cut(file: Path, _member: str) -> None:
    packed = file.read_bytes()
    file.write_bytes(packed[: len(packed) // 2])


def renamed(file: Path, member: str) -> None:
    file.write_bytes(file.read_bytes().replace(member.encode(), member.encode()[:-1] + b"?"))


def emptied(file: Path, _member: str) -> None:
    file.write_bytes(b"")


DAMAGES: list[tuple[Callable[[Path, str], None], str]] = [
    (changed, "tables/users/00000.jsonl"),
    (changed, "tables/audit_events/00000.jsonl"),
    (changed, "manifest.json"),
    (changed, "manifest.sha256"),
    (renamed, "manifest.json"),
    (cut, ""),
    (emptied, ""),
]


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_damaged_backup_is_refused_before_a_row_is_written(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    whole, before = source.file.read_bytes(), content(target[1])
    for damage, member in DAMAGES:
        source.file.write_bytes(whole)
        damage(source.file, member)
        assert restore(source, target) == 1, (damage, member)
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert "take another copy" in line
        assert content(target[1]) == before


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("target", DIALECTS, indirect=True)
def test_a_database_that_holds_rows_is_left_alone(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    assert restore(source, target) == 0
    before = content(target[1])
    assert restore(source, target) == 1
    assert "name another database in MEDICHAT_DATABASE_URL" in capsys.readouterr().err
    assert content(target[1]) == before


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize(("kind", "made"), [("sqlite", "by nobody"), ("postgresql", "by the command")])
def test_new_tables_are_empty_whoever_made_them(
    source: Source, databases: Databases, tmp_path: Path, kind: str, made: str
) -> None:
    with closing(connect(source.settings.database_url)) as database, database.write() as connection:
        PolicyStore(DatabaseClock()).keep_packaged(connection)
    backup(source)
    url = (
        f"sqlite:///{tmp_path}/new.db"
        if kind == "sqlite"
        else databases.empty_postgresql(f"n{new_id().replace('-', '')}")
    )
    source.on(url, url)
    if made == "by the command":
        assert cli.main(["migrate"]) == 0
    assert restore(source, (url, url)) == 0
    with closing(connect(url)) as database, database.read() as connection:
        actions = list(connection.execute(select(audit_events.c.action)).scalars())
        pending = connection.execute(select(func.count()).select_from(audit_pending)).scalar_one()
        policies = connection.execute(select(func.count()).select_from(guard_policies)).scalar_one()
    assert actions.count("policy.packaged") == (2 if made == "by the command" else 1)
    assert pending == len(actions) - 1, "one was sealed before the backup"
    assert policies == 1, "the same policy is there once"


@pytest.mark.parametrize("target", ["postgresql"], indirect=True)
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_only_the_owner_restores(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    application = target[0]
    assert restore(source, (application, application)) == 1
    assert "set MEDICHAT_DATABASE_OWNER_URL" in capsys.readouterr().err


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_backup_of_other_tables_is_refused_with_the_way(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    with tarfile.open(source.file) as tar:
        packed = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    manifest = Manifest.model_validate_json(packed[-2][1]).model_copy(update={"revision": "0001"})
    described = manifest.model_dump_json().encode()
    changes = [described, hashlib.sha256(described).hexdigest().encode()]
    with tarfile.open(source.file, "w") as tar:
        for (member, data), change in zip(packed, [None] * (len(packed) - 2) + changes, strict=True):
            member.size = len(change or data)
            tar.addfile(member, io.BytesIO(change or data))
    assert restore(source, target) == 1
    assert "restore it with the release that took it" in capsys.readouterr().err


@pytest.mark.parametrize("target", DIALECTS, indirect=True)
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_what_was_erased_since_stays_erased(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    with closing(connect(source.settings.database_url)) as database, database.read() as connection:
        erased = connection.execute(select(messages.c.key_id)).scalars().first()
    note_erased(source.checkpoints, [str(erased), new_id()])
    assert restore(source, target) == 0
    with closing(connect(target[1])) as database, database.read() as connection:
        key = connection.execute(select(data_keys).where(data_keys.c.key_id == erased)).one()
        assert key.wrapped_key is None
        assert key.destroyed_at is not None
        assert connection.execute(select(search_terms)).all() == [], "nor can it be searched"
        others = select(data_keys).where(data_keys.c.key_id != erased, data_keys.c.wrapped_key.is_(None))
        assert connection.execute(others).all() == []
    assert last_event(target[1])["erased_again"] == 1
    assert "destroyed again: 1" in capsys.readouterr().out


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_list_that_lacks_what_was_erased_before_the_backup_is_doubted(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(connect(source.settings.database_url)) as database, database.write() as connection:
        connection.execute(update(data_keys).values(wrapped_key=None))
    backup(source)
    assert restore(source, target) == 0
    assert "Is it the right place?" in capsys.readouterr().out


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("place", ["empty", "lacks one", "whole"])
def test_whoever_restores_is_told_where_holds_may_be_missing(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str], place: str
) -> None:
    with closing(connect(source.settings.database_url)) as database, database.write() as connection:
        user, now = connection.execute(select(users.c.id).limit(1)).scalar_one(), datetime.now(UTC)
        hold = {"id": new_id(), "subject": f"user:{user}", "reference": "1", "placed_by": user}
        connection.execute(insert(legal_holds).values(**hold, placed_at=now))
        known = hold_of(connection, hold["id"])
    backup(source)
    other = known.model_copy(update={"id": new_id(), "lifted": True})
    note_holds(source.checkpoints, {"empty": [], "lacks one": [other], "whole": [known, other]}[place])
    assert restore(source, target) == 0
    told = "place those holds again" in capsys.readouterr().out
    assert told is (place != "whole")


def signed(source: Source, size: int, root: bytes) -> bytes:
    signer = Signer(source.settings.secret("audit_key"))
    return signer.sign(size=size, root=root, now=datetime(2026, 11, 2, tzinfo=UTC)).encode()


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_log_names_the_checkpoints_that_a_restore_falls_behind(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    backup(source)
    roots = {size: bytes([size]) * 32 for size in (1, 7, 9)}
    for size, root in roots.items():
        for _ in range(2):
            with source.checkpoints.create(f"{FOLDER}/checkpoint-{size:012}-{new_id()}.txt") as file:
                file.write(signed(source, size, root))
    assert restore(source, target) == 0
    details = last_event(target[1])
    assert details["backup_size"] == 1
    assert details["superseded"] == [{"size": size, "root": roots[size].hex()} for size in (7, 9)]
    assert signed_word(source, details) == {(size, roots[size]) for size in (7, 9)}
    assert "shorter than 2 checkpoints" in capsys.readouterr().out


@pytest.mark.parametrize("dialect", ["sqlite"])
@pytest.mark.parametrize("forged", [False, True])
def test_a_checkpoint_that_cannot_be_read_or_is_not_signed_is_not_passed_over(
    source: Source, target: tuple[str, str], capsys: pytest.CaptureFixture[str], forged: bool
) -> None:
    backup(source)
    with source.checkpoints.create(f"{FOLDER}/checkpoint-000000000009-x.txt") as file:
        file.write(signed(source, 8, bytes(32)).replace(b"\n8\n", b"\n9\n") if forged else b"9\nno root\n")
    before = content(target[1])
    assert restore(source, target) == 1
    assert "checkpoint-000000000009-x.txt" in capsys.readouterr().err
    assert content(target[1]) == before


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_the_files_of_a_local_storage_come_along_when_asked_for(
    source: Source, target: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.from_settings(source.settings)
    files = {"datasets/x/raw": b"sealed" * 500_000, "adapters/y/a.safetensors": b""}
    for path, data in files.items():
        with storage.create(path) as file:
            file.write(data)
    backup(source, "--with-storage")
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("MEDICHAT_STORAGE_URL", str(elsewhere))
    assert restore(source, target) == 0
    assert {path: (elsewhere / path).read_bytes() for path in files} == files


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_a_bucket_is_not_packed(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDICHAT_STORAGE_URL", "memory://bucket")
    assert cli.main(["backup", str(source.file), "--with-storage"]) == 1
    assert "tools of its provider" in capsys.readouterr().err

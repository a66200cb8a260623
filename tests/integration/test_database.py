"""Migrations on both databases, and what the application's role cannot do."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError

from services import cli, setup
from shared.audit import record
from shared.auth.roles import Role
from shared.clock import DatabaseClock
from shared.db import migrate
from shared.db.engine import Database, connect, is_away, sqlite_file
from shared.db.tables import (
    INSERT_ONLY,
    audit_events,
    audit_seals,
    conversations,
    data_keys,
    jobs,
    leases,
    messages,
    metadata,
    users,
)
from shared.db.tables_audit import audit_checkpoints, audit_pending, audit_tiles
from shared.db.tables_guard import guard_policies
from shared.db.tables_privacy import search_pending
from shared.db.tables_training import datasets, deployments, training_runs
from shared.guard.policy import packaged_policy, version_of
from shared.ids import new_id
from shared.policies.store import PolicyStore
from tests.conftest import Databases
from tests.drawn import image
from tests.support import Api, ask_async


def add_event(database: Database) -> str:
    with database.write() as connection:
        now = DatabaseClock().now(connection)
        return record.append(connection, now=now, actor=record.SYSTEM_ACTOR, action="test.event")


@pytest.fixture
def empty(databases: Databases, dialect: str, tmp_path):  # type: ignore[no-untyped-def]
    """A database without a table, opened as its owner."""
    if dialect == "sqlite":
        made = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    else:
        made = connect(databases.empty_postgresql(f"e{new_id().replace('-', '')}"))
    yield made
    made.close()


def test_the_migrations_make_the_tables_that_the_code_describes(empty: Database) -> None:
    migrate.upgrade(empty.writer)
    assert migrate.check(empty.writer)


def test_an_installation_keeps_the_policy_that_its_release_comes_with(empty: Database) -> None:
    for _ in range(2):
        setup.migrate_tables(empty)
    with empty.read() as connection:
        (row,) = connection.execute(select(guard_policies)).all()
    assert (row.version, row.created_by) == (version_of(packaged_policy()), None)
    assert row.texts == packaged_policy()


def test_the_migrations_can_be_undone_and_done_again(empty: Database) -> None:
    migrate.upgrade(empty.writer)
    migrate.downgrade(empty.writer)
    with empty.read() as connection:
        assert not empty.writer.dialect.has_table(connection, "jobs")
    migrate.upgrade(empty.writer)
    assert migrate.check(empty.writer)
    add_event(empty)


def test_a_table_that_differs_is_noticed(empty: Database) -> None:
    migrate.upgrade(empty.writer)
    with empty.write() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN colour VARCHAR(10)"))
    assert not migrate.check(empty.writer)


def be_newer(file: Path) -> None:
    change(file, "UPDATE alembic_version SET version_num = '9999'")


def be_torn(file: Path) -> None:
    change(file, "INSERT INTO dataset_conversations VALUES ('no dataset', 'no conversation')")


def be_another_file(file: Path) -> None:
    file.write_bytes(b"no database " * 1000)


def be_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: 3 * 4096])


def change(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (be_newer, "of a newer MediChat than this one: start that version, or restore a backup of this one"),
        (be_torn, "rows that refer to nothing, so it was undone: start the version that made the tables, or"),
        (be_another_file, "cannot be used, see MEDICHAT_DATABASE_URL: file is not a database"),
        (be_cut_off, "cannot be used, see MEDICHAT_DATABASE_URL: database disk image is malformed"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_with_the_way_out(
    spoil: Callable[[Path], None],
    told: str,
    databases: Databases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, _ = databases.make("sqlite")
    file = sqlite_file(url)
    assert file
    spoil(file)
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MEDICHAT_DATABASE_URL", url)
    assert cli.main(["init"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


@pytest.mark.parametrize("change", ["UPDATE audit_events SET action = 'x'", "DELETE FROM audit_events"])
def test_the_application_cannot_change_the_log(database: Database, change: str) -> None:
    add_event(database)
    with pytest.raises(DatabaseError), database.write() as connection:
        connection.execute(text(change))
    with database.read() as connection:
        assert connection.execute(select(audit_events.c.action)).scalar_one() == "test.event"


@pytest.mark.parametrize("table", INSERT_ONLY)
def test_every_insert_only_table_refuses_change(api: Api, table: str) -> None:
    ask_async(api.log_in(), images=[image()])
    if table == "audit_seals":
        add_seal(api.gateway.database)
    if table in ("audit_checkpoints", "audit_tiles"):
        add_tree(api.gateway.database)
    if table == "deployments":
        add_deployment(api.gateway.database)
    if table.startswith("guard_"):
        add_policy(api)
    changes = [f"DELETE FROM {table}", f"UPDATE {table} SET {KEY[table]} = {KEY[table]}"]
    if api.gateway.database.dialect == "sqlite":
        changes += replacements(table)
    for change in changes:
        with pytest.raises(DatabaseError, match=REFUSED), api.gateway.database.write() as connection:
            connection.execute(text(change))


def replacements(table: str) -> list[str]:
    """Statements of SQLite that put a row where another is, which is no DELETE to its triggers."""
    names = [column.name for column in metadata.tables[table].columns]
    others = [f"{name} || 1" if name == KEY[table] else name for name in names]
    same_place = f"{table} (rowid, {', '.join(names)}) SELECT rowid, {', '.join(others)}"
    statements = [f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"]
    if [column.name for column in metadata.tables[table].primary_key] != ["seq"]:  # that is the rowid itself
        statements.append(f"INSERT OR REPLACE INTO {same_place} FROM {table}")
    return statements


#: By the triggers, or by the rights of the application's role.
REFUSED = r"insert-only|permission denied"

KEY = {
    "audit_checkpoints": "id",
    "audit_tiles": "level",
    "audit_events": "id",
    "audit_seals": "sequence",
    "deployments": "seq",
    "guard_activations": "seq",
    "guard_policies": "version",
    "pictures": "id",
    "guard_stops": "seq",
    "job_events": "seq",
}


def add_seal(database: Database) -> None:
    event_id = add_event(database)
    with database.write() as connection:
        row = {"sequence": 1, "event_id": event_id, "leaf_hash": b"x" * 32}
        connection.execute(insert(audit_seals), {**row, "sealed_at": DatabaseClock().now(connection)})


def add_tree(database: Database) -> None:
    with database.write() as connection:
        tile = {"level": 0, "number": 0, "hashes": b"x" * 8192, "root": b"x" * 32}
        connection.execute(insert(audit_tiles), tile)
        checkpoint = {"id": new_id(), "size": 256, "root": b"x" * 32, "note": "x"}
        connection.execute(
            insert(audit_checkpoints), {**checkpoint, "signed_at": DatabaseClock().now(connection)}
        )


def add_deployment(database: Database) -> None:
    with database.write() as connection:
        somebody = connection.execute(select(users.c.id)).scalars().first()
        row = {"seq": 1, "base_model": "demo", "kind": "promote", "by": somebody}
        connection.execute(insert(deployments), {**row, "at": DatabaseClock().now(connection)})


def add_policy(api: Api) -> None:
    admin = record.Actor(api.person(Role.ADMIN).id)
    store = PolicyStore(api.gateway.clock)
    with api.gateway.database.write() as connection:
        version = store.add(connection, {"policy.yaml": "x"}, note="A note.", actor=admin)
        store.activate(connection, version, admin)
        store.stop(connection, "A test.", admin)


def test_jobs_and_what_refers_to_them_survive_the_rebuilding_of_their_table(
    tmp_path: Path,
) -> None:
    made = connect(f"sqlite:///{tmp_path / 'old.db'}")
    migrate.upgrade(made.writer, "0001")
    at = "'2026-01-01 00:00:00'"
    with made.write() as connection:
        connection.execute(
            text(
                "INSERT INTO users (id, name, role, audience, status, password_hash, created_at) "
                f"VALUES ('u', 'u', 'user', 'patient', 'active', 'x', {at})"
            )
        )
        connection.execute(
            text(
                "INSERT INTO jobs (id, kind, lane, state, user_id, audience, max_attempts, sampling, "
                "available_at, created_at) "
                f"VALUES ('j', 'infer', 'interactive', 'queued', 'u', 'patient', 3, '{{}}', {at}, {at})"
            )
        )
        connection.execute(
            text(
                "INSERT INTO job_events (job_id, seq, at, kind, epoch, attempt) "
                f"VALUES ('j', 1, {at}, 'submitted', 0, 0)"
            )
        )
    migrate.upgrade(made.writer)
    with made.read() as connection:
        assert connection.execute(text("SELECT id FROM jobs")).scalar_one() == "j"
        assert connection.execute(text("SELECT job_id FROM job_events")).scalar_one() == "j"
    with pytest.raises(IntegrityError), made.write() as connection:
        connection.execute(text("DELETE FROM jobs"))
    made.close()


@pytest.mark.parametrize(("checked_on", "known"), [(1, "m" * 64), (3, None)])
def test_a_former_run_names_the_manifest_only_where_it_is_still_what_was_trained_on(
    empty: Database, checked_on: int, known: str | None
) -> None:
    migrate.upgrade(empty.writer, "0003")
    day = [datetime(2026, 1, number + 1, tzinfo=UTC) for number in range(4)]
    by = {"created_by": "u", "created_at": day[0]}
    with empty.write() as connection:
        person = {"id": "u", "name": "u", "role": "admin", "audience": "clinician", "status": "active"}
        connection.execute(insert(users).values(**person, password_hash="x", created_at=day[0]))
        key = {"key_id": "k", "scope": "dataset", "owner_id": "d", "wrapped_key": b"x"}
        connection.execute(insert(data_keys).values(**key, master_key_version=1, created_at=day[0]))
        made = {
            "id": "d",
            "name": "d",
            "state": "ready",
            "source": "upload",
            "source_name": "d",
            "options": {},
        }
        check = {"manifest_sha256": "m" * 64, "validated_at": day[checked_on]}
        connection.execute(insert(datasets).values(**made, **check, **by, key_id="k"))
        job = {"id": "j", "kind": "train", "lane": "batch", "state": "succeeded", "audience": "clinician"}
        more = {"user_id": "u", "max_attempts": 5, "sampling": {}, "available_at": day[2]}
        connection.execute(insert(jobs).values(**job, **more, created_at=day[2]))
        run = {"id": "r", "name": "r", "job_id": "j", "dataset_id": "d", "recipe": {}, "base_model": "demo"}
        connection.execute(insert(training_runs).values(**run, created_by="u", created_at=day[2]))
    migrate.upgrade(empty.writer)
    with empty.read() as connection:
        assert connection.execute(select(training_runs.c.manifest_sha256)).scalar_one() == known


def test_datasets_survive_the_column_of_sealed_names_in_both_directions(empty: Database) -> None:
    migrate.upgrade(empty.writer, "0007")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    with empty.write() as connection:
        person = {"id": "u", "name": "u", "role": "admin", "audience": "clinician", "status": "active"}
        connection.execute(insert(users).values(**person, password_hash="x", created_at=at))
        key = {"key_id": "k", "scope": "dataset", "owner_id": "d", "wrapped_key": b"x"}
        connection.execute(insert(data_keys).values(**key, master_key_version=1, created_at=at))
        made = {"name": "d", "state": "ready", "source": "upload", "options": {}, "key_id": "k"}
        row = {**made, "id": "d", "source_name": "a.jsonl", "created_by": "u", "created_at": at}
        connection.execute(insert(datasets).values(row))
    migrate.upgrade(empty.writer)
    names = select(datasets.c.source_name, datasets.c.source_name_ciphertext)
    with empty.write() as connection:
        assert connection.execute(names).one() == ("a.jsonl", None)
        row |= {"id": "sealed", "source_name": "", "source_name_ciphertext": b"x"}
        connection.execute(insert(datasets).values(row))
    migrate.downgrade(empty.writer, "0007")
    with empty.read() as connection:
        kept = select(datasets.c.id, datasets.c.source_name).order_by(datasets.c.id)
        assert connection.execute(kept).all() == [("d", "a.jsonl"), ("sealed", "")]
    migrate.upgrade(empty.writer)
    assert migrate.check(empty.writer)


def test_an_answer_that_was_stored_twice_is_shown_once_and_can_be_no_more(empty: Database) -> None:
    migrate.upgrade(empty.writer, "0005")
    at = datetime(2026, 1, 1, tzinfo=UTC)
    answer = {"conversation_id": "c", "role": "assistant", "parts": [], "ciphertext": b"x", "key_id": "k"}
    with empty.write() as connection:
        person = {"id": "u", "name": "u", "role": "user", "audience": "patient", "status": "active"}
        connection.execute(insert(users).values(**person, password_hash="x", created_at=at))
        key = {"key_id": "k", "scope": "conversation", "owner_id": "c", "wrapped_key": b"x"}
        connection.execute(insert(data_keys).values(**key, master_key_version=1, created_at=at))
        talk = {"id": "c", "user_id": "u", "key_id": "k", "created_at": at, "updated_at": at}
        connection.execute(insert(conversations).values(**talk))
        for seq, job_id in enumerate((None, "j", "j", "other"), start=1):
            row = {"id": f"m{seq}", "seq": seq, "job_id": job_id, "created_at": at, **answer}
            connection.execute(insert(messages).values(row))
    migrate.upgrade(empty.writer)
    shown = select(messages.c.id).where(messages.c.hidden_at.is_(None)).order_by(messages.c.seq)
    with empty.read() as connection:
        assert connection.execute(shown).scalars().all() == ["m1", "m3", "m4"]
        assert len(connection.execute(select(messages)).all()) == 4, "nothing is erased"
    again = {"id": "m5", "seq": 5, "job_id": "j", "created_at": at, **answer}
    with pytest.raises(IntegrityError), empty.write() as connection:
        connection.execute(insert(messages).values(again))


def test_new_events_and_messages_join_their_queues(api: Api) -> None:
    job = ask_async(api.log_in())
    with api.gateway.database.read() as connection:
        assert connection.execute(select(search_pending.c.message_id)).scalars().all() == [job["question_id"]]
        waiting = set(connection.execute(select(audit_pending.c.event_id)).scalars())
        assert waiting == set(connection.execute(select(audit_events.c.id)).scalars())


def test_what_was_logged_before_there_were_seals_waits_for_them(empty: Database) -> None:
    migrate.upgrade(empty.writer, "0008")
    event_id = add_event(empty)
    migrate.upgrade(empty.writer)
    with empty.read() as connection:
        assert connection.execute(select(audit_pending.c.event_id)).scalars().all() == [event_id]


def test_a_rebuilt_table_gets_its_protection_back(empty: Database, dialect: str) -> None:
    migrate.upgrade(empty.writer)
    add_event(empty)
    if dialect == "sqlite":  # what a batch migration does: copy, drop, rename
        with (
            empty.write() as connection,
            Operations(MigrationContext.configure(connection)).batch_alter_table(
                "audit_events", recreate="always"
            ),
        ):
            pass
    else:
        with empty.write() as connection:
            connection.execute(text("DROP TRIGGER audit_events_no_change ON audit_events"))
    migrate.upgrade(empty.writer)
    with pytest.raises(DatabaseError), empty.write() as connection:
        connection.execute(text("DELETE FROM audit_events"))


def test_foreign_keys_and_lists_of_values_are_enforced(database: Database) -> None:
    now = "2026-01-01 00:00:00+00"
    for values in (("nobody's", "queued"), (None, "sleeping")):
        with pytest.raises(IntegrityError), database.write() as connection:
            connection.execute(
                text(
                    "INSERT INTO jobs (id, kind, lane, state, user_id, audience, max_attempts, sampling, "
                    "available_at, created_at) VALUES ('j', 'infer', 'interactive', :state, "
                    "coalesce(:user, 'nobody'), 'patient', 3, '{}', :now, :now)"
                ),
                {"user": values[0], "state": values[1], "now": now},
            )


def test_the_list_of_states_in_the_database_is_the_one_in_the_code() -> None:
    from sqlalchemy import CheckConstraint

    from shared.jobs.lifecycle import State

    table = metadata.tables["jobs"]
    (check,) = [
        each
        for each in table.constraints
        if isinstance(each, CheckConstraint) and "state" in str(each.sqltext)
    ]
    for state in State:
        assert f"'{state.value}'" in str(check.sqltext)


def test_a_process_that_froze_in_a_transaction_keeps_no_lock(databases: Databases) -> None:
    url = databases.make("postgresql")[0]
    frozen, other = connect(url, idle_in_transaction_s=0.2), connect(url)
    event_id = add_event(other)
    lock = select(leases).where(leases.c.name == event_id).with_for_update()
    with other.write() as connection:
        row = {"name": event_id, "holder": "x", "expires_at": DatabaseClock().now(connection)}
        connection.execute(insert(leases).values(row))
    with frozen.writer.connect() as connection:
        connection.execute(lock)
        with other.write() as second:
            second.execute(text("SET LOCAL lock_timeout = '10s'"))
            assert second.execute(lock).one().name == event_id
        with pytest.raises(DBAPIError) as ended:
            connection.execute(lock)
    assert is_away(ended.value)
    with frozen.write() as connection:
        assert connection.execute(lock).one()
    frozen.close()
    other.close()


def test_what_sqlite_has_committed_outlives_a_loss_of_power(tmp_path: Path) -> None:
    """In a program of its own: the tests' databases do without."""
    look = (
        "import sys; from shared.db.engine import connect\n"
        "with connect(sys.argv[1]).write() as connection:\n"
        "    print(*(connection.exec_driver_sql(f'PRAGMA {name}').scalar_one()"
        " for name in ('journal_mode', 'synchronous', 'foreign_keys')))"
    )
    url = f"sqlite:///{tmp_path / 'new.db'}"
    done = subprocess.run([sys.executable, "-c", look, url], capture_output=True, text=True, check=True)
    full = "2"
    assert done.stdout.split() == ["wal", full, "1"]

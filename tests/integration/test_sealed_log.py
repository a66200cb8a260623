"""The sealed log: what is sealed stays provable, and every attack on it is named."""

import base64
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, select, text, update
from sqlalchemy.exc import OperationalError

from shared.audit import checkpoints, record
from shared.audit.checkpoint import Signer
from shared.audit.findings import Report
from shared.audit.proofs import prove_conversation
from shared.audit.sequencer import BATCH, WAITING, Hint, lag, root_at, seal_all, seal_batch, tree_size
from shared.audit.verify import verify
from shared.clock import DatabaseClock
from shared.db.engine import Database, connect
from shared.db.tables import audit_events, audit_seals, data_keys, messages, released_sentences
from shared.db.tables_audit import audit_checkpoints, audit_pending
from shared.errors import LogAltered
from shared.guard.verdict import Action, Category, Side, Verdict
from shared.storage import Storage
from tests.conftest import Databases
from tests.support import Api, FakeClock, ask_async

SECRET = base64.b64encode(bytes(range(32))).decode()
SIGNER = Signer(SECRET)
NOW = datetime(2026, 11, 2, 9, 15, tzinfo=UTC)


def write(database: Database, count: int, action: str = "test.event") -> list[str]:
    with database.write() as connection:
        return [
            record.append(connection, now=NOW, actor=record.SYSTEM_ACTOR, action=action) for _ in range(count)
        ]


def sign(database: Database) -> checkpoints.Signed:
    with database.write() as connection:
        return checkpoints.sign(connection, SIGNER, NOW)


def verified(database: Database, *notes: str) -> Report:
    with database.read() as connection:
        return verify(connection, [("kept", note) for note in notes], SIGNER.verifier)


@pytest.fixture
def log(database: Database) -> Database:
    """A log of 600 sealed events: two whole tiles and a part of one."""
    write(database, 600)
    seal_all(database, DatabaseClock())
    return database


@pytest.fixture
def owner(databases: Databases, dialect: str) -> Iterator[tuple[Database, Database]]:
    """A log as the application and as the owner of the server see it; the second may do anything."""
    url, owner_url = databases.make(dialect)
    application = connect(url)
    everything = connect(owner_url)
    write(application, 600)
    seal_all(application, DatabaseClock())
    yield application, everything
    application.close()
    everything.close()


def change(everything: Database, *statements: str) -> None:
    """What somebody can do who owns the server: take triggers and constraints off first."""
    if everything.dialect == "sqlite":
        with closing(sqlite3.connect(str(everything.writer.url.database))) as connection:
            triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for statement in [*(f"DROP TRIGGER {name}" for (name,) in triggers), *statements]:
                connection.execute(statement)
            connection.commit()
        return
    foreign_key = "ALTER TABLE audit_seals DROP CONSTRAINT fk_audit_seals_event_id_audit_events"
    with everything.write() as connection:
        for table in ("audit_events", "audit_seals", "audit_tiles", "audit_checkpoints"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for statement in [foreign_key, *statements]:
            connection.execute(text(statement))


def test_events_get_gapless_places_in_a_tree_that_verifies(log: Database) -> None:
    with log.read() as connection:
        places = connection.execute(select(audit_seals.c.sequence).order_by(audit_seals.c.sequence))
        assert places.scalars().all() == list(range(600))
        assert not connection.execute(select(audit_pending)).all()
    report = verified(log, sign(log).note)
    assert (report.holds, report.size, report.waiting) == (True, 600, 0)
    assert report.checkpoints == 2, "the one that was kept, and the same in the database"


def test_what_waits_is_counted_and_proves_nothing_yet(log: Database) -> None:
    write(log, 3)
    with log.read() as connection:
        waits = lag(connection, NOW + timedelta(seconds=7))
    assert (waits.waiting, waits.seconds) == (3, 7.0)
    report = verified(log)
    assert (report.holds, report.size, report.waiting) == (True, 600, 3)


def put_event(database: Database, event_id: str) -> None:
    event = {
        "id": event_id,
        "occurred_at": NOW,
        "actor": "system",
        "action": "late",
        "outcome": "done",
        "canonical_bytes": b"{}",
        "schema_version": 1,
    }
    with database.write() as connection:
        connection.execute(audit_events.insert().values(**event))


def test_an_event_that_commits_late_is_sealed_though_its_id_is_older(database: Database) -> None:
    (early,) = write(database, 1)
    late = "00000000-0000-7000-8000-000000000000"
    seal_all(database, DatabaseClock())
    put_event(database, late)
    seal_all(database, DatabaseClock())
    with database.read() as connection:
        sealed = select(audit_seals.c.event_id).order_by(audit_seals.c.sequence)
        assert connection.execute(sealed).scalars().all() == [early, late]


def test_a_clock_that_goes_backwards_changes_nothing(database: Database) -> None:
    clock = FakeClock()
    for _ in range(3):
        write(database, 300)
        seal_all(database, clock)
        clock.advance(-3600)
    assert verified(database, sign(database).note).size == 900


def test_a_batch_reads_no_more_of_the_log_than_itself(databases: Databases) -> None:
    database = connect(databases.make("postgresql")[0])
    write(database, 600)
    seal_all(database, DatabaseClock())
    write(database, BATCH)
    asked = WAITING.params(after="").compile(database.writer, compile_kwargs={"literal_binds": True})
    with database.write() as connection:
        connection.execute(text("SET LOCAL enable_nestloop = off"))  # as it is planned when much waits
        (plan,) = connection.execute(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {asked}")).scalar_one()
    database.close()

    def read(node: dict[str, Any]) -> Iterator[float]:
        yield node["Actual Rows"]
        for part in node.get("Plans", []):
            yield from read(part)

    assert max(read(plan["Plan"])) == BATCH


# -- attacks

EVENT = "(SELECT event_id FROM audit_seals WHERE sequence = {})"
ATTACKS: list[tuple[str, list[str], int | None, str]] = [
    (
        "the sealed bytes are edited",
        [
            f"UPDATE audit_events SET canonical_bytes = (SELECT canonical_bytes FROM audit_events WHERE id = "
            f"{EVENT.format(7)}) WHERE id = {EVENT.format(42)}"
        ],
        42,
        "changed",
    ),
    *(
        (
            f"the column {column} is edited",
            [f"UPDATE audit_events SET {column} = {value} WHERE id = {EVENT.format(42)}"],
            42,
            f"column {column}",
        )
        for column, value in {
            "actor": "'somebody'",
            "session_id": "'x'",
            "action": "'nothing.happened'",
            "object": "'x'",
            "outcome": "'failed'",
            "reason": "'x'",
            "schema_version": "2",
            "occurred_at": "'2020-01-01 00:00:00.000000'",
        }.items()
    ),
    (
        "an event is edited together with its seal",
        [
            f"UPDATE audit_events SET canonical_bytes = (SELECT canonical_bytes FROM audit_events WHERE id = "
            f"{EVENT.format(7)}) WHERE id = {EVENT.format(42)}",
            "UPDATE audit_seals SET leaf_hash = (SELECT leaf_hash FROM audit_seals WHERE sequence = 7) "
            "WHERE sequence = 42",
        ],
        42,
        "tile 0/0",
    ),
    (
        "an entry of the last, unfinished tile is edited together with its seal",
        [
            f"UPDATE audit_events SET canonical_bytes = (SELECT canonical_bytes FROM audit_events WHERE id = "
            f"{EVENT.format(7)}) WHERE id = {EVENT.format(592)}",
            "UPDATE audit_seals SET leaf_hash = (SELECT leaf_hash FROM audit_seals WHERE sequence = 7) "
            "WHERE sequence = 592",
        ],
        None,
        "lies from entry 0 on",
    ),
    (
        "two entries are swapped",
        [
            "UPDATE audit_seals SET sequence = -1 WHERE sequence = 42",
            "UPDATE audit_seals SET sequence = 42 WHERE sequence = 43",
            "UPDATE audit_seals SET sequence = 43 WHERE sequence = -1",
        ],
        42,
        "tile 0/0",
    ),
    (
        "an event is deleted in the middle",
        [f"DELETE FROM audit_events WHERE id = {EVENT.format(42)}"],
        42,
        "deleted",
    ),
    (
        "an event and its seal are deleted",
        [
            f"DELETE FROM audit_events WHERE id = {EVENT.format(42)}",
            "DELETE FROM audit_seals WHERE sequence = 42",
        ],
        42,
        "missing",
    ),
    (
        "the tail is cut",
        [
            "DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_seals WHERE sequence >= 590)",
            "DELETE FROM audit_seals WHERE sequence >= 590",
        ],
        None,
        "its end is missing",
    ),
    (
        "a stream of events is dropped",
        [
            "DELETE FROM audit_events WHERE id IN (SELECT event_id FROM audit_seals WHERE sequence % 3 = 0)",
            "DELETE FROM audit_seals WHERE sequence % 3 = 0",
        ],
        0,
        "missing",
    ),
    (
        "the tree's rows are edited",
        ["UPDATE audit_tiles SET root = (SELECT hashes FROM audit_tiles WHERE number = 1) WHERE number = 0"],
        None,
        "tile 0/0",
    ),
    (
        "a checkpoint of the database is edited",
        ["UPDATE audit_checkpoints SET size = 999"],
        None,
        "does not say what was signed",
    ),
    ("a tile is deleted", ["DELETE FROM audit_tiles WHERE number = 0"], None, "tile 0/0"),
]


@pytest.mark.parametrize(
    ("statements", "entry", "said"), [pytest.param(*each[1:], id=each[0]) for each in ATTACKS]
)
def test_an_attack_by_who_owns_the_server_is_named(
    owner: tuple[Database, Database], statements: list[str], entry: int | None, said: str
) -> None:
    application, everything = owner
    note = sign(application).note
    change(everything, *statements)
    report = verified(application, note)
    assert not report.holds
    named = next(finding for finding in report.findings if said in finding.what)
    if entry is not None:
        assert named.entry == entry
        assert min(each.entry for each in report.findings if each.entry is not None) in (0, entry)


def test_a_log_that_was_written_anew_is_named_by_a_checkpoint_kept_elsewhere(
    owner: tuple[Database, Database],
) -> None:
    application, everything = owner
    note = sign(application).note
    change(
        everything,
        "DELETE FROM audit_tiles",
        "DELETE FROM audit_seals",
        "DELETE FROM audit_checkpoints",
        "DELETE FROM audit_events",
    )
    for event_id in write(application, 600, "another.past"):
        with everything.write() as connection:  # its trigger was dropped too
            connection.execute(text("INSERT INTO audit_pending (event_id) VALUES (:id)"), {"id": event_id})
    seal_all(application, DatabaseClock())
    assert verified(application).holds, "without a checkpoint nobody can tell"
    (finding,) = verified(application, note).findings
    assert (finding.entry, "not those that were signed" in finding.what) == (0, True)


def test_an_event_that_stands_twice_is_named(owner: tuple[Database, Database]) -> None:
    application, everything = owner
    change(
        everything,
        "INSERT INTO audit_events SELECT '00000000-0000-7000-8000-000000000000', occurred_at, actor, "
        "session_id, action, object, outcome, reason, canonical_bytes, schema_version FROM audit_events "
        f"WHERE id = {EVENT.format(5)}",
        "INSERT INTO audit_pending (event_id) VALUES ('00000000-0000-7000-8000-000000000000')",
    )
    seal_all(application, DatabaseClock())
    (finding,) = verified(application).findings
    assert (finding.entry, finding.what) == (600, "the column id was changed")


@pytest.mark.parametrize("queued", [False, True])
def test_an_event_that_never_reaches_the_log_is_named(owner: tuple[Database, Database], queued: bool) -> None:
    application, everything = owner
    (event_id,) = write(application, 1)
    gone = "audit_events WHERE id" if queued else "audit_pending WHERE event_id"
    change(everything, f"DELETE FROM {gone} = '{event_id}'")
    (finding,) = verified(application).findings
    assert finding.event == event_id
    assert ("deleted before it was sealed" if queued else "past the queue") in finding.what


def test_a_log_that_was_altered_is_not_signed(owner: tuple[Database, Database]) -> None:
    application, everything = owner
    sign(application)
    change(everything, "DELETE FROM audit_seals WHERE sequence >= 590")
    with pytest.raises(LogAltered), everything.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW)


def test_a_log_that_is_shorter_than_the_second_place_says_is_not_signed(
    owner: tuple[Database, Database], tmp_path: Path
) -> None:
    application, everything = owner
    place = Storage(str(tmp_path))
    checkpoints.publish(place, sign(application), SIGNER.verifier)
    change(everything, "DELETE FROM audit_checkpoints", "DELETE FROM audit_seals WHERE sequence >= 590")
    kept = checkpoints.newest_kept(place, SIGNER.verifier, 590).newest
    assert kept is not None
    with pytest.raises(LogAltered), everything.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW, kept=kept)


def test_a_checkpoint_of_another_log_is_no_proof(log: Database) -> None:
    other = Signer(base64.b64encode(bytes(32)).decode())
    with log.read() as connection:
        note = other.sign(size=600, root=root_at(connection, 600), now=NOW)
    (finding,) = verified(log, note).findings
    assert "not signed by" in finding.what


def say_restored(database: Database, **details: Any) -> None:
    with database.write() as connection:
        record.append(
            connection,
            now=NOW,
            actor=record.OPERATOR_ACTOR,
            action=checkpoints.RESTORED,
            details={"backup_size": 600, "superseded": [{"size": 900, "root": bytes(32).hex()}], **details},
        )


def test_a_restored_backup_explains_the_checkpoints_that_it_is_older_than(log: Database) -> None:
    lost = SIGNER.sign(size=900, root=bytes(32), now=NOW)
    assert not verified(log, lost).holds
    say_restored(log, statement=SIGNER.sign_restore(600, [(900, bytes(32))]))
    assert not verified(log, lost).holds, "not before it is sealed"
    seal_all(log, DatabaseClock())
    report = verified(log, lost)
    assert (report.holds, report.superseded) == (True, 1)
    assert not verified(log, SIGNER.sign(size=901, root=bytes(32), now=NOW)).holds


@pytest.mark.parametrize("forged", ["nothing", "another's", "a checkpoint"])
def test_a_restore_that_this_log_did_not_sign_explains_nothing(log: Database, forged: str) -> None:
    other = Signer(base64.b64encode(bytes(32)).decode())
    said: dict[str, Any] = {
        "nothing": {},
        "another's": {"statement": other.sign_restore(600, [(900, bytes(32))])},
        "a checkpoint": {"statement": SIGNER.sign(size=900, root=bytes(32), now=NOW)},
    }[forged]
    say_restored(log, **said)
    seal_all(log, DatabaseClock())
    assert not verified(log, SIGNER.sign(size=900, root=bytes(32), now=NOW)).holds
    kept = SIGNER.verifier.read(SIGNER.sign(size=900, root=bytes(32), now=NOW))
    with pytest.raises(LogAltered), log.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW, kept=kept)


def put_kept(place: Storage, size: int, root: bytes) -> None:
    signed = checkpoints.Signed(
        id="x", size=size, root=root, signed_at=NOW, note=SIGNER.sign(size=size, root=root, now=NOW)
    )
    checkpoints.publish(place, signed, SIGNER.verifier)


def test_what_a_restore_excuses_hides_no_other_checkpoint_of_the_second_place(tmp_path: Path) -> None:
    place, excused = Storage(str(tmp_path)), {(300, bytes(32)), (25_000, bytes(32)), (90_000, bytes(32))}
    for size, root in excused:
        put_kept(place, size, root)
    assert checkpoints.newest_kept(place, SIGNER.verifier, 50_000, excused).newest is None
    put_kept(place, 299, b"r" * 32)
    newest = checkpoints.newest_kept(place, SIGNER.verifier, 50_000, excused).newest
    assert newest is not None
    assert newest.size == 299


def put_junk(database: Database, junk: bytes | str) -> None:
    statement = "INSERT INTO audit_events (id, occurred_at, actor, action, outcome, canonical_bytes, "
    values = f"schema_version) VALUES ('e', '{NOW:%Y-%m-%d %H:%M:%S.%f}', 'a', 'x', 'done', :junk, 1)"
    with database.write() as connection:
        connection.execute(text(statement + values), {"junk": junk})
    seal_all(database, DatabaseClock())


@pytest.mark.parametrize("junk", [b"junk", b"{}", b"[]"], ids=["not JSON", "nothing", "a list"])
def test_an_event_that_nobody_can_read_is_named(database: Database, junk: bytes) -> None:
    put_junk(database, junk)
    (finding,) = verified(database).findings
    assert (finding.entry, finding.event, finding.what) == (0, "e", "its event cannot be read")


def test_an_event_of_another_kind_than_bytes_is_named(databases: Databases) -> None:
    database = connect(databases.make("sqlite")[0])  # which keeps what it is given
    put_junk(database, "junk")
    (finding,) = verified(database).findings
    assert (finding.entry, finding.event) == (0, "e")
    database.close()


def test_a_moment_that_is_none_is_named(databases: Databases) -> None:
    database = connect(databases.make("sqlite")[0])
    (event_id,) = write(database, 1)
    seal_all(database, DatabaseClock())
    change(database, "UPDATE audit_events SET occurred_at = 'yesterday'")
    (finding,) = verified(database).findings
    assert (finding.event, finding.what) == (event_id, "the column occurred_at was changed")
    database.close()


def test_a_seal_outside_of_the_log_is_named(owner: tuple[Database, Database]) -> None:
    application, _ = owner
    (event_id,) = write(application, 1)
    with application.write() as connection:  # what the application's role may do
        connection.execute(text("DELETE FROM audit_pending"))
        connection.execute(
            audit_seals.insert().values(sequence=-1, event_id=event_id, leaf_hash=b"x", sealed_at=NOW)
        )
    (finding,) = verified(application).findings
    assert (finding.event, finding.what) == (event_id, "has a seal outside of the log")


def test_sealing_that_is_stood_in_the_way_of_ends_and_says_so(log: Database) -> None:
    with log.write() as connection:
        sealed = connection.execute(select(audit_seals.c.event_id).limit(1)).scalar_one()
        connection.execute(audit_pending.insert().values(event_id=sealed))
    with pytest.raises(LogAltered, match="taken"):
        seal_all(log, DatabaseClock())
    (finding,) = verified(log).findings
    assert (finding.event, "though it has a seal" in finding.what) == (sealed, True)


def test_a_checkpoint_of_the_database_that_is_not_signed_stops_signing(log: Database) -> None:
    with log.write() as connection:
        forged = {"id": "f" * 36, "size": 1, "root": bytes(32), "signed_at": NOW, "note": "junk"}
        connection.execute(audit_checkpoints.insert().values(**forged))
    with pytest.raises(LogAltered), log.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW)
    (finding,) = verified(log).findings
    assert "cannot be used" in finding.what


def test_a_checkpoint_that_a_fast_clock_signed_is_not_the_newest_for_good(log: Database) -> None:
    ahead = sign(log)
    with log.write() as connection:
        rest = {"size": 601, "root": bytes(32), "signed_at": NOW, "note": ahead.note}
        connection.execute(audit_checkpoints.insert().values(id="0" * 36, **rest))
    with log.read() as connection:
        newest = checkpoints.newest(connection)
    assert newest is not None
    assert newest.size == 601
    with pytest.raises(LogAltered, match="what was signed"), log.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW)


def test_two_that_sign_at_once_raise_no_false_alarm(databases: Databases) -> None:
    database = connect(databases.make("postgresql")[0])
    write(database, 1)
    seal_all(database, DatabaseClock())
    sign(database)

    def another(*_: Any) -> None:
        write(database, 1)
        seal_all(database, DatabaseClock())
        sign(database)

    with database.write() as connection:
        event.listen(connection, "after_cursor_execute", another)
        signed = checkpoints.sign(connection, SIGNER, NOW)
    assert signed.size > 1
    assert verified(database, signed.note).holds
    database.close()


# -- faults

KILLED = """
import os, sys
from sqlalchemy import event
from shared.audit.checkpoint import Signer
from shared.audit.sequencer import Hint, lag, root_at, seal_all, seal_batch, tree_size
from shared.audit.verify import verify
from shared.clock import DatabaseClock
from shared.db.engine import connect

def seal(left):
    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), 9)
    with connect(sys.argv[1]).write() as connection:
        event.listen(connection, "before_cursor_execute", count)
        seal_batch(connection, DatabaseClock().now(connection))
        count()

for statements in range(30):
    child = os.fork()
    if child == 0:
        seal(statements)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    database = connect(sys.argv[1])
    with database.read() as connection:
        print(ended, tree_size(connection), verify(connection, [], Signer(sys.argv[2]).verifier).count)
    database.close()
    if ended == 0:
        break
"""


def test_a_sequencer_that_is_killed_between_any_two_writes_leaves_nothing_half_done(
    databases: Databases, dialect: str
) -> None:
    url = databases.make(dialect)[0]
    database = connect(url)
    write(database, 300)
    run = subprocess.run([sys.executable, "-c", KILLED, url, SECRET], stdout=subprocess.PIPE, check=True)
    *killed, whole = run.stdout.decode().splitlines()
    assert len(killed) >= 6
    assert set(killed) == {"-9 0 0"}
    assert whole == "0 256 0"
    seal_all(database, DatabaseClock())
    assert verified(database, sign(database).note).size == 300
    database.close()


def test_two_sequencers_at_once_do_not_fork_the_log(log: Database) -> None:
    write(log, 1500)
    with ThreadPoolExecutor(2) as pool:
        for sealing in [pool.submit(seal_all, log, DatabaseClock()) for _ in range(2)]:
            sealing.result()
    report = verified(log, sign(log).note)
    assert (report.holds, report.size) == (True, 2100)


APPENDS = """
import sys
from datetime import UTC, datetime
from shared.audit import record
from shared.db.engine import connect
from sqlalchemy.exc import OperationalError
database, left = connect(sys.argv[1]), 2000
while left:
    try:
        with database.write() as connection:
            record.append(connection, now=datetime.now(UTC), actor=record.SYSTEM_ACTOR, action="test.event")
    except OperationalError:  # SQLite lets one write at a time: whoever waited too long tries again
        continue
    left -= 1
"""


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def test_eight_processes_that_append_while_it_is_sealed_lose_nothing(
    databases: Databases, dialect: str
) -> None:
    url = databases.make(dialect)[0]
    database, clock = connect(url), DatabaseClock()
    with ExitStack() as ending:
        writers = [
            ending.enter_context(subprocess.Popen([sys.executable, "-c", APPENDS, url])) for _ in range(8)
        ]
        for writer in writers:
            ending.callback(writer.kill)
        for writer in writers:
            while ended_within(writer, 0.25) is None:  # as often as the gateway seals
                with suppress(OperationalError):  # and as it does, who waited too long for SQLite tries again
                    seal_all(database, clock)
    seal_all(database, clock)
    assert [writer.returncode for writer in writers] == [0] * 8
    report = verified(database, sign(database).note)
    assert (report.holds, report.size) == (True, 16_000)
    database.close()


# -- proofs


@pytest.fixture
def proof(api: Api) -> dict[str, Any]:
    """What the log proves of a conversation with one question and its answer."""
    write(api.gateway.database, 700)
    job = ask_async(api.log_in())
    api.answer("Asthma narrows the airways.")
    write(api.gateway.database, 5)
    seal_all(api.gateway.database, api.gateway.clock)
    signed = sign(api.gateway.database)
    with api.gateway.database.read() as connection:
        return prove_conversation(connection, job["conversation_id"], signed, SIGNER.verifier)


def test_a_conversation_is_proved_without_medichat(proof: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "proof.json"
    file.write_text(json.dumps(proof))
    program = Path(checkpoints.__file__).with_name("check_proof.py")
    alone = tmp_path / "check_proof.py"
    alone.write_text(program.read_text())
    run = subprocess.run(
        [sys.executable, "-I", str(alone), str(file), "--key", str(SIGNER.verifier)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        check=True,
    )
    told = run.stdout.decode()
    assert "question.asked" in told
    assert "answer.given" in told
    assert f"Proved: 2 entries on conversation {proof['conversation']}" in told
    alone_with_itself = subprocess.run([sys.executable, "-I", str(alone), str(file)], check=False)
    assert alone_with_itself.returncode == 2, "a key that the proof brings proves nothing"
    file.write_text(json.dumps({**proof, "checkpoint": "x"}))
    assert subprocess.run([sys.executable, "-I", str(alone), str(file)], check=False).returncode == 1


# -- what lies outside of the log


def conversation(api: Api) -> dict[str, Any]:
    """A question and an answer in which the guard stepped in; all of it sealed."""
    job = ask_async(api.log_in())
    claimed = api.claim()
    found = Verdict(side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, source="a.rule")
    api.release(claimed, "Ask a pharmacist.", verdict=found, suppressed="Take twelve.")
    api.finish(claimed)
    seal_all(api.gateway.database, api.gateway.clock)
    assert verified(api.gateway.database).holds
    return job


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (update(messages).values(ciphertext=b"another"), "the text of message"),
        (update(messages).where(messages.c.role == "assistant").values(role="user"), "was put elsewhere"),
        (delete(messages).where(messages.c.role == "assistant"), "was deleted"),
        (update(released_sentences).values(ciphertext=b"another"), "the sentences of the answer"),
        (update(released_sentences).values(suppressed_ciphertext=None), "the sentences of the answer"),
        (update(released_sentences).values(action="allow"), "the sentences of the answer"),
        (update(data_keys).values(wrapped_key=None), "no event says that it was erased"),
        (update(data_keys).values(wrapped_key=None, destroyed_at=NOW), "no event says that it was erased"),
    ],
)
def test_a_change_of_what_the_log_is_bound_to_is_named(api: Api, statement: Any, said: str) -> None:
    conversation(api)
    with api.gateway.database.write() as connection:
        connection.execute(statement)
    findings = verified(api.gateway.database).findings
    assert findings
    assert all(said in finding.what for finding in findings)
    assert all(finding.entry is not None for finding in findings)


def test_an_erased_conversation_leaves_a_log_that_holds(api: Api) -> None:
    person = api.person()
    client = api.client(person)
    job = ask_async(client)
    api.answer("Asthma narrows the airways.")
    erased = client.post(f"/v1/conversations/{job['conversation_id']}/erase")
    assert erased.status_code == 200, erased.text
    seal_all(api.gateway.database, api.gateway.clock)
    assert verified(api.gateway.database, sign(api.gateway.database).note).holds


def test_what_commits_late_is_sealed_though_a_long_queue_is_read_on_from_where_it_was(
    database: Database,
) -> None:
    hint, clock = Hint(), DatabaseClock()
    for number in range(3):
        write(database, 300)
        if number == 1:
            put_event(database, "00000000-0000-7000-8000-000000000000")
        with database.write() as connection:
            assert seal_batch(connection, clock.now(connection), hint) == 256
    while True:
        with database.write() as connection:
            if not seal_batch(connection, clock.now(connection), hint):
                break
    with database.read() as connection:
        assert tree_size(connection) == 901
        assert not connection.execute(select(audit_pending)).all()

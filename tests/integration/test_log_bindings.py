"""What the log is bound to: whatever stands there instead is named, and no kind of it ends a verification."""

import base64
import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.audit import checkpoints, record
from shared.audit.checkpoint import Signer, Verifier
from shared.audit.findings import MOST_FINDINGS, Report
from shared.audit.helper import helping
from shared.audit.sequencer import seal_all
from shared.audit.verify import verify
from shared.audit.verifying import report_json
from shared.auth.roles import Role
from shared.clock import DatabaseClock
from shared.db.engine import Database, connect
from shared.db.tables import audit_events
from shared.guard.verdict import Action, Category, Side, Verdict
from shared.ids import new_id
from tests.conftest import Databases, fresh_settings
from tests.drawn import image
from tests.support import Api, RedisServer, ask_async

SIGNER = Signer(base64.b64encode(bytes(range(32))).decode())
STEPPED_IN = Verdict(side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, source="a.rule")


def answered(api: Api, client: httpx.Client) -> dict[str, Any]:
    """A question and its answer, in which the guard stepped in."""
    asked = ask_async(client)
    job = api.claim()
    api.release(job, "Ask a pharmacist.", verdict=STEPPED_IN, suppressed="Take twelve.")
    api.finish(
        job,
        model_id="demo",
        model_revision="1",
        adapter_sha256="a" * 64,
        prompt_version="p",
        policy_version="q",
        completion_tokens=9,
    )
    return asked


def review(auditor: httpx.Client, job: dict[str, Any]) -> None:
    """A review that is given, taken back, and given anew."""
    item = f"/v1/reviews/{auditor.post('/v1/reviews', json={'job_id': job['id']}).json()['id']}"
    draft = {"verdict": "wrong", "corrected": "Ask a doctor.", "note": "Too vague.", "guard_right": True}
    auditor.put(item, json=draft)
    auditor.post(f"{item}/give")
    auditor.post(f"{item}/take-back")
    auditor.put(item, json={"verdict": "unsafe", "category": "dosing"})
    given = auditor.post(f"{item}/give")
    assert given.status_code == 200, given.text


@pytest.fixture(scope="module")
def told(databases: Databases, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a sealed and signed log of conversations, verdicts and reviews; one event still waits."""
    api = Api(fresh_settings(databases, "sqlite", redis_server, tmp_path_factory.mktemp("log")))
    person, auditor = api.client(api.person()), api.log_in(Role.AUDITOR)
    erased = answered(api, person)
    review(auditor, erased)
    assert person.post(f"/v1/conversations/{erased['conversation_id']}/erase").status_code == 200
    assert person.post("/predict", json={"query": "I want to kill myself"}).status_code == 200
    review(auditor, answered(api, person))
    ask_async(person, "What is this?", images=[image("red"), image("blue", (3, 4))])
    database = api.gateway.database
    write(database, 300)
    seal_all(database, DatabaseClock())
    with database.write() as connection:
        now = api.gateway.clock.now(connection)
        checkpoints.sign(connection, SIGNER, now)
    write(database, 1)
    path = Path(str(database.writer.url.database))
    api.close()
    assert altered(path, tmp_path_factory.mktemp("whole")).holds
    return path


def write(database: Database, count: int) -> None:
    with database.write() as connection:
        now = DatabaseClock().now(connection)
        for _ in range(count):
            record.append(connection, now=now, actor=record.SYSTEM_ACTOR, action="test.event", reason="x")


def changed(path: Path, folder: Path, *statements: str) -> tuple[Path, int]:
    """A copy of the file in which an owner of the server did this; and how many rows the last one changed."""
    copy, count = folder / "log.db", 0
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy)) as connection:
        triggers = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in [*(f"DROP TRIGGER {name}" for (name,) in triggers), *statements]:
            count = connection.execute(statement).rowcount
        connection.commit()
    return copy, count


def altered(path: Path, folder: Path, *statements: str) -> Report:
    copy, _ = changed(path, folder, *statements)
    return verified(copy)


def verified(path: Path, *notes: Any) -> Report:
    database = connect(f"sqlite:///{path}")
    try:
        with database.read() as connection:
            return verify(connection, [("kept", note) for note in notes], SIGNER.verifier)
    finally:
        database.close()


BOUND = {
    "audit_events": (
        *("id", "occurred_at", "actor", "session_id", "action", "object", "outcome", "reason"),
        *("canonical_bytes", "schema_version"),
    ),
    "audit_seals": ("event_id", "leaf_hash"),
    "audit_tiles": ("hashes", "root"),
    "audit_checkpoints": ("note", "size", "root", "signed_at"),
    "audit_pending": ("event_id",),
    "messages": ("ciphertext", "conversation_id", "role", "seq", "parent_id", "job_id", "key_id"),
    "pictures": (
        *("id", "conversation_id", "message_id", "position", "width", "height", "ciphertext", "key_id"),
    ),
    "data_keys": ("wrapped_key", "owner_id"),
    "jobs": (
        *("model_id", "model_revision", "adapter_sha256", "prompt_version", "policy_version"),
        *("completion_tokens", "attempt", "question_id"),
    ),
    "released_sentences": ("seq", "action", "ciphertext", "suppressed_ciphertext", "verdict_id"),
    "verdicts": (
        *("job_id", "action", "severity", "category", "layer", "source", "score", "policy_version"),
    ),
    "reviews": ("verdict", "category", "guard_right", "corrected_ciphertext", "note_ciphertext", "salt"),
}
VALUES = ("'junk'", "CAST(x'ff00fe' AS TEXT)", "x'00ff'", "7", "NULL")


@pytest.mark.parametrize(("table", "column"), [(table, each) for table in BOUND for each in BOUND[table]])
def test_whatever_stands_in_a_column_that_the_log_is_bound_to_is_named(
    told: Path, tmp_path: Path, table: str, column: str
) -> None:
    tried = 0
    for value in VALUES:
        where = f"{column} IS NOT {value}" + (" AND scope = 'conversation'" if table == "data_keys" else "")
        # what the schema itself refuses stays as it is
        copy, count = changed(
            told, tmp_path, f"UPDATE OR IGNORE {table} SET {column} = {value} WHERE {where}"
        )
        if count:
            report = verified(copy)
            assert not report.holds, value
            assert json.loads(json.dumps(report_json(report)))["findings"]
            tried += 1
    assert tried >= 3


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE messages SET ciphertext = ciphertext || x'00'", "the text of message"),
        ("UPDATE messages SET seq = seq + 10", "was put elsewhere"),
        ("UPDATE messages SET job_id = NULL", "was put elsewhere"),
        ("UPDATE data_keys SET wrapped_key = x'00' WHERE scope = 'conversation'", "no event says"),
        ("UPDATE data_keys SET owner_id = key_id WHERE scope = 'conversation'", "was given another key"),
        (
            "UPDATE verdicts SET category = 'dosing' WHERE category = 'crisis'",
            "the category of verdict",
        ),
        ("UPDATE pictures SET ciphertext = ciphertext || x'00'", "the pictures of message"),
        ("UPDATE pictures SET position = 9 - position", "the pictures of message"),
        ("DELETE FROM pictures WHERE position = 2", "the pictures of message"),
        ("DELETE FROM pictures", "the pictures of message"),
        (
            """UPDATE messages SET parts = '[{"type": "text"}]' WHERE parts LIKE '%image%'""",
            "the pictures of message",
        ),
        (
            "INSERT INTO pictures SELECT 'new', conversation_id, (SELECT min(id) FROM messages), "
            "position, width, height, ciphertext, key_id, created_at FROM pictures LIMIT 1",
            "the pictures of message",
        ),
        ("UPDATE verdicts SET severity = 'none', score = 0.1 WHERE category = 'crisis'", "of verdict"),
        ("DELETE FROM verdicts WHERE category = 'crisis'", "was deleted"),
        ("UPDATE jobs SET model_id = 'another'", "the model of job"),
        ("UPDATE jobs SET adapter_sha256 = NULL", "the adapter of job"),
        ("UPDATE reviews SET verdict = 'safe', category = NULL", "the review"),
        ("UPDATE reviews SET note_ciphertext = NULL", "the review"),
        ("UPDATE reviews SET given_at = NULL", "the review"),
        ("DELETE FROM reviews", "the review"),
    ],
)
def test_a_change_of_what_an_event_speaks_of_is_named_with_its_entry(
    told: Path, tmp_path: Path, statement: str, said: str
) -> None:
    report = altered(told, tmp_path, statement)
    assert report.findings
    assert all(said in finding.what for finding in report.findings)
    assert all(finding.entry is not None for finding in report.findings)


@pytest.fixture(scope="module")
def given(databases: Databases, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a sealed log of one question that came with what was said before it."""
    api = Api(fresh_settings(databases, "sqlite", redis_server, tmp_path_factory.mktemp("given")))
    said = [("user", "What is asthma?"), ("assistant", "Harmless."), ("user", "And what is pneumonia?")]
    messages: list[Any] = [{"role": role, "content": content} for role, content in said]
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image()}"}}
    messages[0]["content"] = [{"type": "text", "text": "What is asthma?"}, shown]
    body = {"model": "demo", "messages": messages}
    with ThreadPoolExecutor() as elsewhere:
        asked = elsewhere.submit(api.log_in().post, "/v1/chat/completions", json=body)
        api.answer("See a doctor.")
        assert asked.result().status_code == 200, asked.result().text
    seal_all(api.gateway.database, DatabaseClock())
    path = Path(str(api.gateway.database.writer.url.database))
    api.close()
    assert altered(path, tmp_path_factory.mktemp("whole")).holds
    return path


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE messages SET ciphertext = ciphertext || x'00' WHERE seq = 2",
        "UPDATE messages SET role = 'user' WHERE seq = 2",
        'UPDATE messages SET parts = \'[{"type": "text"}]\' WHERE seq = 2',
        "UPDATE messages SET job_id = id WHERE seq = 2",
        "UPDATE messages SET parent_id = NULL WHERE seq = 2",
        "UPDATE messages SET seq = 9 WHERE seq = 1",
        "DELETE FROM messages WHERE seq = 2",
        "UPDATE pictures SET ciphertext = ciphertext || x'00'",
        "DELETE FROM pictures",
    ],
)
def test_a_change_of_what_was_sent_with_a_question_is_named(
    given: Path, tmp_path: Path, statement: str
) -> None:
    (finding,) = altered(given, tmp_path, statement).findings
    assert "what was sent with the question" in finding.what
    assert finding.entry is not None


def test_a_second_event_does_not_cover_what_the_first_one_says(told: Path, tmp_path: Path) -> None:
    copy, _ = changed(told, tmp_path)
    database = connect(f"sqlite:///{copy}")
    with database.write() as connection:
        first = connection.execute(audit_events.select().where(audit_events.c.action == "question.asked"))
        event = first.first()
        assert event is not None
        said = json.loads(event.canonical_bytes)["details"]
        connection.exec_driver_sql("UPDATE messages SET ciphertext = x'61' WHERE id = ?", (said["message"],))
        new = {
            **said,
            "ciphertext_sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        }
        event_id = record.append(
            connection,
            now=DatabaseClock().now(connection),
            actor=record.Actor(event.actor),
            action="question.asked",
            object=event.object,
            details=new,
        )
        connection.exec_driver_sql("INSERT INTO audit_pending VALUES (?)", (event_id,))  # no trigger is left
    seal_all(database, DatabaseClock())
    database.close()
    (finding,) = verified(copy).findings
    assert (finding.event, "the text of message" in finding.what) == (event.id, True)


@pytest.mark.parametrize(
    ("action", "details"),
    [
        ("question.asked", {"message": "\x00", "conversation": "x", "ciphertext_sha256": "x"}),
        ("question.asked", {"message": "m" * 70_000, "conversation": "x", "ciphertext_sha256": "x"}),
        ("question.asked", {"message": "m", "ciphertext_sha256": "x"}),
        ("question.asked", {"message": "m", "conversation": ["x"], "ciphertext_sha256": "x"}),
        ("review.given", {"item": "i", "commitment": "x"}),
        ("review.given", {"item": "i", "commitment": "x", "texts_commitment": "x", "conversation": "\x00"}),
    ],
)
def test_an_event_that_names_no_row_is_named(
    told: Path, tmp_path: Path, action: str, details: dict[str, Any]
) -> None:
    copy, event_id = appended(told, tmp_path, action, details)
    (finding,) = verified(copy).findings
    assert (finding.event, finding.what) == (event_id, "its event cannot be read")


def test_what_nobody_can_read_ends_no_verification_and_no_signing(told: Path, tmp_path: Path) -> None:
    copy, event_id = appended(told, tmp_path, "backup.restored", {}, canonical=b"[" * 100_000)
    (finding,) = verified(copy).findings
    assert (finding.event, finding.what) == (event_id, "its event cannot be read")
    with closing(connect(f"sqlite:///{copy}")) as database, database.read() as connection:
        assert checkpoints.superseded(connection, SIGNER.verifier) == set()


def appended(
    path: Path, folder: Path, action: str, details: dict[str, Any], canonical: bytes | None = None
) -> tuple[Path, str]:
    """A copy of the file with one more sealed event, and the event's id."""
    copy, _ = changed(path, folder)
    with closing(connect(f"sqlite:///{copy}")) as database:
        with database.write() as connection:
            event_id = record.append(
                connection,
                now=DatabaseClock().now(connection),
                actor=record.SYSTEM_ACTOR,
                action=action,
                object=f"job:{new_id()}",
                details=details,
            )
            if canonical is not None:
                statement = "UPDATE audit_events SET canonical_bytes = ? WHERE id = ?"
                connection.exec_driver_sql(statement, (canonical, event_id))
            connection.exec_driver_sql("INSERT INTO audit_pending VALUES (?)", (event_id,))
        seal_all(database, DatabaseClock())
    return copy, event_id


def test_a_review_that_is_taken_back_is_not_called_changed_while_that_waits_to_be_sealed(
    told: Path, tmp_path: Path
) -> None:
    copy, _ = changed(
        told,
        tmp_path,
        "UPDATE reviews SET given_at = NULL, salt = NULL WHERE verdict = 'unsafe' AND salt NOT NULL",
    )
    assert not verified(copy).holds
    with closing(connect(f"sqlite:///{copy}")) as database, database.write() as connection:
        given = audit_events.select().where(audit_events.c.action == "review.given")
        for event in connection.execute(given).all():
            event_id = record.append(
                connection,
                now=DatabaseClock().now(connection),
                actor=record.Actor(event.actor),
                action="review.taken_back",
                object=event.object,
            )
            connection.exec_driver_sql("INSERT INTO audit_pending VALUES (?)", (event_id,))
    assert verified(copy).holds


def test_findings_are_told_in_the_order_of_the_log(told: Path, tmp_path: Path) -> None:
    report = altered(
        told,
        tmp_path,
        "UPDATE audit_events SET actor = 'x' WHERE reason = 'x'",
        "UPDATE messages SET ciphertext = x'00'",
        "UPDATE audit_checkpoints SET root = x'00'",
    )
    entries = [finding.entry for finding in report.findings]
    assert len(entries) == MOST_FINDINGS < report.count
    assert entries == sorted(each for each in entries if each is not None)
    assert sum("the text of message" in finding.what for finding in report.findings) == 7
    assert "the text of message" in report.findings[0].what


def test_a_helper_finds_the_same_in_the_same_order(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, _ = changed(
        told,
        tmp_path,
        "UPDATE audit_events SET canonical_bytes = x'00' WHERE id = (SELECT max(id) FROM audit_events)",
        "UPDATE messages SET ciphertext = x'00' WHERE role = 'assistant'",
        "UPDATE jobs SET model_id = CAST(x'ff00fe' AS TEXT)",
        "UPDATE audit_seals SET event_id = CAST(x'ff00fe' AS TEXT) WHERE sequence = 2",
        "UPDATE audit_seals SET leaf_hash = x'00' WHERE sequence IN (4, 18)",
        "DELETE FROM audit_seals WHERE sequence BETWEEN 9 AND 11",
        "UPDATE audit_tiles SET hashes = x'00'",
    )
    monkeypatch.setattr("shared.audit.findings.MOST_FINDINGS", 1000)
    with (
        closing(connect(f"sqlite:///{copy}")) as database,
        helping(database) as helper,
        database.read() as connection,
    ):
        report = verify(connection, [], SIGNER.verifier, helper=helper, page_size=5)
    assert report_json(report) == report_json(verified(copy))
    assert report.count == len(report.findings) > 10


class Counting(Verifier):
    """Counts what it checks."""

    read_so_far = 0

    def read(self, note: str) -> Any:
        self.read_so_far += 1
        return super().read(note)


def test_a_checkpoint_that_both_places_hold_is_checked_once_and_counted_twice(told: Path) -> None:
    database = connect(f"sqlite:///{told}")
    with database.read() as connection:
        note = connection.exec_driver_sql("SELECT note FROM audit_checkpoints").scalar_one()
        counting, pages = Counting.from_text(str(SIGNER.verifier)), list[int]()
        report = verify(connection, [("kept", note)] * 1200, counting, pages.append)
    database.close()
    assert isinstance(counting, Counting)
    assert (report.holds, report.checkpoints, counting.read_so_far) == (True, 1201, 1)
    assert pages[:2] == [0, 0], "it is told while checkpoints are read"


@pytest.mark.parametrize("note", [b"\xff", "", "\udcff\n\n\udcff\n", None])
def test_a_kept_checkpoint_that_is_no_text_is_named(told: Path, note: Any) -> None:
    (finding,) = verified(told, note).findings
    assert finding.what.startswith("kept cannot be used")

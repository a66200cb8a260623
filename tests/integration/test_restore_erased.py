"""A backup that is older than an erasure does not bring back what was erased, and the log goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select

from services import cli
from services.api.signing import sign_now
from shared.audit import checkpoints
from shared.audit.sequencer import seal_all
from shared.audit.verify import verify
from shared.auth.roles import Role
from shared.db.tables import conversations, feedback, jobs, users, verdicts
from shared.db.tables_privacy import (
    access_grants,
    dataset_conversations,
    legal_holds,
    search_pending,
    search_terms,
)
from shared.db.tables_review import reviews, saved_views
from shared.db.tables_training import datasets
from shared.guard.verdict import Action, Category, Severity, Side, Verdict
from shared.jobs.lifecycle import State
from shared.privacy.search_index import index_waiting
from tests.conftest import DIALECTS, Databases, MakeApi
from tests.support import Api, ask_async, wait_until
from tests.uploads import check, uploaded

ERASE = "/v1/conversations/{}/erase"
REPLACED = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    severity=Severity.HIGH,
    category=Category.DOSING,
    layer="rules",
    source="a rule",
)
Restore = Callable[[], Api]


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Where it is restored to; what is erased again with other SQL says that it runs on both."""
    return str(request.param)


both = pytest.mark.parametrize("dialect", DIALECTS, indirect=True)


@pytest.fixture
def api(make_api: MakeApi, databases: Databases) -> Api:
    """The installation that is backed up; its maintenance did its first round and rests."""
    url, owner_url = databases.make("sqlite")
    made = make_api(database_url=url, database_owner_url=owner_url, reconcile_s=600)
    made.wait_for_maintenance()
    return made


def commands_on(api: Api, patch: pytest.MonkeyPatch, url: str, owner_url: str) -> None:
    patch.setenv("MEDICHAT_STATE_DIR", str(api.settings.state_dir))
    patch.setenv("MEDICHAT_DATABASE_URL", url)
    patch.setenv("MEDICHAT_DATABASE_OWNER_URL", owner_url)
    patch.setenv("MEDICHAT_AUDIT_KEY", api.settings.secret("audit_key"))


@pytest.fixture
def back_up(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Take the backup, with the storage."""

    def take() -> None:
        commands_on(api, monkeypatch, api.settings.database_url, api.settings.database_owner_url)
        assert cli.main(["backup", str(tmp_path / "backup.tar"), "--with-storage"]) == 0

    return take


@pytest.fixture
def restore(
    api: Api,
    make_api: MakeApi,
    databases: Databases,
    dialect: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Restore:
    """Bring the backup into another database, without the master key at hand, and serve that."""

    def bring() -> Api:
        api.close()
        url, owner_url = databases.make(dialect)
        commands_on(api, monkeypatch, url, owner_url)
        assert cli.main(["restore", str(tmp_path / "backup.tar")]) == 0
        secrets = {name: api.settings.secret(name) for name in ("master_key", "audit_key")}
        return make_api(database_url=url, database_owner_url=owner_url, reconcile_s=600, **secrets)

    return bring


def rows_of(api: Api, table: Any, *conditions: Any) -> list[Any]:
    with api.gateway.database.read() as connection:
        return list(connection.execute(select(table).where(*conditions)).all())


def talk(api: Api, client: httpx.Client, question: str) -> str:
    """The id of a conversation in which the guard stepped in."""
    headers = {"Prefer": "respond-async", "Idempotency-Key": question[:20]}
    asked = client.post("/predict", json={"query": question}, headers=headers).json()
    job = api.claim()
    api.release(job, "Ask a doctor.", verdict=REPLACED, suppressed="Take it all.")
    api.finish(job)
    return str(asked["conversation_id"])


def leave_traces(api: Api, client: httpx.Client, conversation: str) -> None:
    """A rating, a review with texts and an access in an emergency."""
    answer = client.get(f"/v1/conversations/{conversation}").json()["messages"][-1]
    rated = {"rating": "down", "comment": "It scared me."}
    client.put(f"/v1/messages/{answer['id']}/feedback", json=rated).raise_for_status()
    (job,) = rows_of(api, jobs, jobs.c.conversation_id == conversation)
    auditor = api.log_in(Role.AUDITOR)
    item = auditor.post("/v1/reviews", json={"job_id": job.id}).json()["id"]
    auditor.post("/v1/reviews/next").raise_for_status()
    draft = {"verdict": "wrong", "corrected": "Better.", "note": "A note."}
    auditor.put(f"/v1/reviews/{item}", json=draft).raise_for_status()
    reason = {"conversation_id": conversation, "reason": "She is missing.", "minutes": 30}
    api.log_in(Role.ADMIN).post("/v1/break-glass", json=reason).raise_for_status()


def index(api: Api) -> None:
    gateway = api.gateway
    index_waiting(gateway.database, gateway.envelope, gateway.clock)


def found(api: Api, word: str) -> list[str]:
    answer = api.log_in(Role.AUDITOR).post("/v1/audit/conversations/search", json={"words": word})
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


@both
def test_a_conversation_that_was_erased_since_comes_back_erased(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    person = api.person()
    client = api.client(person)
    lost, kept = talk(api, client, "Hedwig takes warfarin"), talk(api, client, "Warfarin again")
    leave_traces(api, client, lost)
    index(api)
    back_up()
    client.post(ERASE.format(lost)).raise_for_status()
    restored = restore()
    own = restored.client(person)
    assert own.get(f"/v1/conversations/{lost}").status_code == 404
    assert [each["id"] for each in own.get("/v1/conversations").json()["items"]] == [kept]
    assert (found(restored, "hedwig"), found(restored, "warfarin")) == ([], [kept])
    seen = restored.log_in(Role.AUDITOR).get(f"/v1/audit/conversations/{lost}").json()
    assert (seen["erased"], seen["turns"][0]["text"]) == (True, None)
    (row,) = rows_of(restored, conversations, conversations.c.id == lost)
    assert (row.retention_class, row.title_ciphertext) == ("erased", None)
    (job,) = rows_of(restored, jobs, jobs.c.conversation_id == lost)
    assert (job.idempotency_key, job.request_hmac) == (None, None)
    assert {each.span_hmac for each in rows_of(restored, verdicts, verdicts.c.job_id == job.id)} == {None}
    assert not restored.count(search_terms, search_terms.c.conversation_id == lost)
    assert not restored.count(feedback)
    (review,) = rows_of(restored, reviews)
    assert (review.corrected_ciphertext, review.note_ciphertext) == (None, None)
    (grant,) = rows_of(restored, access_grants)
    assert grant.reason_ciphertext == b""
    (event,) = restored.audit("conversation.erased")
    assert (event.actor, event.reason) == ("operator", "restored")


def test_a_dataset_of_an_erased_conversation_comes_back_withdrawn_and_without_files(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    client, admin = api.log_in(), api.log_in(Role.ADMIN)
    conversation = talk(api, client, "Is it gout?")
    dataset, other = uploaded(admin), uploaded(admin)
    check(api)
    with api.gateway.database.write() as connection:
        row = {"dataset_id": dataset, "conversation_id": conversation}
        connection.execute(insert(dataset_conversations).values(**row))
    back_up()
    client.post(ERASE.format(conversation)).raise_for_status()
    restored = restore()
    (row,) = rows_of(restored, datasets, datasets.c.id == dataset)
    assert (row.error, row.report_ciphertext, row.source_name_ciphertext) == ("withdrawn", None, None)
    assert not restored.gateway.datasets.storage.list(f"datasets/{dataset}")
    assert restored.gateway.datasets.storage.list(f"datasets/{other}")


@both
def test_a_person_who_was_erased_since_comes_back_without_a_name(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    admin, silent, talker = api.log_in(Role.ADMIN), api.person(Role.AUDITOR), api.person()
    view = {"name": "Hedwig", "filters": {"words": "warfarin"}}
    api.client(silent).post("/v1/audit/views", json=view).raise_for_status()
    api.log_in(Role.AUDITOR)
    conversation = talk(api, api.client(talker), "Is it gout?")
    hold = {"subject": f"user:{talker.id}", "reference": "C-17"}
    held = admin.post("/v1/holds", json=hold)
    assert held.status_code == 201, held.text
    back_up()
    admin.post(f"/v1/holds/{held.json()['id']}/lift").raise_for_status()
    for person in (silent, talker):
        erased = admin.post(f"/v1/users/{person.id}/erase", json={"name": person.name})
        assert erased.status_code == 200, erased.text
    restored = restore()
    names = {row.id: row.name for row in rows_of(restored, users)}
    for person in (silent, talker):
        assert names[person.id].startswith("erased-")
        assert person.name not in names.values()
    assert not restored.count(saved_views)
    (row,) = rows_of(restored, conversations, conversations.c.id == conversation)
    assert row.retention_class == "erased"
    assert [event.reason for event in restored.audit("user.erased")] == ["restored", "restored"]


@both
def test_a_hold_that_was_placed_since_is_there_again_and_one_that_was_lifted_is_not(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    person, other, known = api.person(), api.person(), api.person(Role.ADMIN)
    (held,) = api.write_history(person, ["Is it gout?"])
    (free,) = api.write_history(other, ["Is it flu?"])
    back_up()
    later, admin = api.person(Role.ADMIN), api.log_in(Role.ADMIN)  # not in the backup
    lifted = place(admin, f"conversation:{free}")
    admin.post(f"/v1/holds/{lifted}/lift").raise_for_status()
    on_person = place(api.client(later), f"user:{other.id}")
    on_talk = place(api.client(later), f"conversation:{held}")
    place(admin, f"user:{later.id}")  # of whom nothing comes back
    restored = restore()
    holds = {row.id: row.placed_by for row in rows_of(restored, legal_holds)}
    assert holds == {on_person: known.id, on_talk: known.id}
    assert all(row.legal_hold for row in rows_of(restored, conversations))
    assert restored.client(person).post(ERASE.format(held)).status_code == 409
    events = [json.loads(event.canonical_bytes) for event in restored.audit("hold.placed")]
    assert [(each["actor"], each["reason"]) for each in events] == [("operator", "restored")] * 2
    assert {each["details"]["placed_by"] for each in events} == {later.id}
    (word,) = restored.audit("backup.restored")
    assert json.loads(word.canonical_bytes)["details"]["held_again"] == 2


def place(client: httpx.Client, subject: str) -> str:
    """The id of a hold."""
    placed = client.post("/v1/holds", json={"subject": subject, "reference": "2026-C-17"})
    assert placed.status_code == 201, placed.text
    return str(placed.json()["id"])


def test_a_question_that_waited_at_the_backup_and_was_erased_since_is_not_answered(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    client = api.log_in()
    asked = ask_async(client)
    back_up()
    client.post(ERASE.format(asked["conversation_id"])).raise_for_status()
    restored = restore()
    (job,) = rows_of(restored, jobs)
    assert State(job.state) is State.CANCELLED


@both
def test_the_log_verifies_with_checkpoints_from_before_and_after_the_backup_and_goes_on(
    api: Api, back_up: Callable[[], None], restore: Restore
) -> None:
    client = api.log_in()
    erased = talk(api, client, "Hedwig takes warfarin")
    sign(api)
    ask_async(client, "Is quetiapine safe?")  # neither sealed nor indexed at the backup
    back_up()
    api.answer("It depends.")
    sign(api)
    client.post(ERASE.format(erased)).raise_for_status()
    sign(api)
    restored = restore()
    wait_until(lambda: not restored.count(search_pending), 20, "for the index")
    assert len(found(restored, "quetiapine")) == 1
    before = verified(restored)
    assert not before.holds, "until its word on the restore is sealed, it is a log that was cut"
    assert before.waiting
    sign(restored)
    after = verified(restored)
    assert (after.findings, after.checkpoints, after.superseded, after.waiting) == ([], 4, 2, 0)
    assert after.size > before.size


def sign(api: Api) -> None:
    """Seal what waits, and keep a checkpoint in both places."""
    seal_all(api.gateway.database, api.gateway.clock)
    sign_now(api.gateway)


def verified(api: Api) -> Any:
    gateway = api.gateway
    with gateway.database.read() as connection:
        kept = checkpoints.kept(gateway.checkpoints)
        return verify(connection, list(kept), gateway.signer.verifier)

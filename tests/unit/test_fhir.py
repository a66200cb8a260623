"""Events of the log as AuditEvent of FHIR R4: what the standard requires, and that no text is in them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from fhir.resources.R4B.auditevent import AuditEvent

from shared.audit.fhir import audit_event
from shared.ids import new_id

PERSON, JOB, CONVERSATION, MESSAGE, SESSION = (new_id() for _ in range(5))
SHA256 = "ab" * 32


def event(action: str, **given: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "occurred_at": datetime(2026, 11, 2, 9, 15, 7, 500_000, tzinfo=UTC),
        "actor": PERSON,
        "actor_name": "nurse.kim",
        "session_id": SESSION,
        "action": action,
        "object": None,
        "outcome": "done",
        "reason": None,
        "details": {},
        **given,
    }


ANSWER = event(
    "answer.given",
    actor="system",
    object=f"job:{JOB}",
    details={
        "conversation": CONVERSATION,
        "message": MESSAGE,
        "ciphertext_sha256": SHA256,
        "commitment": SHA256,
        "model": "demo",
        "model_revision": "1",
        "adapter": SHA256,
        "attempt": 1,
    },
)
ALL = [
    ANSWER,
    event("question.asked", object=f"job:{JOB}", details={"conversation": CONVERSATION}),
    event("session.refused", actor="anonymous", outcome="denied", reason="wrong password"),
    event("access.denied", object=f"conversation:{CONVERSATION}", outcome="denied"),
    event("answer.failed", actor="system", object=f"job:{JOB}", outcome="failed", reason="out-of-memory"),
    event("user.changed", object=f"user:{PERSON}", details={"role": "admin"}),
    event("log.exported", details={"what": "events"}),
    event("adapter.promoted", object=f"adapter:{SHA256}"),
    event("conversation.hidden", object=f"conversation:{CONVERSATION}"),
    event("maintenance.ended", actor="operator"),
]


def exported(one: dict[str, Any]) -> dict[str, Any]:
    made = audit_event(one, asked_by=PERSON, observer="https://medichat.example")
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


@pytest.mark.parametrize("one", ALL, ids=lambda one: one["action"])
def test_an_event_is_a_valid_audit_event(one: dict[str, Any]) -> None:
    """R4B's AuditEvent is R4's; what R4 requires is looked at one by one as well."""
    resource = exported(one)
    AuditEvent.model_validate(resource)
    assert resource["resourceType"] == "AuditEvent"
    assert set(resource["type"]) == {"system", "code", "display"}
    assert datetime.fromisoformat(resource["recorded"]) == one["occurred_at"]
    assert resource["source"]["observer"]["identifier"]["value"] == "https://medichat.example"
    assert resource["agent"]
    assert [agent["requestor"] for agent in resource["agent"]].count(True) == 1
    assert resource["action"] in "CRUDE"
    assert resource["subtype"][0]["code"] == one["action"]
    for entity in resource.get("entity", []):
        assert not {"name", "query"} <= set(entity)  # sev-1
        assert all("valueString" in detail and "type" in detail for detail in entity.get("detail", []))


def test_outcomes_are_success_minor_and_serious_failure() -> None:
    codes = [
        exported(event("question.asked", outcome=how))["outcome"] for how in ("done", "denied", "failed")
    ]
    assert codes == ["0", "4", "8"]


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("question.asked", "C"),
        ("audit.read", "R"),
        ("dataset.rows_read", "R"),
        ("conversation.renamed", "U"),
        ("user.password_set", "U"),
        ("feedback.taken_back", "D"),
        ("guard.stepped_in", "E"),
    ],
)
def test_what_was_done_is_create_read_update_delete_or_execute(action: str, code: str) -> None:
    assert exported(event(action))["action"] == code


def test_an_answer_names_who_asked_and_the_model_and_adapter_that_wrote_it() -> None:
    agents = exported(ANSWER)["agent"]
    named = [(each["who"]["identifier"]["value"], each["requestor"]) for each in agents]
    assert named == [(PERSON, True), ("system", False), ("demo", False), (SHA256, False)]


def test_an_answer_is_labelled_as_asserted_by_a_machine() -> None:
    labelled = [
        entity["what"]["identifier"]["value"]
        for entity in exported(ANSWER)["entity"]
        if any(label["code"] == "AIAST" for label in entity.get("securityLabel", []))
    ]
    assert labelled == [MESSAGE]


def test_it_points_at_the_conversation_and_what_became_of_it() -> None:
    hidden = exported(event("conversation.hidden", object=f"conversation:{CONVERSATION}"))["entity"]
    assert [entity["what"]["identifier"]["value"] for entity in hidden] == [CONVERSATION]
    assert hidden[0]["lifecycle"]["code"] == "14"


def test_of_details_only_ids_and_hashes_are_taken_over_and_no_name() -> None:
    one = event(
        "adapter.recalled",
        object=f"adapter:{SHA256}",
        reason="Doctor Huber found wrong doses",
        details={"note": "Maria Huber", "run": JOB, "count": 3},
    )
    written = json.dumps(exported(one))
    assert "Huber" not in written
    assert "nurse.kim" not in written
    assert JOB in written

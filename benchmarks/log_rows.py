"""Fills a log as the product does: questions and answers with their stored texts, and what else happens.

Texts are random bytes of the size of a ciphertext: whoever verifies a log hashes them, and reads none. It
measures nothing.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from shared.audit import record
from shared.audit.binding import bind_verdict, digest_sentences, digest_text
from shared.auth.roles import AccountStatus, Role
from shared.db.engine import Database
from shared.db.rows import Into, Rows, put
from shared.db.tables import (
    conversations,
    data_keys,
    jobs,
    messages,
    released_sentences,
    users,
    verdicts,
)
from shared.guard.verdict import Action, Audience, Category, Severity, Side, Verdict
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane, State
from shared.privacy.envelope import WRAPPED_BYTES

#: Of a question's text, an answer's, and a sentence's, with nonce and tag.
_QUESTION_BYTES, _ANSWER_BYTES, _SENTENCE_BYTES = 150, 650, 240
_SENTENCES, _TURNS = 3, 4
#: In one of so many answers the guard steps in.
_STEPS_IN = 8
_STEPPED_IN = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    category=Category.DOSING,
    severity=Severity.HIGH,
    source="dosing.as_much_as_you_like",
    score=0.93,
)
_VERSIONS = {
    "model_id": "google/medgemma-4b-it",
    "model_revision": "1" * 40,
    "adapter_sha256": "a" * 64,
    "prompt_version": "0123456789ab",
    "policy_version": "ba9876543210",
}
#: What happens beside a question and its answer.
_OTHERS = ("session.refreshed", "conversation.read", "conversations.listed", "feedback.given")
#: Questions of a transaction.
_TOGETHER = 200


def append(database: Database, count: int, *, bound_only: bool = False) -> None:
    """At least `count` events; `bound_only`: nothing but such as are bound to texts."""
    written, asked = 0, 0
    while written < count:
        rows = Rows()
        person = _person(rows)
        for _ in range(_TOGETHER // _TURNS):
            written += _conversation(rows, person, asked, bound_only=bound_only)
            asked += _TURNS
        with database.write() as connection:
            rows.store(connection)


def event(
    into: Into, action: str = "question.asked", about: str = "", details: dict[str, Any] | None = None
) -> None:
    """One event of the size that a question's has; `details` give it others than ids."""
    record.append(
        into,
        now=datetime.now(UTC),
        actor=record.Actor(new_id(), new_id()),
        action=action,
        object=about or f"job:{new_id()}",
        details=details or {"conversation": new_id(), "commitment": "0" * 64, "adapter": None},
    )


def _person(rows: Rows) -> str:
    person = new_id()
    row = {
        "id": person,
        "name": person,
        "role": Role.USER,
        "audience": Audience.PATIENT,
        "status": AccountStatus.ACTIVE,
        "password_hash": "",
        "created_at": datetime.now(UTC),
    }
    put(rows, users, row)
    return person


def _conversation(rows: Rows, person: str, asked: int, *, bound_only: bool) -> int:
    """A conversation of some turns; returns how many events that is."""
    now, key, conversation = datetime.now(UTC), new_id(), new_id()
    wrapped = os.urandom(WRAPPED_BYTES)
    row: dict[str, Any] = {
        "key_id": key,
        "scope": "conversation",
        "owner_id": conversation,
        "created_at": now,
    }
    put(rows, data_keys, {**row, "wrapped_key": wrapped, "master_key_version": 1})
    row = {"id": conversation, "user_id": person, "key_id": key, "created_at": now, "updated_at": now}
    put(rows, conversations, {**row, "message_count": 2 * _TURNS})
    events = 0
    for turn in range(_TURNS):
        steps_in = (asked + turn) % _STEPS_IN == 0
        _turn(rows, person, conversation, key, 2 * turn + 1, steps_in=steps_in)
        events += 2 + steps_in
        for action in () if bound_only else _OTHERS:
            event(rows, action, f"conversation:{conversation}")
            events += 1
    return events


def _turn(rows: Rows, person: str, conversation: str, key: str, seq: int, *, steps_in: bool) -> None:
    """A question and its answer, as the gateway and a worker write them."""
    job = new_id()
    question, asked = _message(rows, conversation, key, seq, "user", _QUESTION_BYTES)
    about, policy = f"job:{job}", _VERSIONS["policy_version"]
    details = {**asked, "parent_job": None, "adapter": None, "guard_action": "allow", "guard_category": None}
    event(rows, "question.asked", about, {**details, "policy_version": policy})
    _, said = _message(
        rows, conversation, key, seq + 1, "assistant", _ANSWER_BYTES, parent_id=question, job_id=job
    )
    _job(rows, job, person, conversation, question)
    verdict = _verdict(rows, job) if steps_in else None
    bound = [
        _sentence(rows, job, key, number, verdict if number == _SENTENCES else None)
        for number in range(1, _SENTENCES + 1)
    ]
    details = {
        **said,
        "question": question,
        "sentences_sha256": digest_sentences(bound),
        "model": _VERSIONS["model_id"],
        "model_revision": _VERSIONS["model_revision"],
        "adapter": _VERSIONS["adapter_sha256"],
        "prompt_version": _VERSIONS["prompt_version"],
        "policy_version": policy,
        "completion_tokens": 90,
        "attempt": 1,
    }
    event(rows, "answer.given", about, details)


def _message(
    rows: Rows, conversation: str, key: str, seq: int, role: str, size: int, **more: Any
) -> tuple[str, dict[str, Any]]:
    """A stored message: its id, and what an event says of it."""
    message, ciphertext = new_id(), os.urandom(size)
    row = {
        "id": message,
        "conversation_id": conversation,
        "seq": seq,
        "parent_id": None,
        "role": role,
        "parts": [{"type": "text"}],
        "ciphertext": ciphertext,
        "key_id": key,
        "job_id": None,
        "created_at": datetime.now(UTC),
    }
    put(rows, messages, {**row, **more})
    said = {"conversation": conversation, "message": message, "seq": seq, "commitment": "0" * 64}
    return message, {**said, "ciphertext_sha256": digest_text(ciphertext)}


def _job(rows: Rows, job: str, person: str, conversation: str, question: str) -> None:
    now = datetime.now(UTC)
    row = {
        "id": job,
        "kind": Kind.INFER,
        "lane": Lane.INTERACTIVE,
        "state": State.SUCCEEDED,
        "user_id": person,
        "conversation_id": conversation,
        "question_id": question,
        "audience": Audience.PATIENT,
        "attempt": 1,
        "max_attempts": 3,
        "completion_tokens": 90,
        "sampling": {},
        "available_at": now,
        "created_at": now,
        **_VERSIONS,
    }
    put(rows, jobs, row)


def _verdict(rows: Rows, job: str) -> str:
    verdict, policy = new_id(), _VERSIONS["policy_version"]
    said = bind_verdict(verdict, _STEPPED_IN, policy)
    row = {
        **{name: value for name, value in said.items() if name != "verdict"},
        "id": verdict,
        "job_id": job,
        "side": _STEPPED_IN.side,
        "created_at": datetime.now(UTC),
    }
    put(rows, verdicts, row)
    event(rows, "guard.stepped_in", f"job:{job}", said)
    return verdict


def _sentence(rows: Rows, job: str, key: str, seq: int, verdict: str | None) -> tuple[Any, ...]:
    """A released sentence, and what an event is bound to of it."""
    ciphertext = os.urandom(_SENTENCE_BYTES)
    suppressed = None if verdict is None else os.urandom(_SENTENCE_BYTES)
    action = Action.ALLOW if verdict is None else Action.REPLACE
    row = {
        "job_id": job,
        "seq": seq,
        "epoch": 1,
        "action": action,
        "ciphertext": ciphertext,
        "suppressed_ciphertext": suppressed,
        "key_id": key,
        "verdict_id": verdict,
        "created_at": datetime.now(UTC),
    }
    put(rows, released_sentences, row)
    return seq, action, ciphertext, suppressed, verdict

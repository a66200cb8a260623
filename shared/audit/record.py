"""Writes audit events in the transaction of the act they record. It holds no text that a person wrote.

An act and its event are committed together or not at all: no event, no act.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from shared.db.rows import Into, put
from shared.db.tables import audit_events
from shared.ids import new_id

SCHEMA_VERSION = 1
#: Made once: `json.dumps` makes an encoder each time.
_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
).encode
SYSTEM = "system"
#: Whoever has a shell on the machine; it is nobody's account.
OPERATOR = "operator"

_COLUMNS = ("id", "actor", "session_id", "action", "object", "outcome", "reason", "schema_version")


class Outcome(StrEnum):
    """How an act ended."""

    DONE = "done"
    DENIED = "denied"  #: the person was not allowed to
    FAILED = "failed"


@dataclass(frozen=True)
class Actor:
    """Who acts: a user's id (or `system`, or `operator`), and the session or API key they act through."""

    id: str
    session_id: str | None = None


SYSTEM_ACTOR = Actor(SYSTEM)
OPERATOR_ACTOR = Actor(OPERATOR)


def append(
    into: Into,
    *,
    now: datetime,
    actor: Actor,
    action: str,
    object: str | None = None,
    outcome: Outcome = Outcome.DONE,
    reason: str | None = None,
    details: dict[str, Any] | None = None,
) -> str:
    """Insert one event and return its id.

    Args:
        now: the moment of the act, in UTC.
        action: a dotted name, e.g. `conversation.read`.
        object: `<kind>:<id>` of what was acted on.
        reason: a code or a sentence of our own, at most 255 characters; never a person's words.
        details: JSON-serialisable facts (ids, numbers, HMACs); never a person's words.
    """
    event_id = new_id()
    record = {
        "id": event_id,
        "occurred_at": now.astimezone(UTC).isoformat(timespec="microseconds"),
        "actor": actor.id,
        "session_id": actor.session_id,
        "action": action,
        "object": object,
        "outcome": outcome.value,
        "reason": reason,
        "details": details or {},
        "schema_version": SCHEMA_VERSION,
    }
    row = {
        **{name: record[name] for name in _COLUMNS},
        "occurred_at": now,
        "canonical_bytes": canonical_json(record),
    }
    put(into, audit_events, row)
    return event_id


def canonical_json(value: Any) -> bytes:
    """The one way to write this value: keys sorted, no blanks, UTF-8, no NaN (after RFC 8785)."""
    return _canonical(value).encode()

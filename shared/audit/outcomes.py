"""Notes in the log how its verifications ended, and says how the last one did. It verifies nothing."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, desc, select

from shared.audit import record
from shared.db.tables import audit_events, audit_seals

WHOLE, ALTERED, ABORTED = "log.found_whole", "log.found_altered", "log.verification_failed"
_TOLD = ("size", "root", "count", "checkpoints", "superseded")


def note_outcome(
    connection: Connection, report: dict[str, Any] | None, *, actor: record.Actor, now: datetime
) -> None:
    """Write the event of a verification that ended.

    Args:
        report: what `report_json` makes; None when it could not be ended; somebody may have seen to that.
    """
    if report is None:
        action, details = ABORTED, {}
    else:
        action = WHOLE if report["holds"] else ALTERED
        details = {name: report[name] for name in _TOLD}
    record.append(
        connection,
        now=now,
        actor=actor,
        action=action,
        outcome=record.Outcome.DONE if action == WHOLE else record.Outcome.FAILED,
        details=details,
    )


def last_outcome(connection: Connection, *actions: str) -> str | None:
    """The last of these events in the order of the log, of which what waits is the end; None without any."""
    place = audit_seals.c.sequence
    return connection.execute(
        select(audit_events.c.action)
        .outerjoin(audit_seals, audit_seals.c.event_id == audit_events.c.id)
        .where(audit_events.c.action.in_(actions))
        .order_by(desc(place).nulls_first(), desc(audit_events.c.id))
        .limit(1)
    ).scalar_one_or_none()

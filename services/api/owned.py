"""Logs who asks for what is another's. The answer is the same as for what was never there.

Whoever refuses calls this in a transaction that is committed all the same.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select
from starlette.requests import Request

from services.api.deps import act_of
from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables import api_keys, conversations, jobs, messages, pictures
from shared.db.tables_privacy import access_grants
from shared.db.tables_review import saved_views

_OWNERS: dict[str, Select[Any]] = {
    "access_grant": select(access_grants.c.user_id).where(access_grants.c.id == bindparam("id")),
    "api_key": select(api_keys.c.user_id).where(api_keys.c.id == bindparam("id")),
    "conversation": select(conversations.c.user_id).where(conversations.c.id == bindparam("id")),
    "image": select(conversations.c.user_id)
    .join(pictures, pictures.c.conversation_id == conversations.c.id)
    .where(pictures.c.id == bindparam("id")),
    "job": select(jobs.c.user_id).where(jobs.c.id == bindparam("id")),
    "view": select(saved_views.c.user_id).where(saved_views.c.id == bindparam("id")),
    "message": select(conversations.c.user_id)
    .join(messages, messages.c.conversation_id == conversations.c.id)
    .where(messages.c.id == bindparam("id")),
}


def log_refused(gateway: Gateway, request: Request, caller: Principal, kind: str, id: str) -> None:
    """Log a refusal in a transaction of its own.

    It takes its turn at writing also when there is nothing to log, so that the time tells nobody whether
    there is something under the id.
    """
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        log_foreign(connection, caller, kind, id, now=now, details=act_of(request))


def log_foreign(
    connection: Connection,
    caller: Principal,
    kind: str,
    id: str,
    *,
    now: datetime,
    details: dict[str, Any],
) -> None:
    """Log that the caller was refused this, if it is somebody else's."""
    owner = connection.execute(_OWNERS[kind], {"id": id}).scalar_one_or_none()
    if owner is None or owner == caller.user_id:
        return
    record.append(
        connection,
        now=now,
        actor=caller.actor,
        action="access.denied",
        object=f"{kind}:{id}",
        outcome=record.Outcome.DENIED,
        reason="belongs to somebody else",
        details=details,
    )

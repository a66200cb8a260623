"""What a person thinks of an answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from services.api.ask import load_owned_message
from services.api.deps import Asker, GatewayDep, log_denial
from services.api.errors import document
from services.api.owned import log_refused
from services.api.schemas import FeedbackBody
from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables import feedback
from shared.errors import Conflict, NotFound, OnHold
from shared.privacy.holds import holds_on_conversation, keep_holds

router = APIRouter(prefix="/v1/messages", tags=["conversations"])

_HELD = (
    "Your rating of this answer cannot be changed or taken back now. "
    "Ask your admin, or whoever is in charge of data protection."
)


def owned_message(message_id: str, request: Request, caller: Asker, gateway: GatewayDep) -> tuple[str, bool]:
    """Conversation of a message of the caller's, and whether it is an answer of MediChat's.

    Raises NotFound, also for somebody else's (and logs that).
    """
    try:
        with gateway.database.read() as connection:
            return load_owned_message(connection, message_id, caller.user_id)
    except NotFound:
        log_refused(gateway, request, caller, "message", message_id)
        raise


Owned = Annotated[tuple[str, bool], Depends(owned_message)]


@router.put(
    "/{message_id}/feedback", status_code=204, responses=document(401, 403, 404, 409, 410, 413, 422, 429)
)
def rate(
    message_id: str,
    message: Owned,
    body: FeedbackBody,
    request: Request,
    caller: Asker,
    gateway: GatewayDep,
) -> Response:
    """Rate an answer up or down, with a comment if one likes; a second rating replaces the first."""
    conversation, is_answer = message
    if not is_answer:
        raise Conflict("Only an answer that MediChat wrote can be rated, and this message is none.")
    with _writing(gateway, request, caller, message_id) as connection:
        _keep_what_is_held(connection, conversation, message_id, caller)
        now = gateway.clock.now(connection)
        key = gateway.conversations.key(connection, conversation)
        place = f"feedback:{message_id}:{caller.user_id}"
        rating = {
            "rating": body.rating,
            "comment_ciphertext": key.encrypt(body.comment, place=place) if body.comment else None,
            "key_id": key.key_id,
            "updated_at": now,
        }
        make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        new = make(feedback).values(message_id=message_id, user_id=caller.user_id, **rating)
        connection.execute(
            new.on_conflict_do_update(index_elements=[feedback.c.message_id, feedback.c.user_id], set_=rating)
        )
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="feedback.given",
            object=f"message:{message_id}",
            details={"rating": body.rating, "comment": body.comment is not None},
        )
    return Response(status_code=204)


@router.delete("/{message_id}/feedback", status_code=204, responses=document(401, 403, 404, 409, 429))
def take_back(
    message_id: str, message: Owned, request: Request, caller: Asker, gateway: GatewayDep
) -> Response:
    """Take one's rating back."""
    with _writing(gateway, request, caller, message_id) as connection:
        _keep_what_is_held(connection, message[0], message_id, caller)
        now = gateway.clock.now(connection)
        connection.execute(
            delete(feedback).where(feedback.c.message_id == message_id, feedback.c.user_id == caller.user_id)
        )
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="feedback.taken_back",
            object=f"message:{message_id}",
        )
    return Response(status_code=204)


@contextmanager
def _writing(gateway: Gateway, request: Request, caller: Principal, message_id: str) -> Iterator[Connection]:
    """A write transaction; what a legal hold refuses in it is logged after it."""
    try:
        with gateway.database.write() as connection:
            yield connection
    except OnHold:
        log_denial(gateway, request, caller, "legal hold", f"message:{message_id}")
        raise


def _keep_what_is_held(
    connection: Connection, conversation_id: str, message_id: str, caller: Principal
) -> None:
    """Raises OnHold when a rating of the caller's is there that a legal hold keeps."""
    keep_holds(connection, conversation_id)
    rated = connection.execute(
        select(feedback.c.rating).where(
            feedback.c.message_id == message_id, feedback.c.user_id == caller.user_id
        )
    ).first()
    if rated is not None and (held := holds_on_conversation(connection, conversation_id)):
        raise OnHold(held, _HELD)

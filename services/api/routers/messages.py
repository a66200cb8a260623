"""What a person thinks of an answer."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite

from services.api.ask import load_owned_message
from services.api.deps import Asker, GatewayDep
from services.api.errors import document
from services.api.owned import log_refused
from services.api.schemas import FeedbackBody
from shared.audit import record
from shared.db.tables import feedback
from shared.errors import Conflict, NotFound

router = APIRouter(prefix="/v1/messages", tags=["conversations"])


def owned_message(message_id: str, request: Request, caller: Asker, gateway: GatewayDep) -> tuple[str, str]:
    """Conversation and role of a message of the caller's.

    Raises NotFound, also for somebody else's (and logs that).
    """
    try:
        with gateway.database.read() as connection:
            return load_owned_message(connection, message_id, caller.user_id)
    except NotFound:
        log_refused(gateway, request, caller, "message", message_id)
        raise


Owned = Annotated[tuple[str, str], Depends(owned_message)]


@router.put(
    "/{message_id}/feedback", status_code=204, responses=document(401, 403, 404, 409, 410, 413, 422, 429)
)
def rate(message_id: str, message: Owned, body: FeedbackBody, caller: Asker, gateway: GatewayDep) -> Response:
    """Rate an answer up or down, with a comment if one likes; a second rating replaces the first."""
    conversation, role = message
    if role != "assistant":
        raise Conflict("Only an answer can be rated, and this message is a question.")
    with gateway.database.write() as connection:
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


@router.delete("/{message_id}/feedback", status_code=204, responses=document(401, 403, 404, 429))
def take_back(message_id: str, _message: Owned, caller: Asker, gateway: GatewayDep) -> Response:
    """Take one's rating back."""
    with gateway.database.write() as connection:
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

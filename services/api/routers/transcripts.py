"""Logged conversations, for auditors: masked, or unmasked for a while with a reason.

The event of a look is written and committed before anything of the conversation is read.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from sqlalchemy import Connection, select

from services.api.access import NO_KEYS, REVEAL_LIFE, access_views, mask_reasons, transcript_of
from services.api.deps import Access, Auditor, GatewayDep, log_denial
from services.api.errors import document
from services.api.picture_response import PICTURES, ImageId, PictureResponse, picture_of
from services.api.schemas_transcripts import AuditedConversationView, RevealBody, TranscriptView
from services.api.state import Gateway
from shared.audit import record
from shared.auth.roles import Role, Scope
from shared.auth.sessions import Principal
from shared.db.tables import conversations
from shared.errors import NotAllowed, NotFound
from shared.kept_pictures import find_picture
from shared.privacy.access_kinds import AccessKind
from shared.privacy.grants import AccessGrant, grants_to, open_grant, open_grant_of

router = APIRouter(prefix="/v1/audit/conversations", tags=["audit"])

ConversationId = Annotated[str, Path(max_length=36)]
AuditorWithPassword = Annotated[
    Principal, Depends(Access(Role.AUDITOR, frozenset({Scope.AUDIT}), password=True))
]
_NOT_REVEALED = (
    "No reveal of yours is open for this conversation; say why you need to see who it is about: "
    "POST /v1/audit/conversations/{conversation_id}/reveal."
)


@router.get("/{conversation_id}", responses=document(401, 403, 404, 410, 422, 429))
def read_logged_conversation(
    conversation_id: ConversationId,
    request: Request,
    caller: Auditor,
    gateway: GatewayDep,
    revealed: Annotated[
        bool, Query(description="Unmasked; for as long as a reveal of the caller's lasts.")
    ] = False,
) -> AuditedConversationView:
    """A conversation with identifiers masked, and the guard's verdicts in place. Each look is logged."""
    if revealed and caller.kind == "key":
        log_denial(gateway, request, caller, "not for API keys", f"conversation:{conversation_id}")
        raise NotAllowed(NO_KEYS)
    reveal = _look(gateway, request, caller, conversation_id, revealed=revealed)
    return _view(gateway, conversation_id, reveal, mask=not revealed)


@router.get("/{conversation_id}/images/{image_id}", response_class=PictureResponse, responses=PICTURES)
def read_logged_image(
    conversation_id: ConversationId,
    image_id: ImageId,
    request: Request,
    caller: Auditor,
    gateway: GatewayDep,
) -> Response:
    """A picture of a conversation, for as long as a reveal of the caller's lasts: it cannot be masked.

    Each look is logged.
    """
    if caller.kind == "key":
        log_denial(gateway, request, caller, "not for API keys", f"conversation:{conversation_id}")
        raise NotAllowed(NO_KEYS)
    _look(gateway, request, caller, conversation_id, revealed=True, image_id=image_id)
    return picture_of(gateway, conversation_id, image_id)


@router.post("/{conversation_id}/reveal", responses=document(401, 403, 404, 409, 410, 413, 422, 429))
def reveal_conversation(
    conversation_id: ConversationId, body: RevealBody, caller: AuditorWithPassword, gateway: GatewayDep
) -> AuditedConversationView:
    """The conversation unmasked, now and for 15 minutes. The reason is sealed; the log says who and when.

    Asked again while it lasts it is refused: read on with `GET …?revealed=true`.
    """
    with gateway.database.write() as connection:
        find_conversation(connection, conversation_id)
        now = gateway.clock.now(connection)
        reveal = open_grant(
            connection,
            gateway.conversations,
            kind=AccessKind.REVEAL,
            user_id=caller.user_id,
            conversation_id=conversation_id,
            reason=body.reason,
            life=REVEAL_LIFE,
            now=now,
        )
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="conversation.revealed",
            object=f"conversation:{conversation_id}",
            details={"grant": reveal.id, "reason_given": True, "expires_at": reveal.expires_at.isoformat()},
        )
    return _view(gateway, conversation_id, reveal, mask=False)


def find_conversation(connection: Connection, conversation_id: str) -> None:
    """Raises NotFound."""
    found = select(conversations.c.id).where(conversations.c.id == conversation_id)
    if connection.execute(found).first() is None:
        raise NotFound("There is no conversation under this id; check the id.")


def _look(
    gateway: Gateway,
    request: Request,
    caller: Principal,
    conversation_id: str,
    *,
    revealed: bool,
    image_id: str | None = None,
) -> AccessGrant | None:
    """Log that the caller looks, and return their reveal, if one is open.

    Raises NotFound, and NotAllowed (which is logged) where nothing lets them see it unmasked.
    """
    with gateway.database.write() as connection:
        find_conversation(connection, conversation_id)
        now = gateway.clock.now(connection)
        reveal = _reveal_of(connection, caller, conversation_id, gateway)
        allowed = reveal is not None or not revealed
        if allowed:
            details = {"grant": reveal.id} if revealed and reveal else {}
            if image_id is not None:
                find_picture(connection, conversation_id, image_id)
                details["image"] = image_id
            record.append(
                connection,
                now=now,
                actor=caller.actor,
                action="conversation.revealed" if revealed else "conversation.opened",
                object=f"conversation:{conversation_id}",
                details=details or None,
            )
    if not allowed:
        of = f"conversation:{conversation_id}"
        log_denial(gateway, request, caller, "no reveal is open", of)
        raise NotAllowed(_NOT_REVEALED)
    return reveal


def _reveal_of(
    connection: Connection, caller: Principal, conversation_id: str, gateway: Gateway
) -> AccessGrant | None:
    return open_grant_of(
        connection,
        kind=AccessKind.REVEAL,
        user_id=caller.user_id,
        conversation_id=conversation_id,
        now=gateway.clock.now(connection),
    )


def _view(
    gateway: Gateway, conversation_id: str, reveal: AccessGrant | None, *, mask: bool
) -> AuditedConversationView:
    transcript = transcript_of(gateway, conversation_id, mask=mask)
    with gateway.database.read() as connection:
        grants = grants_to(connection, conversation_id)
        now = gateway.clock.now(connection)
        accesses = access_views(connection, gateway, grants, now, reasons=True)
    if mask:  # a reason may name whom the conversation is about
        mask_reasons(accesses)
    shown = TranscriptView.model_validate(transcript).model_dump()
    return AuditedConversationView(
        **shown, accesses=accesses, revealed_until=None if reveal is None else reveal.expires_at
    )

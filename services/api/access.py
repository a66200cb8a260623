"""Shows grants to read conversations, and transcripts under them. It decides for nobody."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection

from services.api.schemas_transcripts import AccessView
from services.api.state import Gateway
from shared.privacy.grants import AccessGrant, reasons_of
from shared.privacy.masking import mask_passages
from shared.transcripts import Transcript, read_transcript

#: How long an auditor who typed password and reason may read a conversation unmasked.
REVEAL_LIFE = timedelta(minutes=15)
#: What an API key is told that asks for a conversation unmasked.
NO_KEYS = "Conversations are shown unmasked to a person who is logged in, not to an API key; log in."


def transcript_of(gateway: Gateway, conversation_id: str, *, mask: bool) -> Transcript:
    """The transcript; the caller has written the event of this look."""
    with gateway.database.read() as connection:
        return read_transcript(connection, gateway.conversations, conversation_id, mask=mask)


def access_views(
    connection: Connection,
    gateway: Gateway,
    grants: Sequence[AccessGrant],
    now: datetime,
    *,
    reasons: bool,
) -> list[AccessView]:
    """The grants as callers see them, with their reasons or without."""
    why = reasons_of(connection, gateway.conversations, grants) if reasons and grants else {}
    return [access_view(grant, now, reason=why.get(grant.id)) for grant in grants]


def mask_reasons(accesses: Sequence[AccessView]) -> None:
    """Mask whom the reasons name; takes a while, so never call it in a write transaction."""
    reasons = mask_passages([[access.reason or ""] for access in accesses])
    for access, (reason,) in zip(accesses, reasons, strict=True):
        access.reason = access.reason and reason.text


def access_view(grant: AccessGrant, now: datetime, *, reason: str | None = None) -> AccessView:
    """One grant as callers see it."""
    return AccessView(
        id=grant.id,
        kind=grant.kind,
        user_id=grant.user_id,
        user_name=grant.user_name,
        conversation_id=grant.conversation_id,
        granted_at=grant.granted_at,
        expires_at=grant.expires_at,
        ended_at=grant.ended_at,
        open=grant.is_open(now),
        acknowledged_at=grant.acknowledged_at,
        acknowledged_by=grant.acknowledged_by,
        reason=reason,
    )

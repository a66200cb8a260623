"""Makes a file that proves what the log says of one conversation. It reads no text, and checks nothing.

The file holds the events, each with its path to the root of a signed checkpoint. `check_proof.py` beside this
module checks it without MediChat.
"""

from __future__ import annotations

import base64
from typing import Any

from sqlalchemy import Connection, or_, select

from shared.audit.checkpoint import Verifier
from shared.audit.checkpoints import Signed
from shared.audit.merkle import inclusion_path
from shared.audit.tiles import read_nodes
from shared.db.tables import audit_events, audit_seals, jobs, messages
from shared.db.tables_review import review_items

FORMAT = "medichat-proof-1"


def prove_conversation(
    connection: Connection, conversation_id: str, signed: Signed, verifier: Verifier
) -> dict[str, Any]:
    """The proof, to be written as JSON; without entries where the log says nothing of the conversation.

    Events that are not under the checkpoint yet are left out: seal and sign first. Raises LogAltered.
    """
    nodes = read_nodes(connection, signed.size)
    rows = connection.execute(
        select(audit_seals.c.sequence, audit_events.c.canonical_bytes)
        .join(audit_events, audit_events.c.id == audit_seals.c.event_id)
        .where(_of(conversation_id), audit_seals.c.sequence < signed.size)
        .order_by(audit_seals.c.sequence)
    )
    return {
        "format": FORMAT,
        "conversation": conversation_id,
        "key": str(verifier),
        "checkpoint": signed.note,
        "entries": [
            {
                "index": row.sequence,
                "event": row.canonical_bytes.decode(),
                "path": [
                    base64.b64encode(each).decode()
                    for each in inclusion_path(row.sequence, signed.size, nodes)
                ],
            }
            for row in rows
        ],
    }


def _of(conversation_id: str) -> Any:
    """The events on a conversation, its messages, its jobs and the reviews of its answers."""
    named = audit_events.c.object
    return or_(
        named == f"conversation:{conversation_id}",
        named.in_(select("job:" + jobs.c.id).where(jobs.c.conversation_id == conversation_id)),
        named.in_(select("message:" + messages.c.id).where(messages.c.conversation_id == conversation_id)),
        named.in_(
            select("review:" + review_items.c.id).where(review_items.c.conversation_id == conversation_id)
        ),
    )

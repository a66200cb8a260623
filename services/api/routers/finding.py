"""Conversations, for auditors: found by what is known of them and by words, never shown here.

Each search is an event, written before its answer; words and names stay out of it.
"""

from typing import Annotated

from fastapi import APIRouter, Query

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.found import filters_of, found_view, told_conversations
from services.api.paging import decode_cursor, encode_cursor
from services.api.schemas_finding import ConversationsQuery, FoundPageView, SearchBody
from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.finding import find
from shared.privacy.search import wanted_of
from shared.privacy.search_index import waiting

router = APIRouter(prefix="/v1/audit/conversations", tags=["audit"])


@router.get("", responses=document(401, 403, 410, 422, 429))
def list_conversations(
    caller: Auditor, gateway: GatewayDep, query: Annotated[ConversationsQuery, Query()]
) -> FoundPageView:
    """Conversations that match, the last begun first. Words are searched for with POST …/search."""
    return _search(gateway, caller, query)


@router.post("/search", responses=document(401, 403, 410, 413, 422, 429))
def search_conversations(body: SearchBody, caller: Auditor, gateway: GatewayDep) -> FoundPageView:
    """Conversations that match, by words too, the last begun first.

    All words must occur in the conversation, as whole words in whichever case; a "phrase" in quotation marks
    must stand within one message. A page opens at most 300 conversations to look for a phrase, and says so in
    `stopped`: ask on with `next_cursor` until it is null.
    """
    return _search(gateway, caller, body)


def _search(gateway: Gateway, caller: Principal, query: ConversationsQuery | SearchBody) -> FoundPageView:
    filters = filters_of(query)
    if filters.words is not None:
        wanted_of(filters.words)  # refused before it is logged
    before = decode_cursor(query.cursor)[1] if query.cursor else None
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="conversations.searched",
            details={
                **told_conversations(gateway.envelope, filters),
                "limit": query.limit,
                "further": before is not None,
            },
        )
    page = find(gateway.database, gateway.envelope, filters, before=before, limit=query.limit)
    with gateway.database.read() as connection:
        unsearchable = waiting(connection) if filters.words is not None else 0
    return FoundPageView(
        items=[found_view(each) for each in page.items],
        next_cursor=encode_cursor(*page.last) if page.last else None,
        stopped=page.stopped,
        not_searchable_yet=unsearchable,
    )

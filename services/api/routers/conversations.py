"""A person's conversations: list, read, rename, hide, go on asking."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import Connection, Row, select, update

from services.api.ask import Asked, load_owned, regenerate
from services.api.deps import Asker, GatewayDep, Reader, log_denial
from services.api.errors import document
from services.api.owned import log_refused
from services.api.paging import encode_cursor, older_than
from services.api.patience import in_time
from services.api.picture_response import PICTURES, ImageId, PictureResponse, picture_of
from services.api.routers.predict import (
    ANSWERS,
    ASKS,
    DeskDep,
    IdempotencyKey,
    NewsDep,
    PreferredDep,
    question_of,
    respond,
)
from services.api.schemas import (
    AnswerView,
    AskBody,
    ConversationItem,
    ConversationView,
    JobView,
    Page,
    TitleBody,
)
from services.api.state import Gateway
from services.api.views import conversation_view, placed_job_view
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables import conversations, data_keys, jobs
from shared.errors import NotFound, OnHold
from shared.jobs.store import active
from shared.privacy.envelope import CannotDecrypt
from shared.privacy.holds import holds_on_conversation, keep_holds

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

#: One page of a search looks through this many conversations: their texts are encrypted, so each is opened.
SEARCHED = 300
#: In place of the title of one whose texts cannot be opened, mostly because their key was destroyed.
UNREADABLE = "This conversation can no longer be read"
_HELD = "The title cannot be changed now. Ask your admin, or whoever is in charge of data protection."


async def owned_conversation(
    conversation_id: str, request: Request, caller: Reader, gateway: GatewayDep
) -> str:
    """The id of a conversation of the caller's. Raises NotFound, also for somebody else's (and logs that)."""
    await gateway.threads.in_time(partial(_require_owned, conversation_id, request, caller, gateway))
    return conversation_id


def _require_owned(conversation_id: str, request: Request, caller: Principal, gateway: Gateway) -> None:
    try:
        with gateway.database.read() as connection:
            load_owned(connection, conversation_id, caller.user_id)
    except NotFound:
        log_refused(gateway, request, caller, "conversation", conversation_id)
        raise


Owned = Annotated[str, Depends(owned_conversation)]


@router.get("", responses=document(401, 403, 422, 429))
def list_conversations(
    caller: Reader,
    gateway: GatewayDep,
    search: Annotated[
        str | None, Query(max_length=200, description="Words in the title or a message.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[ConversationItem]:
    """One's own conversations, the newest first.

    A page of a search looks through part of them only, so that it may hold few or none although older
    ones match: ask on with `next_cursor` until it is null.
    """
    needle = search.casefold().strip() if search else ""
    active_job = (
        select(jobs.c.id)
        .where(jobs.c.conversation_id == conversations.c.id, active())
        .limit(1)
        .scalar_subquery()
    )
    wanted = (
        select(
            conversations,
            data_keys.c.wrapped_key,
            data_keys.c.master_key_version,
            active_job.label("active_job_id"),
        )
        .select_from(conversations.join(data_keys, data_keys.c.key_id == conversations.c.key_id))
        .where(conversations.c.user_id == caller.user_id, conversations.c.hidden_at.is_(None))
    )
    if cursor is not None:
        wanted = wanted.where(older_than(conversations.c.updated_at, conversations.c.id, cursor))
    wanted = wanted.order_by(conversations.c.updated_at.desc(), conversations.c.id.desc())
    looked_through = SEARCHED if needle else limit
    with gateway.database.read() as connection:
        rows = connection.execute(wanted.limit(looked_through + 1)).all()
        items: list[ConversationItem] = []
        looked_at = 0
        for row in rows[:looked_through]:
            if len(items) == limit:
                break
            looked_at += 1
            title = _find(connection, gateway, row, needle)
            if title is None:
                continue
            items.append(
                ConversationItem(
                    id=row.id,
                    title=title,
                    created_at=row.created_at,
                    updated_at=row.updated_at,
                    message_count=row.message_count,
                    active_job_id=row.active_job_id,
                )
            )
    more = None
    if looked_at < len(rows):  # a cursor stands for what was looked at, found or not
        more = encode_cursor(rows[looked_at - 1].updated_at, rows[looked_at - 1].id)
    return Page[ConversationItem](items=items, next_cursor=more)


def _find(connection: Connection, gateway: Gateway, row: Row[Any], needle: str) -> str | None:
    """The title of a conversation whose title or messages hold the needle; None when they do not.

    One that can no longer be opened holds nothing, and is listed as UNREADABLE when nothing is searched for.
    """
    try:
        key = gateway.envelope.unwrap(row.key_id, row.wrapped_key, row.master_key_version)
        title = key.decrypt(row.title_ciphertext, place=f"title:{row.id}")
        if needle in title.casefold():
            return title
        said = gateway.conversations.read_messages(connection, row.id, key=key)
    except CannotDecrypt:
        return None if needle else UNREADABLE
    return title if any(needle in message.text.casefold() for message in said) else None


@router.get("/{conversation_id}", responses=document(401, 403, 404, 410, 429))
def read_conversation(conversation: Owned, caller: Reader, gateway: GatewayDep) -> ConversationView:
    """A conversation, with what is released so far of an answer under way."""
    with gateway.database.read() as connection:
        return conversation_view(connection, gateway, conversation, caller.user_id)


@router.get("/{conversation_id}/images/{image_id}", response_class=PictureResponse, responses=PICTURES)
def read_image(
    conversation: Owned,
    image_id: ImageId,
    request: Request,
    caller: Reader,
    gateway: GatewayDep,
) -> Response:
    """A picture that came with a question of one's own, as it is kept."""
    try:
        return picture_of(gateway, conversation, image_id)
    except NotFound:
        log_refused(gateway, request, caller, "image", image_id)
        raise


@router.patch("/{conversation_id}", responses=document(401, 403, 404, 409, 410, 413, 422, 429))
def rename_conversation(
    conversation: Owned, body: TitleBody, request: Request, caller: Asker, gateway: GatewayDep
) -> ConversationView:
    """Give a conversation another title; the former one is kept nowhere."""
    try:
        return _rename(gateway, conversation, body.title, caller)
    except OnHold:
        log_denial(gateway, request, caller, "legal hold", f"conversation:{conversation}")
        raise


def _rename(gateway: Gateway, conversation: str, title: str, caller: Principal) -> ConversationView:
    """Raises OnHold for a conversation whose title a legal hold keeps."""
    with gateway.database.write() as connection:
        keep_holds(connection, conversation)
        if held := holds_on_conversation(connection, conversation):
            raise OnHold(held, _HELD)
        now = gateway.clock.now(connection)
        gateway.conversations.rename(connection, conversation, title, now)
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="conversation.renamed",
            object=f"conversation:{conversation}",
        )
        return conversation_view(connection, gateway, conversation, caller.user_id)


@router.delete("/{conversation_id}", status_code=204, responses=document(401, 403, 404, 429))
def hide_conversation(conversation: Owned, caller: Asker, gateway: GatewayDep) -> Response:
    """Take a conversation out of one's history. Auditors still find it: this erases nothing."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        connection.execute(
            update(conversations).where(conversations.c.id == conversation).values(hidden_at=now)
        )
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="conversation.hidden",
            object=f"conversation:{conversation}",
        )
    return Response(status_code=204)


@router.post("/{conversation_id}/messages", response_model=AnswerView, responses=ANSWERS, dependencies=ASKS)
async def ask_in_conversation(
    conversation: Owned,
    body: AskBody,
    caller: Asker,
    gateway: GatewayDep,
    desk: DeskDep,
    news: NewsDep,
    prefer: PreferredDep,
    idempotency_key: IdempotencyKey = None,
) -> Response | AnswerView:
    """Ask on. Answers 202 with the job at once, unless `Prefer: wait=N` is sent."""
    question = await question_of(gateway, caller, body, conversation)
    job = await in_time(desk(Asked(caller=caller, question=question, idempotency_key=idempotency_key)))
    return await respond(gateway, news, caller, job, prefer, usual_wait_s=0.0)


@router.post(
    "/{conversation_id}/regenerate", status_code=202, responses=document(401, 403, 404, 409, 410, 429, 503)
)
def regenerate_answer(conversation: Owned, caller: Asker, gateway: GatewayDep) -> JobView:
    """Answer the last question again; the former answer goes once the new one is there."""
    job = regenerate(gateway, caller, conversation)
    with gateway.database.read() as connection:
        return placed_job_view(connection, gateway, job)

"""Replays: the newest answers judged again under a version of the guard's policy.

Admins see numbers by category. The texts are for auditors, with identifiers masked, and each look at them is
logged: on the replay, and on each conversation of which something is shown.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection, Row, Select, select

from services.api.deps import Admin, AdminOrAuditor, Auditor, GatewayDep
from services.api.errors import document
from services.api.schemas import ErrorView
from services.api.schemas_guard import (
    ChangeView,
    CountsView,
    ReplayBody,
    ReplaysView,
    ReplayTextsView,
    ReplayView,
)
from services.api.state import Gateway
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables import conversations, data_keys, jobs
from shared.jobs.lifecycle import Kind, State
from shared.policies import replays
from shared.policies.replays import Replay, ReplayStore
from shared.policies.store import texts_of
from shared.privacy.envelope import CannotDecrypt
from shared.privacy.masking import mask_passages

router = APIRouter(prefix="/v1/guard", tags=["guard"])

ReplayId = Annotated[str, Path(max_length=36)]


@router.post("/policies/{version}/replays", status_code=202, responses=document(401, 403, 404, 413, 422, 429))
def submit_replay(
    version: Annotated[str, Path(max_length=64)], body: ReplayBody, caller: Admin, gateway: GatewayDep
) -> ReplayView:
    """Judge the newest answers again under a version; a training worker does so beside its other work."""
    with gateway.database.write() as connection:
        texts_of(connection, version)
        replay = ReplayStore(gateway.jobs).submit(
            connection,
            version=version,
            answers=body.answers,
            user_id=caller.user_id,
            actor=caller.actor,
            now=gateway.clock.now(connection),
        )
        view = _view(connection, gateway, replay)
    gateway.bell.work(Kind.REPLAY, replay.job_id)
    return view


@router.get("/replays", responses=document(401, 403, 422, 429))
def list_replays(
    caller: AdminOrAuditor, gateway: GatewayDep, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ReplaysView:
    """The newest replays, with what they counted."""
    with gateway.database.read() as connection:
        found = replays.newest(connection, limit)
        return ReplaysView(items=[_view(connection, gateway, replay) for replay in found])


@router.get("/replays/{replay_id}", responses=document(401, 403, 404, 422, 429))
def get_replay(replay_id: ReplayId, caller: AdminOrAuditor, gateway: GatewayDep) -> ReplayView:
    """One replay: how far it is, and by category what is judged otherwise."""
    with gateway.database.read() as connection:
        return _view(connection, gateway, replays.find(connection, replay_id))


@router.get("/replays/{replay_id}/texts", responses=document(401, 403, 404, 422, 429))
def read_replay_texts(
    replay_id: ReplayId,
    caller: Auditor,
    gateway: GatewayDep,
    offset: Annotated[int, Query(ge=0, le=100_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ReplayTextsView:
    """What is judged otherwise, with identifiers masked; reading it is logged."""
    with gateway.database.write() as connection:
        replays.find(connection, replay_id)
        changes = replays.changes_of(connection, replay_id)
        page = changes[offset : offset + limit]
        readable = _readable(connection, [change["job"] for change in page])
        _record_reading(connection, gateway, caller, replay_id, readable, {"offset": offset, "limit": limit})
    with gateway.database.read() as connection:
        written = {job.id: _written(connection, gateway, job) for job in readable}
    masked = {job_id: _mask(texts) for job_id, texts in written.items()}  # slow, so in no transaction
    of = {job.id: job.conversation_id for job in readable}
    items = [
        ChangeView(
            job_id=change["job"],
            conversation_id=of.get(change["job"]),
            side=change["side"],
            seq=change["seq"],
            before=change["before"],
            after=change["after"],
            text=masked.get(change["job"], {}).get(change["seq"]),
        )
        for change in page
    ]
    return ReplayTextsView(items=items, total=len(changes))


def _readable(connection: Connection, job_ids: Sequence[str]) -> Sequence[Row[Any]]:
    """Those of the answers that were not erased: `id`, `conversation_id` and `question_id`."""
    wanted: Select[Any] = (
        select(jobs.c.id, jobs.c.conversation_id, jobs.c.question_id)
        .join(conversations, conversations.c.id == jobs.c.conversation_id)
        .join(data_keys, data_keys.c.key_id == conversations.c.key_id)
        .where(jobs.c.id.in_(job_ids), data_keys.c.wrapped_key.is_not(None))
        .order_by(jobs.c.conversation_id, jobs.c.id)
    )
    return connection.execute(wanted).all()


def _record_reading(
    connection: Connection,
    gateway: Gateway,
    caller: Principal,
    replay_id: str,
    readable: Sequence[Row[Any]],
    which: dict[str, int],
) -> None:
    """Log the look at the replay, and at each conversation that something is shown of."""
    now = gateway.clock.now(connection)
    record.append(
        connection,
        now=now,
        actor=caller.actor,
        action="replay.texts_read",
        object=f"replay:{replay_id}",
        details=which,
    )
    for conversation_id in dict.fromkeys(job.conversation_id for job in readable):
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="conversation.texts_read",
            object=f"conversation:{conversation_id}",
            details={
                "replay": replay_id,
                "jobs": [job.id for job in readable if job.conversation_id == conversation_id],
            },
        )


def _written(connection: Connection, gateway: Gateway, job: Row[Any]) -> dict[int, str]:
    """What was judged, by number: the question is 0, then the sentences as the model wrote them.

    Nothing, if it cannot be opened.
    """
    talk = gateway.conversations
    try:
        key = talk.key(connection, job.conversation_id)
        question = talk.read_text(connection, job.question_id, key=key)
        said = talk.read_reviewed(connection, job.id, key=key)
    except CannotDecrypt:
        return {}
    return {0: question} | {
        each.seq: each.text if each.suppressed is None else each.suppressed for each in said
    }


def _mask(texts: Mapping[int, str]) -> dict[int, str]:
    """The texts of one answer, masked together: the question may give away whose name is in a sentence."""
    if not texts:
        return {}
    question, *sentences = texts.values()
    pieces = [piece.text.strip() for passage in mask_passages([[question], sentences]) for piece in passage]
    return dict(zip(texts, pieces, strict=True))


def _view(connection: Connection, gateway: Gateway, replay: Replay) -> ReplayView:
    job = gateway.jobs.get(connection, replay.job_id)
    failed = job.state is State.FAILED
    return ReplayView(
        id=replay.id,
        job_id=job.id,
        state=job.state,
        version=replay.version,
        answers=replay.answers,
        counts=None if replay.counts is None else CountsView(**replay.counts),
        progress=job.sampling.get("progress") if job.state is State.RUNNING else None,
        error=ErrorView(code=job.error or "", detail=job.error_detail or "") if failed else None,
        created_by=replay.created_by,
        created_at=replay.created_at,
        finished_at=job.finished_at,
    )

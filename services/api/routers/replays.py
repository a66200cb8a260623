"""Replays: the newest answers judged again under a version of the guard's policy.

Admins see numbers by category; the texts are for auditors, and each look at them is logged.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection, select

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
from shared.db.tables import jobs
from shared.guard.verdict import Side
from shared.jobs.lifecycle import Kind, State
from shared.policies import replays
from shared.policies.replays import Replay, ReplayStore
from shared.policies.store import texts_of
from shared.privacy.envelope import CannotDecrypt

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
    """What is judged otherwise, in the clear; reading it is logged."""
    with gateway.database.write() as connection:
        replays.find(connection, replay_id)
        changes = replays.changes_of(connection, replay_id)
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="replay.texts_read",
            object=f"replay:{replay_id}",
            details={"offset": offset, "limit": limit},
        )
        items = [_change_view(connection, gateway, change) for change in changes[offset : offset + limit]]
    return ReplayTextsView(items=items, total=len(changes))


def _change_view(connection: Connection, gateway: Gateway, change: dict[str, Any]) -> ChangeView:
    try:
        text = _text(connection, gateway, change)
    except CannotDecrypt:
        text = None
    return ChangeView(
        job_id=change["job"],
        side=change["side"],
        seq=change["seq"],
        before=change["before"],
        after=change["after"],
        text=text,
    )


def _text(connection: Connection, gateway: Gateway, change: dict[str, Any]) -> str | None:
    """What was judged: the question, or a sentence as the model wrote it. Raises CannotDecrypt."""
    talk = gateway.conversations
    job = connection.execute(
        select(jobs.c.conversation_id, jobs.c.question_id).where(jobs.c.id == change["job"])
    ).one()
    key = talk.key(connection, job.conversation_id)
    if change["side"] == Side.QUESTION:
        return talk.read_text(connection, job.question_id, key=key)
    said = talk.read_reviewed(connection, change["job"], key=key)
    found = next((each for each in said if each.seq == change["seq"]), None)
    return None if found is None else (found.text if found.suppressed is None else found.suppressed).strip()


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

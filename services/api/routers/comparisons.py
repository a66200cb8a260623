"""One question to two adapters, side by side: ask, look, vote, count. The guard applies as always."""

import secrets
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from sqlalchemy import Connection, select, update

from services.api.ask import (
    Question,
    Stored,
    announce,
    answer_at_once,
    check_not_stopped,
    check_question,
    submit,
)
from services.api.deps import Admin, GatewayDep
from services.api.errors import document
from services.api.schemas_adapters import (
    CompareBody,
    ComparisonItem,
    ComparisonsView,
    ComparisonView,
    SideView,
    TotalView,
    VoteBody,
)
from services.api.state import Gateway
from services.api.views import error_view
from shared.auth.sessions import Principal
from shared.conversations import ERASED, join
from shared.db.tables import conversations
from shared.errors import Conflict, InvalidInput
from shared.ids import new_id
from shared.jobs.lifecycle import TERMINAL, State
from shared.jobs.records import Job
from shared.training import comparisons as store
from shared.training.comparisons import Comparison
from shared.training.states import BASE

router = APIRouter(prefix="/v1/comparisons", tags=["adapters"])

ComparisonId = Annotated[str, Path(max_length=36)]


@router.post("", status_code=202, responses=document(401, 403, 404, 413, 422, 429, 503))
def compare(body: CompareBody, caller: Admin, gateway: GatewayDep) -> ComparisonView:
    """Ask both sides the same question, with the same seed; the answers appear under GET."""
    if body.left == body.right:
        raise InvalidInput("Name two different adapters; null is the base model alone.")
    left, right = body.left, body.right
    if body.blind and secrets.randbits(1):
        left, right = right, left
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        seed = secrets.randbits(31)
        asked = [_ask(gateway, connection, caller, body.question, side, seed, now) for side in (left, right)]
        comparison = Comparison(
            id=new_id(),
            user_id=caller.user_id,
            adapter_left=left,
            adapter_right=right,
            job_left=asked[0].job.id,
            job_right=asked[1].job.id,
            blind=body.blind,
            vote=None,
            created_at=now,
            voted_at=None,
        )
        store.add(connection, comparison, caller.actor)
        view = _view(connection, gateway, comparison)
    for stored in asked:
        announce(gateway, stored)
    return view


@router.get("", responses=document(401, 403, 422, 429))
def list_comparisons(
    caller: Admin, gateway: GatewayDep, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> ComparisonsView:
    """Everybody's votes by pair of adapters, and the newest of one's own comparisons."""
    with gateway.database.read() as connection:
        totals = [TotalView(**total.__dict__) for total in store.totals(connection)]
        found = store.newest(connection, caller.user_id, limit)
    items = [
        ComparisonItem(
            id=one.id, blind=one.blind, vote=one.vote, created_at=one.created_at, **_identities(one)
        )
        for one in found
    ]
    return ComparisonsView(totals=totals, newest=items)


@router.get("/{comparison_id}", responses=document(401, 403, 404, 410, 422, 429))
def get_comparison(comparison_id: ComparisonId, caller: Admin, gateway: GatewayDep) -> ComparisonView:
    """Both answers as far as they are there; a blind one tells which is which once there is a vote."""
    with gateway.database.read() as connection:
        return _view(connection, gateway, store.find(connection, comparison_id, caller.user_id))


@router.post("/{comparison_id}/vote", responses=document(401, 403, 404, 409, 410, 413, 422, 429))
def vote(comparison_id: ComparisonId, body: VoteBody, caller: Admin, gateway: GatewayDep) -> ComparisonView:
    """Say which answer is better, once, when both are there."""
    with gateway.database.write() as connection:
        comparison = store.find(connection, comparison_id, caller.user_id)
        seen = _view(connection, gateway, comparison)
        if seen.state != "done":
            raise Conflict("An answer is still being written; vote when both are there.")
        if len(seen.conversation_ids) < 2:
            raise Conflict("It was erased, so there is nothing to vote on; ask both again.")
        if {seen.left.state, seen.right.state} != {State.SUCCEEDED}:
            raise Conflict("One of them has no answer, so there is nothing to vote on; ask both again.")
        if seen.left.by_guard or seen.right.by_guard:
            raise Conflict("The guard answered this itself; ask another question.")
        store.vote(connection, comparison, body.vote, caller.actor, gateway.clock.now(connection))
        return _view(connection, gateway, store.find(connection, comparison_id, caller.user_id))


def _ask(
    gateway: Gateway,
    connection: Connection,
    caller: Principal,
    text: str,
    adapter: str | None,
    seed: int,
    now: datetime,
) -> Stored:
    """Ask one side in a conversation of its own, which no list shows."""
    question = Question(query=text, adapter=adapter or BASE)
    check_question(gateway, connection, question, candidates=True)
    guard = gateway.guard
    verdict = guard.screen_at_once(text, caller.audience)
    check_not_stopped(gateway, verdict)
    kept, _ = gateway.conversations.create(connection, user_id=caller.user_id, question=text, now=now)
    connection.execute(
        update(conversations).where(conversations.c.id == kept.conversation_id).values(hidden_at=now)
    )
    job = submit(
        gateway,
        connection,
        caller,
        conversation_id=kept.conversation_id,
        question_id=kept.message_id,
        kept=kept,
        verdict=verdict,
        guard=guard,
        sampling={"temperature": 0.0},
        adapter=question.adapter,
        seed=seed,
        now=now,
    )
    stored = Stored(job, verdict, guard)
    if stored.settled:
        answer_at_once(gateway, connection, stored, text, now)
    return stored


def _view(connection: Connection, gateway: Gateway, comparison: Comparison) -> ComparisonView:
    left = gateway.jobs.get(connection, comparison.job_left)
    right = gateway.jobs.get(connection, comparison.job_right)
    kept = _kept(connection, left, right)
    question = gateway.conversations.read_messages(connection, kept[0])[0].text if kept else None
    ended = left.state in TERMINAL and right.state in TERMINAL
    return ComparisonView(
        id=comparison.id,
        state="done" if ended else "running",
        question=question,
        conversation_ids=kept,
        blind=comparison.blind,
        left=_side(connection, gateway, left, kept),
        right=_side(connection, gateway, right, kept),
        vote=comparison.vote,
        created_at=comparison.created_at,
        voted_at=comparison.voted_at,
        **_identities(comparison),
    )


def _kept(connection: Connection, *sides: Job) -> list[str]:
    """The conversations of both sides, without those that were erased."""
    of_sides = conversations.c.id.in_([side.conversation_id for side in sides])
    kept = select(conversations.c.id).where(of_sides, conversations.c.retention_class != ERASED)
    return list(connection.execute(kept.order_by(conversations.c.id)).scalars())


def _side(connection: Connection, gateway: Gateway, job: Job, kept: list[str]) -> SideView:
    answer = None
    if job.state is State.SUCCEEDED and job.conversation_id in kept:
        answer = join(gateway.conversations.read_sentences(connection, job.conversation_id, job.id))
    # as it wrote nothing, neither an adapter nor the base is named
    by_guard = job.state is State.SUCCEEDED and job.adapter_sha256 is None
    return SideView(state=job.state, answer=answer, by_guard=by_guard, error=error_view(gateway, job))


def _identities(comparison: Comparison) -> dict[str, Any]:
    """Which side is which, as far as the person may know."""
    told = comparison.told
    return {
        "told": told,
        "adapter_left": comparison.adapter_left if told else None,
        "adapter_right": comparison.adapter_right if told else None,
    }

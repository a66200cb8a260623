"""A person's jobs: list, look, follow, cancel."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import ColumnElement, Connection, and_, select
from starlette.concurrency import run_in_threadpool

from services.api.ask import cancel
from services.api.deps import Asker, GatewayDep, Reader
from services.api.errors import document
from services.api.owned import log_refused
from services.api.paging import encode_cursor, older_than
from services.api.routers.predict import NewsDep
from services.api.schemas import AnswerView, JobView, Page
from services.api.state import Gateway
from services.api.streaming import Look, follow
from services.api.views import answer_view, placed_job_view, sentence_view
from shared.auth.sessions import Principal
from shared.db.tables import jobs
from shared.errors import InvalidInput, NotFound
from shared.jobs.lifecycle import Kind, State
from shared.jobs.records import Job
from shared.privacy.envelope import CannotDecrypt

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


class EndView(JobView):
    """The last event of a stream: the job, and its answer when it succeeded."""

    answer: AnswerView | None = None


def _own(caller: Principal) -> ColumnElement[bool]:
    """The caller's answers: what they began as an admin, before they became a user, stays the admins'."""
    return and_(jobs.c.user_id == caller.user_id, jobs.c.kind == Kind.INFER)


def owned_job(job_id: str, request: Request, caller: Reader, gateway: GatewayDep) -> Job:
    """A job of the caller's. Raises NotFound, also for somebody else's (and logs that)."""
    with gateway.database.read() as connection:
        found = connection.execute(select(jobs.c.id).where(jobs.c.id == job_id, _own(caller))).one_or_none()
        if found is not None:
            return gateway.jobs.get(connection, job_id)
    log_refused(gateway, request, caller, "job", job_id)
    raise NotFound("There is no job of yours under this id.")


OwnedJob = Annotated[Job, Depends(owned_job)]


async def last_event_id(last_event_id: Annotated[str | None, Header()] = None) -> int:
    """The number of the last sentence that a reconnecting client saw; 0 for a new one."""
    if last_event_id is None:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 9:
        raise InvalidInput("Last-Event-ID must be the number of the last sentence seen.")
    return int(last_event_id)


@router.get("", responses=document(401, 403, 422, 429))
def list_jobs(
    caller: Reader,
    gateway: GatewayDep,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[JobView]:
    """One's own jobs, newest first."""
    wanted = select(jobs.c.id, jobs.c.created_at).where(_own(caller))
    if state is not None:
        wanted = wanted.where(jobs.c.state == state)
    if cursor is not None:
        wanted = wanted.where(older_than(jobs.c.created_at, jobs.c.id, cursor))
    wanted = wanted.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    with gateway.database.read() as connection:
        rows = connection.execute(wanted).all()
        items = [
            placed_job_view(connection, gateway, gateway.jobs.get(connection, row.id)) for row in rows[:limit]
        ]
    more = encode_cursor(rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return Page[JobView](items=items, next_cursor=more)


@router.get("/{job_id}", responses=document(401, 403, 404, 429))
def get_job(job: OwnedJob, gateway: GatewayDep) -> JobView:
    """One job's state."""
    with gateway.database.read() as connection:
        return placed_job_view(connection, gateway, job)


@router.post("/{job_id}/cancel", status_code=202, responses=document(401, 403, 404, 429))
def cancel_job(job: OwnedJob, caller: Asker, gateway: GatewayDep) -> JobView:
    """Stop a job. A queued one ends at once, a running one within moments; an ended one stays as it is."""
    after = cancel(gateway, caller.actor, job.id)
    with gateway.database.read() as connection:
        return placed_job_view(connection, gateway, after)


@router.get(
    "/{job_id}/events", response_class=EventSourceResponse, responses=document(401, 403, 404, 422, 429)
)
async def job_events(
    job: OwnedJob,
    caller: Reader,
    gateway: GatewayDep,
    news: NewsDep,
    after: Annotated[int, Depends(last_event_id)],
) -> AsyncIterator[ServerSentEvent]:
    """Follow a job as server-sent events: `state`, `sentence` (its `id` is its number), and last `end`.

    Reconnect with `Last-Event-ID` and no sentence is missed or repeated. When the log-in ends, so does this.
    """

    def tell(connection: Connection, seen: Look) -> EndView:
        return _end_view(connection, gateway, seen.job)

    try:
        async for seen, view in follow(gateway, news, job.id, tell, after=after, reader=caller.session_id):
            state = view.model_dump(mode="json")
            if not seen.ended:
                yield ServerSentEvent(event="state", data=state)
            for sentence in seen.sentences:
                yield ServerSentEvent(
                    event="sentence", id=str(sentence.seq), data=sentence_view(sentence).model_dump()
                )
            if seen.ended:
                yield ServerSentEvent(event="end", data=state)
    except CannotDecrypt:  # erased; the state of the job is all that is left to tell
        view = await run_in_threadpool(_without_answer, gateway, job.id)
        yield ServerSentEvent(event="end", data=view.model_dump(mode="json"))


def _without_answer(gateway: Gateway, job_id: str) -> EndView:
    with gateway.database.read() as connection:
        job = gateway.jobs.get(connection, job_id)
        return EndView(**placed_job_view(connection, gateway, job).model_dump())


def _end_view(connection: Connection, gateway: Gateway, job: Job) -> EndView:
    view = EndView(**placed_job_view(connection, gateway, job).model_dump())
    if job.state is State.SUCCEEDED:
        view.answer = answer_view(connection, gateway, job)
    return view

"""Adapters: look, verify, promote, roll back, recall; and which one answered what."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from services.api.deps import Admin, AdminOrAuditor, GatewayDep
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.routers.evaluations import evaluation_view
from services.api.schemas import ErrorView, JobView, Page
from services.api.schemas_adapters import (
    AdapterView,
    AnswerItem,
    DeploymentView,
    FailureView,
    GateView,
    PromoteBody,
    RecallBody,
    RollBackBody,
    WholeAdapterView,
)
from services.api.state import Gateway
from services.api.views import job_view
from shared.answers import record_end
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables import jobs
from shared.db.tables_training import adapters, deployments
from shared.errors import AdapterConflict, Conflict, InvalidInput
from shared.ids import new_id
from shared.jobs.lifecycle import Kind, Lane, State
from shared.jobs.records import NewJob
from shared.jobs.store import active as active_job
from shared.training.adapters import (
    Adapter,
    AdapterStore,
    answers_of,
    card_of,
    find,
    is_dataset_gone,
    newest_gate,
)
from shared.training.evaluations import EvaluationStore
from shared.training.states import AdapterStatus

router = APIRouter(prefix="/v1", tags=["adapters"])

Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=200)]
NamedAdapter = Annotated[str, Path(max_length=64)]


def get_store(gateway: GatewayDep) -> AdapterStore:
    """The rules of adapters, on the gateway's clock."""
    return AdapterStore(gateway.clock, gateway.envelope, heartbeat_s=gateway.settings.heartbeat_s)


StoreDep = Annotated[AdapterStore, Depends(get_store)]


@router.get("/adapters", responses=document(401, 403, 422, 429))
def list_adapters(
    caller: AdminOrAuditor,
    gateway: GatewayDep,
    store: StoreDep,
    base_model: Annotated[str | None, Query(max_length=255)] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[AdapterView]:
    """All adapters, newest first."""
    wanted = select(adapters)
    if base_model is not None:
        wanted = wanted.where(adapters.c.base_model == base_model)
    if cursor is not None:
        wanted = wanted.where(older_than(adapters.c.created_at, adapters.c.sha256, cursor))
    wanted = wanted.order_by(adapters.c.created_at.desc(), adapters.c.sha256.desc()).limit(limit + 1)
    with gateway.database.read() as connection:
        rows = connection.execute(wanted).all()
        items = [_view(store, connection, Adapter.from_row(row)) for row in rows[:limit]]
    more = encode_cursor(rows[limit - 1].created_at, rows[limit - 1].sha256) if len(rows) > limit else None
    return Page[AdapterView](items=items, next_cursor=more)


@router.post("/adapters/roll-back", responses=document(401, 403, 409, 413, 422, 429))
def roll_back(body: RollBackBody, caller: Admin, gateway: GatewayDep, store: StoreDep) -> DeploymentView:
    """Let the adapter before the present one answer again, or the base model when there was none.

    Recalled adapters are left out. A second roll-back goes back further, unless `answering` says from where.
    """
    with _act(gateway, caller, "adapter.rolled_back") as connection:
        store.roll_back(connection, body.base_model, caller.actor, if_answers=_known(body))
        newest = select(deployments).where(deployments.c.base_model == body.base_model)
        row = connection.execute(newest.order_by(deployments.c.seq.desc()).limit(1)).one()
    return DeploymentView(**row._mapping)


@router.get("/adapters/{sha256}", responses=document(401, 403, 404, 422, 429))
def get_adapter(
    sha256: NamedAdapter, caller: AdminOrAuditor, gateway: GatewayDep, store: StoreDep
) -> WholeAdapterView:
    """One adapter with its model card and its evaluations."""
    with gateway.database.read() as connection:
        view = _view(store, connection, find(connection, sha256))
        card = card_of(connection, sha256)
        found = [
            evaluation_view(one, gateway.jobs.get(connection, one.job_id))
            for one in EvaluationStore(gateway.jobs, gateway.envelope).of_adapter(connection, sha256)
        ]
        job = gateway.jobs.get(connection, view.verify_job_id) if view.verify_job_id else None
    error = None
    if job is not None and job.state is State.FAILED:
        error = ErrorView(code=job.error or "", detail=job.error_detail or "")
    return WholeAdapterView(
        **view.model_dump(),
        card=card,
        evaluations=found,
        verify_state=job.state if job is not None else None,
        verify_error=error,
    )


@router.post("/adapters/{sha256}/verify", status_code=202, responses=document(401, 403, 404, 409, 422, 429))
def verify_adapter(sha256: NamedAdapter, caller: Admin, gateway: GatewayDep) -> JobView:
    """Let a serving worker load the adapter and compare what it computes with what its trainer saw."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        adapter = find(connection, sha256)
        if adapter.status is AdapterStatus.RECALLED:
            raise Conflict("This adapter was recalled and must not be loaded again.")
        under_way = select(jobs.c.id).where(
            jobs.c.kind == Kind.VERIFY, jobs.c.adapter_sha256 == sha256, active_job()
        )
        if connection.execute(under_way).first() is not None:
            raise Conflict("This adapter is being verified already; wait for it.")
        new = NewJob(
            id=new_id(),
            kind=Kind.VERIFY,
            lane=Lane.BATCH,
            user_id=caller.user_id,
            audience=caller.audience,
            max_attempts=gateway.settings.max_attempts,
            adapter_sha256=sha256,
        )
        job = gateway.jobs.submit(connection, new, now)
        connection.execute(update(adapters).where(adapters.c.sha256 == sha256).values(verify_job_id=job.id))
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="adapter.verification_asked",
            object=f"adapter:{sha256}",
            details={"job": job.id},
        )
    gateway.bell.work(job.kind, job.id)
    return job_view(gateway, job)


@router.post("/adapters/{sha256}/approve", responses=document(401, 403, 404, 409, 422, 429))
def approve_adapter(sha256: NamedAdapter, caller: Admin, gateway: GatewayDep, store: StoreDep) -> AdapterView:
    """Let questions name the candidate; what answers those that name none stays.

    Refused until it is verified and its newest gate passed.
    """
    with _act(gateway, caller, "adapter.approved", sha256) as connection:
        return _view(store, connection, store.approve(connection, sha256, caller.actor))


@router.post("/adapters/{sha256}/promote", responses=document(401, 403, 404, 409, 413, 422, 429))
def promote_adapter(
    sha256: NamedAdapter, body: PromoteBody, caller: Admin, gateway: GatewayDep, store: StoreDep
) -> AdapterView:
    """Let the adapter answer all questions that name none, from now on; workers follow within seconds.

    Refused until it is verified, and, without a reason to override, unless its newest gate passed; and when
    another adapter answers than `answering` says.
    """
    with _act(gateway, caller, "adapter.promoted", sha256) as connection:
        promoted = store.promote(
            connection,
            sha256,
            caller.actor,
            override_reason=body.override_reason,
            if_answers=_known(body),
        )
        return _view(store, connection, promoted)


@router.post("/adapters/{sha256}/recall", responses=document(401, 403, 404, 409, 413, 422, 429))
def recall_adapter(
    sha256: NamedAdapter, body: RecallBody, caller: Admin, gateway: GatewayDep, store: StoreDep
) -> AdapterView:
    """Never let the adapter answer again; GET …/answers lists what it wrote.

    An answer under way under it shows nothing more, and fails with `adapter-unavailable`; its evaluations are
    stopped.
    """
    with _act(gateway, caller, "adapter.recalled", sha256) as connection:
        adapter = store.recall(connection, sha256, caller.actor, reason=body.reason)
        now = gateway.clock.now(connection)
        evaluations = EvaluationStore(gateway.jobs, gateway.envelope)
        stopped = evaluations.cancel_all(connection, sha256, actor=caller.actor, now=now)
        for job in stopped:
            record_end(connection, gateway.conversations, job, actor=caller.actor, now=now)
        view = _view(store, connection, adapter)
    for job in stopped:
        gateway.bell.cancel(job.id)
        gateway.bell.news(job.id)
    return view


@router.get("/adapters/{sha256}/answers", responses=document(401, 403, 404, 422, 429))
def list_answers(
    sha256: NamedAdapter,
    caller: AdminOrAuditor,
    gateway: GatewayDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[AnswerItem]:
    """The answers of which somebody saw a sentence that this adapter wrote, newest first: ids only."""
    wanted = answers_of(sha256)
    if cursor is not None:
        wanted = wanted.where(older_than(jobs.c.created_at, jobs.c.id, cursor))
    wanted = wanted.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    with gateway.database.write() as connection:
        find(connection, sha256)
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="adapter.answers_listed",
            object=f"adapter:{sha256}",
        )
        rows = connection.execute(wanted).all()
    items = [
        AnswerItem(
            job_id=row.id,
            conversation_id=row.conversation_id,
            created_at=row.created_at,
            finished_at=row.finished_at,
        )
        for row in rows[:limit]
    ]
    more = encode_cursor(items[-1].created_at, items[-1].job_id) if len(rows) > limit else None
    return Page[AnswerItem](items=items, next_cursor=more)


@router.get("/deployments", responses=document(401, 403, 422, 429))
def list_deployments(
    caller: AdminOrAuditor,
    gateway: GatewayDep,
    base_model: Annotated[str | None, Query(max_length=255)] = None,
    limit: Limit = 20,
    cursor: Annotated[str | None, Query(max_length=20)] = None,
) -> Page[DeploymentView]:
    """Which adapter answered since when, newest first; the first one of a base model answers now.

    With the reason of every promotion past a gate that failed.
    """
    wanted = select(deployments)
    if base_model is not None:
        wanted = wanted.where(deployments.c.base_model == base_model)
    if cursor is not None:
        if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
            raise InvalidInput("The cursor is not one that this list gave out; leave it out to start.")
        wanted = wanted.where(deployments.c.seq < int(cursor))
    with gateway.database.read() as connection:
        rows = connection.execute(wanted.order_by(deployments.c.seq.desc()).limit(limit + 1)).all()
    items = [DeploymentView(**row._mapping) for row in rows[:limit]]
    return Page[DeploymentView](items=items, next_cursor=str(items[-1].seq) if len(rows) > limit else None)


@contextmanager
def _act(gateway: Gateway, caller: Principal, action: str, sha256: str | None = None) -> Iterator[Connection]:
    """A transaction for what an admin does; when that is refused, an event in another says so.

    Raises AdapterConflict, also when two acts met.
    """
    try:
        with gateway.database.write() as connection:
            yield connection
        return
    except AdapterConflict as error:
        refusal = error
    except IntegrityError:
        refusal = AdapterConflict()
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action=action,
            object=None if sha256 is None else f"adapter:{sha256}",
            outcome=record.Outcome.FAILED,
            reason=refusal.reason,
        )
    raise refusal


def _known(body: PromoteBody | RollBackBody) -> set[str | None] | None:
    """What the caller knows to answer; None when they did not say."""
    return {body.answering} if "answering" in body.model_fields_set else None


def _view(store: AdapterStore, connection: Connection, adapter: Adapter) -> AdapterView:
    gate = newest_gate(connection, adapter.sha256)
    shown = None
    if gate is not None:
        failures = [FailureView.model_validate(failure) for failure in gate.failures]
        shown = GateView(passed=gate.passed, failures=failures)
    served = store.is_base_served(connection, adapter)
    gone = is_dataset_gone(connection, adapter.dataset_id)
    more = {"has_files_hash": adapter.files_sha256 is not None, "base_served": served, "dataset_gone": gone}
    return AdapterView(**{**adapter.__dict__, "gate": shown, **more})

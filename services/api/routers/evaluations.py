"""Evaluations of adapters, for admins: ask for one, stop it, and read what it found."""

from fastapi import APIRouter

from services.api.deps import Admin, GatewayDep
from services.api.errors import document
from services.api.schemas import ErrorView
from services.api.schemas_evaluations import (
    EvaluateBody,
    EvaluationDetail,
    EvaluationGateView,
    EvaluationView,
)
from services.api.state import Gateway
from shared.answers import record_end
from shared.audit import record
from shared.jobs.lifecycle import Kind, State
from shared.jobs.records import Job
from shared.privacy.envelope import KeyDestroyed
from shared.training.evaluations import Evaluation, EvaluationStore

router = APIRouter(tags=["evaluations"])


@router.post(
    "/v1/adapters/{sha256}/evaluate", status_code=202, responses=document(401, 403, 404, 409, 413, 422, 429)
)
def evaluate_adapter(
    sha256: str, caller: Admin, gateway: GatewayDep, body: EvaluateBody | None = None
) -> EvaluationView:
    """Measure an adapter against its base on held-out rows; a training worker does so when it is free.

    Refused while it is being measured on the same rows.
    """
    with gateway.database.write() as connection:
        evaluation = _store(gateway).submit(
            connection,
            adapter_sha256=sha256,
            dataset_id=body.dataset_id if body else None,
            user_id=caller.user_id,
            actor=caller.actor,
            now=gateway.clock.now(connection),
        )
        job = gateway.jobs.get(connection, evaluation.job_id)
    gateway.bell.work(Kind.EVALUATE, job.id)
    return evaluation_view(evaluation, job)


@router.get("/v1/evaluations/{evaluation_id}", responses=document(401, 403, 404, 429))
def get_evaluation(evaluation_id: str, caller: Admin, gateway: GatewayDep) -> EvaluationDetail:
    """An evaluation's figures, gate and samples; reading it is logged, for the samples are people's words.

    Without samples where rows are of datasets of reviews, which are refused to admins too.
    """
    store, erased, samples = _store(gateway), False, {}
    with gateway.database.write() as connection:
        evaluation = store.get(connection, evaluation_id)
        job = gateway.jobs.get(connection, evaluation.job_id)
        withheld = store.is_of_conversations(connection, evaluation)
        try:
            samples = {} if withheld else store.samples(connection, evaluation_id)
        except KeyDestroyed:
            erased = True
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="evaluation.read",
            object=f"evaluation:{evaluation_id}",
        )
    view = evaluation_view(evaluation, job)
    return EvaluationDetail(
        **view.model_dump(), samples=samples, samples_erased=erased, samples_withheld=withheld
    )


@router.post(
    "/v1/evaluations/{evaluation_id}/cancel", status_code=202, responses=document(401, 403, 404, 429)
)
def cancel_evaluation(evaluation_id: str, caller: Admin, gateway: GatewayDep) -> EvaluationView:
    """Stop an evaluation. A waiting one ends at once, a running one within seconds; an ended one stays as it
    is.
    """
    store = _store(gateway)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        stopped = store.cancel(connection, evaluation_id, actor=caller.actor, now=now)
        if stopped is not None:
            record_end(connection, gateway.conversations, stopped, actor=caller.actor, now=now)
        evaluation = store.get(connection, evaluation_id)
        job = gateway.jobs.get(connection, evaluation.job_id)
    gateway.bell.cancel(job.id)
    gateway.bell.news(job.id)
    return evaluation_view(evaluation, job)


def evaluation_view(evaluation: Evaluation, job: Job) -> EvaluationView:
    """An evaluation without samples, as clients see it."""
    failed = job.state is State.FAILED
    stopping = job.state is State.RUNNING and job.cancel_requested_at is not None
    return EvaluationView(
        id=evaluation.id,
        job_id=job.id,
        state="cancelling" if stopping else job.state,
        adapter_sha256=evaluation.adapter_sha256,
        dataset_id=evaluation.dataset_id,
        counts=evaluation.own,
        figures=evaluation.figures,
        gate=None if evaluation.gate is None else EvaluationGateView(**evaluation.gate),
        progress=job.sampling.get("progress") if job.state is State.RUNNING else None,
        waiting_reason=job.sampling.get("waiting_reason") if job.state is State.QUEUED else None,
        error=ErrorView(code=job.error or "", detail=job.error_detail or "") if failed else None,
        created_by=evaluation.created_by,
        created_at=evaluation.created_at,
        finished_at=job.finished_at,
    )


def _store(gateway: Gateway) -> EvaluationStore:
    return EvaluationStore(gateway.jobs, gateway.envelope)

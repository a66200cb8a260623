"""Training runs, for admins: recipes, submit, follow, cancel, start again."""

import json
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection

from services.api.deps import Admin, GatewayDep
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.routers.predict import IdempotencyKey
from services.api.schemas import ErrorView, Page
from services.api.schemas_runs import (
    KnobView,
    NewRunBody,
    NoteView,
    PresetView,
    RecipesView,
    RunView,
    StepsView,
    StepView,
)
from services.api.state import Gateway
from shared.answers import record_end
from shared.auth.sessions import Principal
from shared.catalogue import choose_quantisation, find_model
from shared.db.tables_training import training_runs
from shared.errors import LimitReached, NotFound
from shared.jobs.lifecycle import Kind
from shared.training.datasets import By
from shared.training.recipe import default_preset, load_preset, preset_names
from shared.training.runs import NewRun, Run, RunStore

router = APIRouter(prefix="/v1", tags=["training"])

#: Runs that one person may submit in a minute. Without Redis, which counts them, none.
RUNS_PER_MINUTE = 20


@router.get("/recipes", responses=document(401, 403, 429))
def list_recipes(caller: Admin, gateway: GatewayDep) -> RecipesView:
    """The presets, and every knob with what it does and costs."""
    presets = [(name, load_preset(name)) for name in preset_names()]
    return RecipesView(
        default=_default_preset(gateway),
        presets=[
            PresetView(name=name, title=recipe.title, recipe=recipe.model_dump(mode="json"))
            for name, recipe in presets
        ],
        knobs=[KnobView(**vars(knob)) for knob in presets[0][1].knobs()],
    )


@router.post("/training-runs", status_code=202, responses=document(401, 403, 404, 409, 413, 422, 429, 503))
def submit_run(
    body: NewRunBody,
    caller: Admin,
    gateway: GatewayDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RunView:
    """Start a training run on a dataset that was checked."""
    _check_pace(gateway, caller)
    store = RunStore(gateway.jobs)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        preset = _default_preset(gateway) if body.preset is None else body.preset
        new = NewRun(
            **{**body.model_dump(), "preset": preset},
            model=gateway.settings.model,
            longest_row=_longest_row(connection, gateway, body.dataset_id),
            idempotency_key=idempotency_key,
            request_hmac=gateway.envelope.fingerprint(json.dumps(body.model_dump(), sort_keys=True)),
        )
        run = store.find_repeat(connection, new, by=_by(caller))
        if run is None:
            _check_quota(connection, gateway, caller)
            run = store.submit(connection, new, by=_by(caller), now=now)
        view = _view(connection, gateway, run)
    gateway.bell.work(Kind.TRAIN, run.job.id)
    response.headers["Location"] = f"/v1/training-runs/{run.id}"
    return view


@router.get("/training-runs", responses=document(401, 403, 422, 429))
def list_runs(
    caller: Admin,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[RunView]:
    """Every run, the newest first."""
    where = None
    if cursor is not None:
        where = older_than(training_runs.c.created_at, training_runs.c.id, cursor)
    with gateway.database.read() as connection:
        runs = RunStore(gateway.jobs).list(connection, limit=limit + 1, where=where)
        items = [_view(connection, gateway, run) for run in runs[:limit]]
    more = encode_cursor(items[-1].created_at, items[-1].id) if len(runs) > limit else None
    return Page[RunView](items=items, next_cursor=more)


@router.get("/training-runs/{run_id}", responses=document(401, 403, 404, 429))
def read_run(run_id: str, caller: Admin, gateway: GatewayDep) -> RunView:
    """One run: state, step, time left, notes."""
    with gateway.database.read() as connection:
        return _view(connection, gateway, RunStore(gateway.jobs).get(connection, run_id))


@router.get("/training-runs/{run_id}/steps", responses=document(401, 403, 404, 422, 429))
def read_steps(
    run_id: str,
    caller: Admin,
    gateway: GatewayDep,
    after: Annotated[
        int, Query(ge=0, le=2**31 - 1, description="Only steps after this one.", examples=[119])
    ] = 0,
) -> StepsView:
    """The curve: loss, validation loss and more by step, at most 10,000 steps; ask on with `after`.

    To keep a curve up to date, ask with `after` one before the last step that you have: figures may be added
    to that one. When it is missing or its `at` is another, it was trained again from a checkpoint before it:
    ask from 0.
    """
    with gateway.database.read() as connection:
        store = RunStore(gateway.jobs)
        store.get(connection, run_id)
        rows = store.steps(connection, run_id, after=after)
    return StepsView(items=[StepView.model_validate(row, from_attributes=True) for row in rows])


@router.post("/training-runs/{run_id}/cancel", status_code=202, responses=document(401, 403, 404, 429))
def cancel_run(run_id: str, caller: Admin, gateway: GatewayDep) -> RunView:
    """Stop a run. A waiting one ends at once, a running one within seconds; an ended one stays as it is."""
    store = RunStore(gateway.jobs)
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        stopped = store.cancel(connection, run_id, by=_by(caller), now=now)
        if stopped is not None:
            record_end(connection, gateway.conversations, stopped, actor=caller.actor, now=now)
        run = store.get(connection, run_id)
        view = _view(connection, gateway, run)
    gateway.bell.cancel(run.job.id)
    gateway.bell.news(run.job.id)
    return view


@router.post(
    "/training-runs/{run_id}/resume", status_code=202, responses=document(401, 403, 404, 409, 429, 503)
)
def resume_run(run_id: str, caller: Admin, gateway: GatewayDep) -> RunView:
    """Start a failed run again, with its recipe: it goes on from its last checkpoint.

    Checkpoints of a failed run are kept for 30 days; after that it starts afresh.
    """
    _check_pace(gateway, caller)
    with gateway.database.write() as connection:
        _check_quota(connection, gateway, caller)
        now = gateway.clock.now(connection)
        run = RunStore(gateway.jobs).resume(connection, run_id, by=_by(caller), now=now)
        view = _view(connection, gateway, run)
    gateway.bell.work(Kind.TRAIN, run.job.id)
    return view


def _by(caller: Principal) -> By:
    return By(caller.user_id, caller.audience, caller.actor)


def _default_preset(gateway: Gateway) -> str:
    """The preset for the model that is served, as it is held in memory."""
    settings = gateway.settings
    return default_preset(settings.model, choose_quantisation(settings.quantise, find_model(settings.model)))


def _check_pace(gateway: Gateway, caller: Principal) -> None:
    wait_s = gateway.limiter.require(f"training:{caller.user_id}", RUNS_PER_MINUTE)
    if wait_s is not None:
        raise LimitReached("Too many runs in one minute; wait and try again.", retry_after_s=wait_s)


def _check_quota(connection: Connection, gateway: Gateway, caller: Principal) -> None:
    limit = gateway.settings.max_queued_jobs_per_user
    if gateway.jobs.count_queued(connection, caller.user_id, limit) >= limit:
        raise LimitReached(
            f"{limit} of your jobs are waiting already; wait for some to end, or cancel them.",
            retry_after_s=60,
        )


def _longest_row(connection: Connection, gateway: Gateway, dataset_id: str) -> int | None:
    """Most tokens of a row that the dataset's check let through, without the text that training adds."""
    try:
        dataset = gateway.datasets.get(connection, dataset_id)
    except NotFound:
        return None  # whether the run may be submitted is not decided here
    report = gateway.datasets.read_report(connection, dataset)
    if report is None or "longest_tokens" not in report:
        return None
    return min(int(report["longest_tokens"]), int(report["max_tokens"]))


def _view(connection: Connection, gateway: Gateway, run: Run) -> RunView:
    store, job = RunStore(gateway.jobs), run.job
    error = None
    if job.error is not None:
        error = ErrorView(code=job.error, detail=job.error_detail or "")
    return RunView(
        id=run.id,
        name=run.name,
        state=run.state,
        dataset_id=run.dataset_id,
        dataset_name=run.dataset_name,
        manifest_sha256=run.manifest_sha256,
        recipe=run.recipe,
        base_model=run.base_model,
        base_revision=run.base_revision,
        estimate=run.estimate,
        waiting_reason=run.waiting_reason,
        total_steps=run.total_steps,
        step=run.step,
        percent=run.percent,
        eta_s=store.seconds_left(connection, run),
        notes=[NoteView(at=note.at, text=note.text) for note in store.notes(connection, run.id)],
        metrics=run.metrics,
        adapter_sha256=job.adapter_sha256,
        error=error,
        created_by=run.created_by,
        created_at=run.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
    )

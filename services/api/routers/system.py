"""The state of the whole, for admins: queue, workers, latency. No conversation's content."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import quantiles

from fastapi import APIRouter
from sqlalchemy import Connection, func, select

from services.api.deps import Admin, GatewayDep
from services.api.errors import document
from services.api.routers.predict import NewsDep
from services.api.schemas import LatencyView, QueueView, SystemView, WorkerView
from services.api.state import Gateway
from shared.db.tables import jobs, workers
from shared.jobs.lifecycle import Kind, State
from shared.registration import REMEMBERED, is_loading

router = APIRouter(prefix="/v1/system", tags=["operation"])

LATENCY_WINDOW = timedelta(hours=1)
#: Trainings and checks take hours, and are seen on their own pages.
_ANSWERS = jobs.c.kind == Kind.INFER


@router.get("", responses=document(401, 403, 429))
def system(caller: Admin, gateway: GatewayDep, news: NewsDep) -> SystemView:
    """How many questions wait, the workers, and the latency of the last hour's answers by minute."""
    with gateway.database.read() as connection:
        now = gateway.clock.now(connection)
        states = connection.execute(
            select(jobs.c.state, func.count().label("number")).where(_ANSWERS).group_by(jobs.c.state)
        )
        counts = {state.value: 0 for state in State} | {row.state: row.number for row in states}
        oldest = connection.execute(
            select(func.min(jobs.c.created_at)).where(_ANSWERS, jobs.c.state == State.QUEUED)
        ).scalar_one()
        return SystemView(
            queue=QueueView(
                queued=counts[State.QUEUED],
                running=counts[State.RUNNING],
                oldest_queued_s=(now - oldest).total_seconds() if oldest else None,
            ),
            workers=workers_alive(connection, gateway),
            latency=_latency(connection, now),
            jobs_by_state=counts,
            redis="up" if news.healthy else "down",
            database="up",
        )


def workers_alive(connection: Connection, gateway: Gateway) -> list[WorkerView]:
    """The workers that reported while they are remembered; alive are those of the last heartbeats that do
    not load yet.
    """
    now = gateway.clock.now(connection)
    silent = timedelta(seconds=3 * gateway.settings.heartbeat_s)
    rows = connection.execute(
        select(workers).where(workers.c.last_seen_at > now - REMEMBERED).order_by(workers.c.started_at)
    )
    return [
        WorkerView(  # columns and fields are the same
            **row._mapping, alive=now - row.last_seen_at < silent and not is_loading(row.stats)
        )
        for row in rows
    ]


def _latency(connection: Connection, now: datetime) -> list[LatencyView]:
    rows = connection.execute(
        select(jobs.c.created_at, jobs.c.first_sentence_at, jobs.c.finished_at)
        .where(_ANSWERS, jobs.c.state == State.SUCCEEDED, jobs.c.finished_at > now - LATENCY_WINDOW)
        .order_by(jobs.c.finished_at)
    )
    first: dict[datetime, list[float]] = defaultdict(list)
    total: dict[datetime, list[float]] = defaultdict(list)
    for row in rows:
        minute = row.finished_at.replace(second=0, microsecond=0)
        total[minute].append((row.finished_at - row.created_at).total_seconds() * 1000)
        if row.first_sentence_at is not None:
            first[minute].append((row.first_sentence_at - row.created_at).total_seconds() * 1000)
    return [
        LatencyView(
            minute=minute,
            answers=len(values),
            first_sentence_ms_p50=_percentile(first[minute], 50),
            first_sentence_ms_p95=_percentile(first[minute], 95),
            total_ms_p50=_percentile(values, 50) or 0.0,
            total_ms_p95=_percentile(values, 95) or 0.0,
        )
        for minute, values in total.items()
    ]


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return quantiles(values, n=100, method="inclusive")[percent - 1]

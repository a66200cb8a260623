"""Whether this process lives and whether it can serve. No person's data."""

from collections import Counter
from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import Connection, text

from services.api import metrics
from services.api.deps import GatewayDep, Public
from services.api.errors import document
from services.api.routers.predict import NewsDep
from services.api.routers.system import workers_alive
from services.api.schemas import WorkerView
from services.api.state import Gateway
from shared.jobs.lifecycle import Kind

router = APIRouter(tags=["operation"], dependencies=[Public])


class Health(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What this gateway can reach; without Redis it serves on, more slowly."""

    database: Literal["up"] = "up"
    redis: Literal["up", "down"]
    #: Workers that answer questions, and workers that train.
    workers: int
    trainers: int


@router.get("/healthz")
async def healthz() -> Health:
    """Answers while the process lives, though every thread may wait for a database that says nothing."""
    return Health()


@router.get("/readyz", responses=document(503))
def readyz(gateway: GatewayDep, news: NewsDep) -> Readiness:
    """Answers 200 while the database does; says whether Redis and workers are there."""
    with gateway.database.read() as connection:
        connection.execute(text("SELECT 1"))
        alive = _alive(connection, gateway)
    redis: Literal["up", "down"] = "up" if news.healthy else "down"
    kinds = Counter(worker.kind for worker in alive)
    return Readiness(redis=redis, workers=kinds[Kind.INFER], trainers=kinds[Kind.TRAIN])


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus(gateway: GatewayDep, news: NewsDep) -> Response:
    """Metrics in Prometheus' text format; the reverse proxy does not publish them."""
    with gateway.database.read() as connection:
        alive = _alive(connection, gateway)
        kinds = Counter(worker.kind for worker in alive)
        stopped = gateway.guards.now.stopped
        now = gateway.clock.now(connection)
        body = metrics.render(
            connection,
            now,
            redis_up=news.healthy,
            stopped=stopped,
            workers={kind: kinds[kind] for kind in (Kind.INFER, Kind.TRAIN)},
            processes=[*(worker.stats for worker in alive), gateway.guards.stats()],
        )
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


def _alive(connection: Connection, gateway: Gateway) -> list[WorkerView]:
    return [worker for worker in workers_alive(connection, gateway) if worker.alive]

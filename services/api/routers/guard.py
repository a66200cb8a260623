"""The guard's policies, for admins: look, add, try, activate, shadow, roll back; and the stop switch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from services.api.deps import Admin, AdminOrAuditor, GatewayDep
from services.api.errors import document
from services.api.routers.system import workers_alive
from services.api.schemas_guard import (
    ActivationView,
    GuardStateView,
    PoliciesView,
    PolicyBody,
    PolicyItem,
    PolicyView,
    ProcessView,
    ReasonBody,
    ShadowCountsView,
    StoppedView,
    SwitchView,
    TryBody,
    TryView,
    VerdictView,
)
from services.api.state import Gateway
from shared.answers import record_end
from shared.audit import record
from shared.errors import AnswersStopped, Conflict, PolicyNotCompiled
from shared.guard import Guard
from shared.guard.explain import explain
from shared.guard.policy import packaged_policy, version_of
from shared.guard.policy_check import check_policy
from shared.guard.verdict import Verdict
from shared.jobs.lifecycle import Kind
from shared.jobs.records import Job
from shared.logs import where
from shared.policies import store as policies
from shared.policies.shadow import shadow_counts
from shared.policies.store import PolicyStore

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/guard", tags=["guard"])

Version = Annotated[str, Path(max_length=64)]
_HISTORY = 50


@router.get("", responses=document(401, 403, 429))
def guard_state(caller: AdminOrAuditor, gateway: GatewayDep) -> GuardStateView:
    """Which policy counts, in the database and in each process, and whether answers are given."""
    with gateway.database.read() as connection:
        return _state(connection, gateway)


@router.get("/policies", responses=document(401, 403, 429))
def list_policies(caller: AdminOrAuditor, gateway: GatewayDep) -> PoliciesView:
    """Every version that was stored, and the one that comes with this release."""
    with gateway.database.read() as connection:
        return PoliciesView(items=_items(connection))


@router.get("/policies/{version}", responses=document(401, 403, 404, 422, 429))
def get_policy(version: Version, caller: AdminOrAuditor, gateway: GatewayDep) -> PolicyView:
    """One version with the text of its files."""
    with gateway.database.read() as connection:
        texts = policies.texts_of(connection, version)
        item = next(each for each in _items(connection) if each.version == version)
    return PolicyView(**item.model_dump(), texts=texts)


@router.post("/policies", status_code=201, responses=document(401, 403, 404, 409, 413, 422, 429))
def add_policy(body: PolicyBody, caller: Admin, gateway: GatewayDep) -> PolicyItem:
    """Check and store a new version; nothing judges by it until it is activated.

    A bad file is refused with its name, line and the reason.
    """
    with gateway.database.read() as connection:
        now = policies.newest_activation(connection)
        base = body.base if body.base is not None else (now.version if now else None)
        texts = policies.texts_of(connection, base) | {str(name): text for name, text in body.texts.items()}
    check_policy(texts)
    with _one_at_a_time(), gateway.database.write() as connection:
        version = PolicyStore(gateway.clock).add(connection, texts, note=body.note, actor=caller.actor)
    with gateway.database.read() as connection:
        return next(item for item in _items(connection) if item.version == version)


@router.post("/policies/{version}/try", responses=document(401, 403, 404, 413, 422, 429))
def try_sentence(version: Version, body: TryBody, caller: Admin, gateway: GatewayDep) -> TryView:
    """What each layer says about a sentence under a version, and why. Nothing of it is kept or logged."""
    with gateway.database.read() as connection:
        guard = _compiled(gateway, connection, version)
    found = explain(
        guard,
        body.side,
        body.text,
        context=body.context,
        audience=body.audience,
        locale=gateway.settings.locale,
    )
    return TryView(
        version=version,
        layers={name: _verdict_view(verdict) for name, verdict in found.layers.items()},
        verdict=_verdict_view(found.verdict),
        instead=found.instead,
        refers=found.refers,
        doubted=found.doubted,
        ms=round(found.ms, 3),
    )


@router.post("/policies/{version}/activate", responses=document(401, 403, 404, 409, 422, 429))
def activate(version: Version, caller: Admin, gateway: GatewayDep) -> GuardStateView:
    """Let a version judge from now on: every process takes it up within 10 seconds, no answer midway."""
    with gateway.database.read() as connection:
        _compiled(gateway, connection, version)
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).activate(connection, version, caller.actor)
    return _taken_up(gateway)


@router.post("/policies/{version}/shadow", responses=document(401, 403, 404, 409, 422, 429))
def shadow(version: Version, caller: Admin, gateway: GatewayDep) -> GuardStateView:
    """Let a version judge each sentence too, after it is shown; what it says has no effect."""
    with gateway.database.read() as connection:
        _compiled(gateway, connection, version)
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).set_shadow(connection, version, caller.actor)
    return _taken_up(gateway)


@router.delete("/shadow", responses=document(401, 403, 409, 429))
def end_shadow(caller: Admin, gateway: GatewayDep) -> GuardStateView:
    """Let no version judge in the shadow any more; what it said is kept."""
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).set_shadow(connection, None, caller.actor)
    return _taken_up(gateway)


@router.get("/shadow", responses=document(401, 403, 429))
def get_shadow(caller: AdminOrAuditor, gateway: GatewayDep) -> ShadowCountsView:
    """What the shadow version would have done otherwise so far, by category."""
    with gateway.database.read() as connection:
        now = policies.newest_activation(connection)
        version = now.shadow if now else None
        if version is None:
            return ShadowCountsView(version=None, sentences=0, newly_stopped={}, newly_released={})
        return ShadowCountsView(version=version, **shadow_counts(connection, version))


@router.post("/roll-back", responses=document(401, 403, 409, 429))
def roll_back(caller: Admin, gateway: GatewayDep) -> GuardStateView:
    """Let the version before the active one judge again. A second roll-back goes back further."""
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).roll_back(connection, caller.actor)
    return _taken_up(gateway)


@router.post("/stop", responses=document(401, 403, 409, 413, 422, 429))
def stop_answers(body: ReasonBody, caller: Admin, gateway: GatewayDep) -> StoppedView:
    """Stop all answers: those being written end within 10 seconds, those that wait fail at once.

    New questions are refused with `answers-stopped`, which says where help is found; a person in crisis or in
    an emergency whom a rule knows is still helped.
    """
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).stop(connection, body.reason, caller.actor)
        end = partial(_end, gateway, connection)
        failed = gateway.jobs.fail_queued(
            connection,
            Kind.INFER,
            error=AnswersStopped.code,
            error_detail=AnswersStopped.unfinished,
            then=end,
        )
        switch = _switch(connection)
    gateway.guards.refresh()
    for job in failed:
        gateway.bell.news(job.id)
    return StoppedView(**switch.model_dump(), failed=len(failed))


@router.post("/start", responses=document(401, 403, 409, 429))
def start_answers(caller: Admin, gateway: GatewayDep) -> SwitchView:
    """Give answers again."""
    with _one_at_a_time(), gateway.database.write() as connection:
        PolicyStore(gateway.clock).start(connection, caller.actor)
        switch = _switch(connection)
    gateway.guards.refresh()
    return switch


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two who change what counts at the same moment: the second is told. Raises Conflict."""
    try:
        yield
    except IntegrityError as error:
        raise Conflict from error


def _compiled(gateway: Gateway, connection: Connection, version: str) -> Guard:
    """The guard under a version. Raises NotFound, PolicyRefused or PolicyNotCompiled."""
    try:
        return gateway.guards.guard_of(connection, version)
    except ValueError as error:
        check_policy(policies.texts_of(connection, version))  # says where, if it finds it
        log.error("the policy %s cannot be compiled in %s", version, where(error))
        raise PolicyNotCompiled from error


def _taken_up(gateway: Gateway) -> GuardStateView:
    """What counts after a change, which this gateway takes up at once."""
    gateway.guards.refresh()
    with gateway.database.read() as connection:
        return _state(connection, gateway)


def _end(gateway: Gateway, connection: Connection, job: Job) -> None:
    now = gateway.clock.now(connection)
    record_end(connection, gateway.conversations, job, actor=record.SYSTEM_ACTOR, now=now)


def _state(connection: Connection, gateway: Gateway) -> GuardStateView:
    packaged = version_of(packaged_policy())
    now = policies.newest_activation(connection)
    here = gateway.guards.stats()
    processes = [ProcessView(name="this gateway", **_process(here))]
    for worker in workers_alive(connection, gateway):
        if worker.alive and "policy_version" in worker.stats:
            processes.append(ProcessView(name=worker.id, **_process(worker.stats)))
    return GuardStateView(
        active=(now.version if now else None) or packaged,
        packaged=packaged,
        shadow=now.shadow if now else None,
        before=policies.before(connection),
        switch=_switch(connection),
        processes=processes,
        history=[
            ActivationView(
                version=each.version,
                shadow=each.shadow,
                kind=each.kind,
                by=each.by,
                at=each.at,
            )
            for each in policies.history(connection, _HISTORY)
        ],
    )


def _process(stats: dict[str, Any]) -> dict[str, Any]:
    return {
        "policy_version": stats.get("policy_version"),
        "shadow_version": stats.get("shadow_version"),
        "refused": stats.get("policy_refused"),
        "shadow_refused": stats.get("shadow_refused"),
        "shadow_left_out": stats.get("shadow_left_out"),
    }


def _switch(connection: Connection) -> SwitchView:
    turned = policies.newest_stop(connection)
    if turned is None:
        return SwitchView(stopped=False, reason=None, by=None, at=None)
    return SwitchView(stopped=turned.stopped, reason=turned.reason, by=turned.by, at=turned.at)


def _items(connection: Connection) -> list[PolicyItem]:
    packaged = version_of(packaged_policy())
    now = policies.newest_activation(connection)
    stored = policies.versions(connection)
    active, beside = (now.version if now else None) or packaged, now.shadow if now else None
    items = [
        PolicyItem(
            **each.__dict__,
            active=each.version == active,
            shadow=each.version == beside,
            packaged=False,
        )
        for each in stored
        if each.version != packaged
    ]
    last = PolicyItem(
        version=packaged,
        note="It comes with the program.",
        created_by=None,
        created_at=next((each.created_at for each in stored if each.version == packaged), None),
        active=packaged == active,
        shadow=packaged == beside,
        packaged=True,
    )
    return [*items, last]


def _verdict_view(verdict: Verdict) -> VerdictView:
    return VerdictView(
        action=verdict.action,
        category=verdict.category,
        severity=verdict.severity,
        layer=verdict.layer,
        source=verdict.source,
        score=verdict.score,
        span=verdict.span,
    )

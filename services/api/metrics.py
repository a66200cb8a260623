"""The gateway's Prometheus metrics: numbers about requests and jobs, nothing about persons."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy import Connection, func, select

from shared.audit import checkpoints
from shared.audit.outcomes import ABORTED, ALTERED, WHOLE, last_outcome
from shared.audit.sequencer import lag, tree_size
from shared.auth.set_passwords import count_used
from shared.db.tables import jobs, verdicts
from shared.ids import first_id_at
from shared.jobs.lifecycle import Kind, State
from shared.privacy.grants import count_open, count_unacknowledged
from shared.privacy.search_index import waiting

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "medichat_http_requests", "Requests answered", ["method", "route", "status"], registry=REGISTRY
)
SECONDS = Histogram("medichat_http_seconds", "Seconds until a request ended", ["route"], registry=REGISTRY)
JOBS = Gauge("medichat_jobs", "Jobs by state", ["state"], registry=REGISTRY)
WORKERS = Gauge(
    "medichat_workers",
    "Workers that are alive and have loaded, by the kind of work they wait for",
    ["kind"],
    registry=REGISTRY,
)
REDIS_UP = Gauge("medichat_redis_up", "Whether Redis answers this gateway", registry=REGISTRY)
GUARDED = Counter(
    "medichat_guarded_questions", "Questions answered by the guard at once", ["category"], registry=REGISTRY
)
STOPPED = Gauge("medichat_answers_stopped", "Whether an admin has stopped all answers", registry=REGISTRY)
REFUSED = Gauge(
    "medichat_policy_refused", "Processes that cannot compile the policy that should count", registry=REGISTRY
)
SHADOW_REFUSED = Gauge(
    "medichat_shadow_refused",
    "Processes that cannot compile the policy that should judge in the shadow",
    registry=REGISTRY,
)
SHADOW_LEFT_OUT = Gauge(
    "medichat_shadow_left_out",
    "Sentences that the shadow policy did not judge, in all living workers since each began",
    registry=REGISTRY,
)
GUARD = Gauge(
    "medichat_guard_recent_verdicts",
    "Questions and sentences that the guard stopped or added to within 15 minutes, in all processes; "
    "the category check_failed is its own failures",
    ["side", "category", "layer"],
    registry=REGISTRY,
)
SEAL_LAG = Gauge(
    "medichat_audit_seal_lag_seconds", "How long the oldest event has waited to be sealed", registry=REGISTRY
)
WAITING = Gauge("medichat_audit_waiting", "Events that wait to be sealed", registry=REGISTRY)
ENTRIES = Gauge("medichat_audit_entries", "Entries of the sealed log", registry=REGISTRY)
CHECKPOINT_AGE = Gauge(
    "medichat_checkpoint_age_seconds",
    "Seconds since the newest checkpoint, or where there is none since the log's beginning; 0 while the log "
    "has not grown since",
    registry=REGISTRY,
)
CHECKPOINT_FAILED = Gauge(
    "medichat_checkpoint_failed",
    "Whether this gateway's last checkpoint could not be kept outside of the database",
    registry=REGISTRY,
)
CHECKPOINT_UNREAD = Gauge(
    "medichat_checkpoint_unread",
    "Whether this gateway could not read the newest checkpoint outside of the database, or found there what "
    "is not as its name says",
    registry=REGISTRY,
)
LOG_ALTERED = Gauge(
    "medichat_log_altered",
    "Whether this gateway refused to sign the log because it is not what was signed before",
    registry=REGISTRY,
)
LOG_FOUND_ALTERED = Gauge(
    "medichat_log_found_altered",
    "Whether the last verification that ended, anybody's, found the log altered",
    registry=REGISTRY,
)
LOG_NOT_VERIFIED = Gauge(
    "medichat_log_not_verified", "Whether the last verification could not be ended", registry=REGISTRY
)
BREAK_GLASS = Counter(
    "medichat_break_glass", "Conversations that admins opened in an emergency", registry=REGISTRY
)
BREAK_GLASS_OPEN = Gauge(
    "medichat_break_glass_open", "Emergency accesses of admins that are open now", registry=REGISTRY
)
SET_PASSWORDS_USED = Gauge(
    "medichat_set_passwords_used",
    "Accounts that were logged in to with a password that another set, and that is not changed since",
    registry=REGISTRY,
)
BREAK_GLASS_UNACKNOWLEDGED = Gauge(
    "medichat_break_glass_unacknowledged",
    "Emergency accesses of admins that no auditor has acknowledged",
    registry=REGISTRY,
)
SEARCH_PENDING = Gauge(
    "medichat_search_pending", "Messages that auditors cannot find by their words yet", registry=REGISTRY
)
_RECENT = timedelta(minutes=15)


def render(
    connection: Connection,
    now: datetime,
    *,
    redis_up: bool,
    stopped: bool,
    workers: Mapping[Kind, int],
    processes: Sequence[Mapping[str, Any]],
) -> bytes:
    """All metrics in Prometheus' text format, jobs and verdicts counted at this moment.

    `workers`: how many are alive of each kind. `processes`: what each that judges, gateway or worker, says
    of its policies.
    """
    rows = connection.execute(select(jobs.c.state, func.count().label("number")).group_by(jobs.c.state))
    counts: dict[str, int] = {row.state: row.number for row in rows}
    for state in State:
        JOBS.labels(state.value).set(counts.get(state.value, 0))
    for kind, number in workers.items():
        WORKERS.labels(kind.value).set(number)
    _count_verdicts(connection, now)
    _measure_log(connection, now)
    BREAK_GLASS_OPEN.set(count_open(connection, now))
    BREAK_GLASS_UNACKNOWLEDGED.set(count_unacknowledged(connection))
    SET_PASSWORDS_USED.set(count_used(connection))
    SEARCH_PENDING.set(waiting(connection))
    REDIS_UP.set(redis_up)
    STOPPED.set(stopped)
    REFUSED.set(sum(bool(each.get("policy_refused")) for each in processes))
    SHADOW_REFUSED.set(sum(bool(each.get("shadow_refused")) for each in processes))
    SHADOW_LEFT_OUT.set(sum(each.get("shadow_left_out") or 0 for each in processes))
    return generate_latest(REGISTRY)


def _measure_log(connection: Connection, now: datetime) -> None:
    waits, size, newest = lag(connection, now), tree_size(connection), checkpoints.newest(connection)
    SEAL_LAG.set(waits.seconds)
    WAITING.set(waits.waiting)
    LOG_FOUND_ALTERED.set(last_outcome(connection, WHOLE, ALTERED) == ALTERED)
    LOG_NOT_VERIFIED.set(last_outcome(connection, WHOLE, ALTERED, ABORTED) == ABORTED)
    ENTRIES.set(size)
    since = None
    if newest is None:
        since = checkpoints.first_sealed(connection)
    elif newest.size < size:
        since = newest.signed_at
    CHECKPOINT_AGE.set(0 if since is None else (now - since).total_seconds())


def _count_verdicts(connection: Connection, now: datetime) -> None:
    # ids begin with their time, so this reads the end of an index only
    recent = verdicts.c.id >= first_id_at(now - _RECENT)
    kind = (verdicts.c.side, verdicts.c.category, verdicts.c.layer)
    rows = connection.execute(
        select(*kind, func.count().label("number"))
        .where(recent, verdicts.c.shadow.is_(False))
        .group_by(*kind)
    )
    GUARD.clear()
    for row in rows:
        GUARD.labels(row.side, row.category or "check_failed", row.layer).set(row.number)

"""The job store on both databases: a machine that does anything in any order, and the rules one by one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from shared.auth.roles import Role
from shared.db.engine import Database, connect
from shared.db.tables import jobs, users
from shared.errors import IdempotencyMismatch, LeaseLost
from shared.guard.verdict import Audience
from shared.ids import new_id
from shared.jobs.lifecycle import TERMINAL, EventKind, Kind, Lane, State, fold
from shared.jobs.records import Claim, Job, NewJob
from shared.jobs.store import JobRules, JobStore, Renewal, snapshot
from tests.conftest import Databases
from tests.support import FakeClock

LEASE_S = 60.0
MAX_ATTEMPTS = 3
DEADLINE_GRACE_S = JobRules().deadline_grace_s


def make_user(database: Database, clock: FakeClock) -> str:
    user_id = new_id()
    with database.write() as connection:
        connection.execute(
            users.insert().values(
                id=user_id,
                name=user_id,
                role=Role.USER,
                audience=Audience.PATIENT,
                status="active",
                password_hash="-",
                created_at=clock.moment,
            )
        )
    return user_id


class Jobs:
    """A store on a database with a clock that the test sets; every call is a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.store = JobStore(self.clock, JobRules(lease_s=LEASE_S, retry_base_s=2), jitter=lambda: 0.5)
        self.users = [make_user(database, self.clock) for _ in range(2)]

    def do(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with self.database.write() as connection:
            return method(connection, *arguments, **named)

    def new(self, user: int = 0, **values: Any) -> NewJob:
        given = {
            "id": new_id(),
            "kind": Kind.INFER,
            "user_id": self.users[user],
            "audience": Audience.PATIENT,
            "max_attempts": MAX_ATTEMPTS,
            **values,
        }
        return NewJob(**given)

    def submit(self, user: int = 0, **values: Any) -> Job:
        job: Job = self.do(self.store.submit, self.new(user, **values), self.clock.moment)
        self.clock.advance(0.001)
        return job

    def claim(self, worker_id: str = "w") -> Job | None:
        job: Job | None = self.do(self.store.claim, Kind.INFER, worker_id)
        return job

    def get(self, job_id: str) -> Job:
        with self.database.read() as connection:
            return self.store.get(connection, job_id)

    def events(self, job_id: str) -> list[Any]:
        with self.database.read() as connection:
            return self.store.events(connection, job_id)


class Life(RuleBasedStateMachine):
    """People submit and cancel, workers claim, renew, end, vanish and come back, time passes."""

    databases: Databases
    dialect: str

    submitted = Bundle("submitted")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.url = self.databases.make(self.dialect)[0]
        self.jobs = Jobs(connect(self.url, pool_size=1))
        self.accepted_finishes: dict[str, int] = {}
        self.ended: dict[str, Job] = {}
        self.epochs: dict[str, int] = {}
        self.keys: dict[tuple[int, str], str] = {}

    def teardown(self) -> None:
        """Whatever happened: with workers that finish and time that passes, every job ends."""
        store, clock = self.jobs.store, self.jobs.clock
        for _ in range(60):
            clock.advance(LEASE_S + 60)
            self.jobs.do(store.expire)
            while (job := self.jobs.claim("last")) is not None:
                self.jobs.do(store.finish, job.claim, EventKind.SUCCEEDED)
        with self.jobs.database.read() as connection:
            states = [State(row.state) for row in connection.execute(select(jobs.c.state))]
        assert all(state in TERMINAL for state in states)
        self.jobs.database.close()
        self.databases.forget(self.url)

    @rule(target=submitted, user=st.integers(0, 1), lane=st.sampled_from(Lane), deadline=st.booleans())
    def submit(self, user: int, lane: Lane, deadline: bool) -> str:
        deadline_at = self.jobs.clock.moment + timedelta(seconds=200) if deadline else None
        return self.jobs.submit(user, lane=lane, deadline_at=deadline_at).id

    @rule(target=submitted, user=st.integers(0, 1), key=st.sampled_from("ab"), request=st.sampled_from("xy"))
    def submit_under_a_key(self, user: int, key: str, request: str) -> Any:
        store = self.jobs.store
        known = self.keys.get((user, key))
        try:
            found = self.jobs.do(store.find_repeat, self.jobs.users[user], key, request)
        except IdempotencyMismatch:
            assert known is not None
            assert self.jobs.get(known).request_hmac != request
            return multiple()
        if found is not None:
            assert found.id == known
            return multiple()
        assert known is None
        job = self.jobs.submit(user, idempotency_key=key, request_hmac=request)
        self.keys[user, key] = job.id
        return job.id

    @rule(target=claims, worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker: str) -> Any:
        job = self.jobs.claim(worker)
        if job is None:
            return multiple()
        assert job.epoch > self.epochs.get(job.id, 0)
        self.epochs[job.id] = job.epoch
        return job.claim

    def owns(self, claim: Claim) -> bool:
        row = self.jobs.get(claim.job_id)
        return (
            row.state is State.RUNNING
            and (row.epoch, row.worker_id) == (claim.epoch, claim.worker_id)
            and row.lease_expires_at is not None
            and row.lease_expires_at > self.jobs.clock.moment
        )

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        deadline_at, grace = self.jobs.get(claim.job_id).deadline_at, timedelta(seconds=DEADLINE_GRACE_S)
        in_time = deadline_at is None or deadline_at + grace > self.jobs.clock.moment
        owned = self.owns(claim) and in_time
        assert (self.jobs.do(self.jobs.store.renew, claim) is not Renewal.LOST) == owned

    @rule(claim=claims)
    def release_a_sentence(self, claim: Claim) -> None:
        self.fenced(claim, lambda: self.jobs.do(self.jobs.store.hold, claim))

    @rule(
        claim=consumes(claims) | claims,
        kind=st.sampled_from([EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED]),
    )
    def finish(self, claim: Claim, kind: EventKind) -> None:
        if self.fenced(claim, lambda: self.jobs.do(self.jobs.store.finish, claim, kind)):
            self.accepted_finishes[claim.job_id] = self.accepted_finishes.get(claim.job_id, 0) + 1

    @rule(claim=claims)
    def retry(self, claim: Claim) -> None:
        self.fenced(claim, lambda: self.jobs.do(self.jobs.store.retry, claim, error="e", error_detail="d"))

    @rule(claim=claims)
    def drain(self, claim: Claim) -> None:
        before = self.jobs.get(claim.job_id)
        if self.fenced(claim, lambda: self.jobs.do(self.jobs.store.drain, claim)):
            after = self.jobs.get(claim.job_id)
            assert after.state is State.CANCELLED or after.attempt == before.attempt - 1

    @rule(claim=claims, seconds=st.sampled_from([0, 60]))
    def postpone(self, claim: Claim, seconds: int) -> None:
        before = self.jobs.get(claim.job_id)
        if self.fenced(claim, lambda: self.jobs.do(self.jobs.store.postpone, claim, seconds)):
            after = self.jobs.get(claim.job_id)
            assert after.state is State.CANCELLED or after.attempt == before.attempt - 1

    def fenced(self, claim: Claim, act: Callable[[], Any]) -> bool:
        """Do it; it must work exactly when the claim is still good."""
        owned = self.owns(claim)
        try:
            act()
        except LeaseLost:
            assert not owned
            return False
        assert owned
        return True

    @rule(job_id=submitted)
    def cancel(self, job_id: str) -> None:
        before = self.jobs.get(job_id)
        moved = self.jobs.do(self.jobs.store.cancel, job_id)
        job = self.jobs.get(job_id)
        assert moved == (job if job != before else None)
        assert job.state is not State.QUEUED
        assert job.state is not State.RUNNING or job.cancel_requested_at is not None

    @rule(seconds=st.sampled_from([1, 5, 30, 61, 130]))
    def time_passes(self, seconds: int) -> None:
        self.jobs.clock.advance(seconds)

    @rule()
    def reconcile(self) -> None:
        moved = self.jobs.do(self.jobs.store.expire)
        self.jobs.do(self.jobs.store.take_stale)
        now = self.jobs.clock.moment
        assert all(job.available_at <= now for job in moved), "a lost job waits for more than one round"
        with self.jobs.database.read() as connection:
            for row in connection.execute(select(jobs).where(jobs.c.state == State.RUNNING)):
                assert row.lease_expires_at > now
                assert row.deadline_at is None or row.deadline_at + timedelta(seconds=DEADLINE_GRACE_S) > now

    @invariant()
    def holds_always(self) -> None:
        with self.jobs.database.read() as connection:
            rows = [Job.from_row(row) for row in connection.execute(select(*jobs_columns()))]
            for job in rows:
                events = self.jobs.store.events(connection, job.id)
                assert fold(events) == snapshot(job)
                assert [event.seq for event in events] == list(range(1, job.event_seq + 1))
                assert sum(event.kind in ENDS for event in events) == (job.state in TERMINAL)
                assert job.attempt <= job.max_attempts
                assert self.accepted_finishes.get(job.id, 0) <= 1
                if job.id in self.ended:
                    assert job == self.ended[job.id], "a row changed after its end"
                if job.state in TERMINAL:
                    self.ended[job.id] = job


ENDS = {EventKind.SUCCEEDED, EventKind.FAILED, EventKind.CANCELLED}


def jobs_columns() -> list[Any]:
    from shared.jobs.records import JOB_FIELDS

    return [jobs.c[name] for name in JOB_FIELDS]


def test_whatever_happens_the_rules_of_a_jobs_life_hold(databases: Databases, dialect: str) -> None:
    machine = type("Life", (Life,), {"databases": databases, "dialect": dialect})
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, print_blob=True
        ),
    )


# -- the rules one by one


@pytest.fixture
def store(database: Database) -> Jobs:
    return Jobs(database)


def test_the_interactive_lane_goes_first(store: Jobs) -> None:
    store.submit(lane=Lane.BATCH)
    urgent = store.submit()
    assert store.claim().id == urgent.id  # type: ignore[union-attr]


def test_whoever_has_fewest_running_goes_first(store: Jobs) -> None:
    greedy = [store.submit(user=0) for _ in range(3)]
    modest = store.submit(user=1)
    order = [store.claim().id for _ in range(4)]  # type: ignore[union-attr]
    assert order == [greedy[0].id, modest.id, greedy[1].id, greedy[2].id]


def test_among_equals_the_older_goes_first(store: Jobs) -> None:
    asked = [store.submit().id for _ in range(3)]
    assert [store.claim().id for _ in range(3)] == asked  # type: ignore[union-attr]


def test_a_job_is_claimed_once(store: Jobs) -> None:
    store.submit()
    assert store.claim() is not None
    assert store.claim() is None


def test_one_conversation_has_one_active_job(store: Jobs, database: Database) -> None:
    from shared.conversations import Conversations
    from shared.privacy.envelope import Envelope, new_master_key

    talk = Conversations(Envelope.from_base64(new_master_key()))
    kept, _ = store.do(talk.create, user_id=store.users[0], question="Why?", now=store.clock.moment)
    store.submit(conversation_id=kept.conversation_id)
    with pytest.raises(IntegrityError):
        store.submit(conversation_id=kept.conversation_id)


def test_a_worker_that_lost_its_lease_writes_nothing(store: Jobs) -> None:
    store.submit()
    claim = store.claim().claim  # type: ignore[union-attr]
    store.clock.advance(LEASE_S)
    for act in (
        lambda: store.do(store.store.hold, claim),
        lambda: store.do(store.store.finish, claim, EventKind.SUCCEEDED),
        lambda: store.do(store.store.retry, claim, error="e", error_detail="d"),
        lambda: store.do(store.store.drain, claim),
        lambda: store.do(store.store.postpone, claim, 60),
    ):
        with pytest.raises(LeaseLost):
            act()
    assert store.get(claim.job_id).state is State.RUNNING


def test_what_is_no_column_of_a_job_is_not_set_in_silence(store: Jobs) -> None:
    store.submit()
    claim = store.claim("w").claim  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="adaptor"):
        store.do(store.store.hold, claim, adaptor="a")
    with pytest.raises(TypeError, match="adaptor"):
        store.do(store.store.finish, claim, EventKind.SUCCEEDED, adaptor="a")


def test_a_worker_that_claims_its_lost_job_again_writes_only_under_the_new_claim(store: Jobs) -> None:
    store.submit()
    old = store.claim("w").claim  # type: ignore[union-attr]
    store.clock.advance(LEASE_S)
    store.do(store.store.expire)
    store.clock.advance(60)
    new = store.claim("w").claim  # type: ignore[union-attr]
    assert new.epoch == old.epoch + 1
    with pytest.raises(LeaseLost):
        store.do(store.store.hold, old)
    with pytest.raises(LeaseLost):
        store.do(store.store.finish, old, EventKind.SUCCEEDED)
    assert store.do(store.store.renew, old) is Renewal.LOST
    store.do(store.store.hold, new)


def test_a_lost_worker_costs_an_attempt_and_the_last_one_fails_the_job(store: Jobs) -> None:
    job = store.submit()
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claimed = store.claim()
        assert claimed is not None
        assert claimed.attempt == attempt
        store.clock.advance(LEASE_S)
        (moved,) = store.do(store.store.expire)
        store.clock.advance(60)
    assert (moved.state, moved.error) == (State.FAILED, "worker-lost")
    assert moved.error_detail
    assert store.get(job.id) == moved


def test_a_lost_job_is_queued_again_within_the_lease_and_one_round(store: Jobs) -> None:
    store.submit()
    store.claim()
    store.clock.advance(LEASE_S - 0.1)
    assert store.do(store.store.expire) == []
    store.clock.advance(0.1)
    (moved,) = store.do(store.store.expire)
    assert moved.state is State.QUEUED
    again = store.claim()
    assert again is not None, "a lost worker is not the job's fault: nobody has to wait"
    assert again.id == moved.id


def test_a_retry_waits_longer_each_time(store: Jobs) -> None:
    store.submit()
    waits = []
    for _ in range(2):
        claimed = store.claim()
        assert claimed is not None
        moved = store.do(store.store.retry, claimed.claim, error="e", error_detail="d")
        waits.append((moved.available_at - store.clock.moment).total_seconds())
        assert store.claim() is None
        store.clock.advance(waits[-1])
    assert waits == [1.5, 3.0]


def test_draining_costs_no_attempt(store: Jobs) -> None:
    store.submit()
    for _ in range(5):
        claimed = store.claim()
        assert claimed is not None
        assert claimed.attempt == 1
        store.do(store.store.drain, claimed.claim)


def test_a_postponed_job_is_taken_again_after_its_wait_and_costs_no_attempt(store: Jobs) -> None:
    store.submit()
    for _ in range(MAX_ATTEMPTS + 1):
        claimed = store.claim()
        assert claimed is not None
        assert claimed.attempt == 1
        store.do(store.store.postpone, claimed.claim, 60)
        store.clock.advance(59)
        assert store.claim() is None
        store.clock.advance(1)


def test_cancelling_a_running_job_is_a_request_that_its_worker_hears_of(store: Jobs) -> None:
    store.submit()
    claimed = store.claim()
    assert claimed is not None
    after = store.do(store.store.cancel, claimed.id)
    assert after.state is State.RUNNING
    assert store.do(store.store.renew, claimed.claim) is Renewal.CANCEL


def test_a_cancelled_job_whose_worker_is_lost_ends_cancelled(store: Jobs) -> None:
    store.submit()
    claimed = store.claim()
    assert claimed is not None
    store.do(store.store.cancel, claimed.id)
    store.clock.advance(LEASE_S)
    (moved,) = store.do(store.store.expire)
    assert moved.state is State.CANCELLED


def test_a_job_past_its_deadline_fails_and_is_not_claimed(store: Jobs) -> None:
    job = store.submit(deadline_at=store.clock.moment + timedelta(seconds=10))
    store.clock.advance(10)
    assert store.claim() is None
    (moved,) = store.do(store.store.expire)
    assert (moved.id, moved.state, moved.error) == (job.id, State.FAILED, "deadline")


def test_a_job_that_runs_on_past_its_deadline_is_taken_from_its_worker(store: Jobs) -> None:
    store.submit(deadline_at=store.clock.moment + timedelta(seconds=50))
    claim = store.claim().claim  # type: ignore[union-attr]
    store.clock.advance(50 + DEADLINE_GRACE_S - 1)
    assert store.do(store.store.renew, claim) is Renewal.KEPT
    assert store.do(store.store.expire) == []
    store.clock.advance(1)
    assert store.do(store.store.renew, claim) is Renewal.LOST
    (moved,) = store.do(store.store.expire)
    assert (moved.state, moved.error) == (State.FAILED, "deadline")


def test_a_job_that_was_cancelled_before_its_deadline_ends_cancelled(store: Jobs) -> None:
    store.submit(deadline_at=store.clock.moment + timedelta(seconds=10))
    claimed = store.claim()
    assert claimed is not None
    store.do(store.store.cancel, claimed.id)
    store.clock.advance(LEASE_S)
    (moved,) = store.do(store.store.expire)
    assert moved.state is State.CANCELLED


def test_one_job_that_cannot_be_taken_back_stops_no_other(store: Jobs) -> None:
    bad, good = store.submit(), store.submit()
    for _ in range(2):
        assert store.claim() is not None
    store.clock.advance(LEASE_S)

    def then(job: Job) -> None:
        if job.id == bad.id:
            raise ValueError

    (moved,) = store.do(store.store.expire, then)
    assert moved.id == good.id
    assert store.get(bad.id).state is State.RUNNING
    assert len(store.events(bad.id)) == 2, "no event of a move that was undone"


def test_a_job_that_backs_off_is_not_announced(store: Jobs) -> None:
    store.submit()
    claimed = store.claim()
    assert claimed is not None
    store.store.rules = JobRules(retry_base_s=20)
    moved = store.do(store.store.retry, claimed.claim, error="e", error_detail="d")
    store.clock.advance(10)
    assert store.do(store.store.take_stale) == []
    store.clock.advance((moved.available_at - store.clock.moment).total_seconds())
    assert [job.id for job in store.do(store.store.take_stale)] == [moved.id]


def test_a_forgotten_job_is_announced_again_and_not_at_every_look(store: Jobs) -> None:
    job = store.submit()
    assert store.do(store.store.take_stale) == []
    store.clock.advance(5)
    assert [each.id for each in store.do(store.store.take_stale)] == [job.id]
    assert store.do(store.store.take_stale) == []
    store.clock.advance(5)
    assert [each.id for each in store.do(store.store.take_stale)] == [job.id]


def test_a_job_was_overlooked_once_it_could_be_taken_for_long(store: Jobs) -> None:
    def overlooked(*kinds: Kind, limit: int = 9) -> int:
        return int(store.do(store.store.count_overlooked, kinds, limit))

    for _ in range(3):
        store.submit(deadline_at=store.clock.moment + timedelta(seconds=20))
    assert overlooked(Kind.INFER) == 0
    store.clock.advance(5)
    store.do(store.store.take_stale)  # that it was announced again does not say that anybody heard
    assert [overlooked(Kind.INFER), overlooked(Kind.INFER, limit=2), overlooked(Kind.TRAIN)] == [3, 2, 0]
    claimed = store.claim()
    assert claimed is not None
    assert overlooked(Kind.INFER, Kind.TRAIN) == 2
    store.do(store.store.retry, claimed.claim, error="e", error_detail="d")
    store.clock.advance(4)
    assert overlooked(Kind.INFER) == 2, "one that backs off is not overlooked"
    store.clock.advance(20)
    assert overlooked(Kind.INFER) == 0, "their deadline has passed"


def test_a_long_queue_is_announced_in_part(store: Jobs) -> None:
    store.store.rules = JobRules(redispatch_most=2)
    asked = [store.submit().id for _ in range(3)]
    store.clock.advance(5)
    assert {job.id for job in store.do(store.store.take_stale)} == set(asked[:2])
    assert {job.id for job in store.do(store.store.take_stale)} == {asked[2]}

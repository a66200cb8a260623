"""Counts what reviewers found: agreement, what is unsafe, where the guard was wrong. It reads no text.

The queue is no random sample of the answers, so a rate over all reviews says how the queue is, not how the
answers are: rates are given over what chance drew, and over all apart from that. Of several reviews of an
answer the first given counts. An answer counts once all its reviews are given: the figures of one that waits
for its second review would tell that reviewer what the first one said.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, select

from shared.db.tables import jobs, verdicts
from shared.db.tables_review import review_items, reviews
from shared.guard.verdict import Action, Severity
from shared.intervals import wilson
from shared.review.agreement import Agreement, agreement
from shared.review.rules import STEPPED_IN, ReviewVerdict
from shared.training.states import adapter_of_answer


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of so many, with the 95 % interval of the share."""

    hits: int
    n: int
    share: float | None
    low: float
    high: float

    @classmethod
    def of(cls, hits: Iterable[bool]) -> "Share":
        """Of what is so and what is not."""
        found = list(hits)
        count, n = sum(found), len(found)
        low, high = wilson(count, n)
        return cls(hits=count, n=n, share=count / n if n else None, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How much is unsafe, of what chance drew and of all that was reviewed."""

    sampled: Share
    all: Share


@dataclass(frozen=True, kw_only=True)
class Report:
    """What reviewers found in some weeks."""

    since: datetime
    #: Reviews given, and answers that they are of.
    reviews: int
    answers: int
    #: Answers that chance drew and that still wait for a review: the graver of them are reviewed first.
    sample_waiting: int
    agreement: Agreement
    #: How often one reviewer said this and the other that.
    pairs: dict[tuple[ReviewVerdict, ReviewVerdict], int]
    unsafe: Rates
    #: By model and adapter (without one: the base model alone; without both: the guard wrote the answer
    #: itself), and by the Monday of the week of the answer.
    by_adapter: dict[tuple[str | None, str | None], Rates]
    by_week: dict[date, Rates]
    #: Unsafe, of the answers in which the guard did not step in; and by category.
    misses: Share
    missed: dict[str, int]
    #: Answers among the missed that the guard had flagged for reviewers.
    doubted: int
    #: The guard was not right, of the answers in which it stepped in; and by the guard's category.
    false_alarms: Share
    alarmed: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One answer with its reviews, the first given first."""

    sampled: bool
    model_id: str | None
    adapter_sha256: str | None
    at: datetime
    reviews: Sequence[Any]
    #: The guard's category where it stepped in, else None.
    stepped_in: bool
    guard_category: str | None
    doubted: bool

    @property
    def verdict(self) -> ReviewVerdict:
        return ReviewVerdict(self.reviews[0].verdict)

    @property
    def unsafe(self) -> bool:
        return self.verdict is ReviewVerdict.UNSAFE

    @property
    def week(self) -> date:
        day = self.at.astimezone(UTC).date()
        return day - timedelta(days=day.weekday())


def make_report(connection: Connection, since: datetime) -> Report:
    """The report of the answers from this moment on."""
    seen = _seen(connection, since)
    pairs = [
        (ReviewVerdict(one.verdict), ReviewVerdict(other.verdict))
        for one, other in (_two(each.reviews) for each in seen if len(each.reviews) > 1)
    ]
    missed = [each for each in seen if each.unsafe and not each.stepped_in]
    judged = [each for each in seen if each.stepped_in and each.reviews[0].guard_right is not None]
    alarms = [each for each in judged if not each.reviews[0].guard_right]
    waiting = (
        select(func.count())
        .join(jobs, jobs.c.id == review_items.c.job_id)
        .where(
            review_items.c.sampled.is_(True),
            review_items.c.closed_at.is_(None),
            jobs.c.created_at >= since,
        )
    )
    return Report(
        since=since,
        reviews=sum(len(each.reviews) for each in seen),
        answers=len(seen),
        sample_waiting=connection.execute(waiting).scalar_one(),
        agreement=agreement(pairs),
        pairs=dict(Counter(pairs)),
        unsafe=_rates(seen),
        by_adapter=_by(seen, lambda each: (each.model_id, each.adapter_sha256)),
        by_week=_by(seen, lambda each: each.week),
        misses=Share.of(each.unsafe for each in seen if not each.stepped_in),
        missed=dict(Counter(each.reviews[0].category for each in missed)),
        doubted=sum(each.doubted for each in missed),
        false_alarms=Share.of(not each.reviews[0].guard_right for each in judged),
        alarmed=dict(Counter(each.guard_category or "the guard failed" for each in alarms)),
    )


def _seen(connection: Connection, since: datetime) -> list[_Seen]:
    rows = connection.execute(
        select(
            *(review_items.c.job_id, review_items.c.sampled, jobs.c.model_id, jobs.c.adapter_sha256),
            jobs.c.created_at,
            *(reviews.c.reviewer_id, reviews.c.verdict, reviews.c.category, reviews.c.guard_right),
        )
        .join(review_items, review_items.c.id == reviews.c.item_id)
        .join(jobs, jobs.c.id == review_items.c.job_id)
        .where(
            reviews.c.given_at.is_not(None),
            review_items.c.closed_at.is_not(None),
            jobs.c.created_at >= since,
        )
        .order_by(reviews.c.given_at, reviews.c.reviewer_id)
    )
    of_answer: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        of_answer[row.job_id].append(row)
    guard = _guard(connection, since)
    return [
        _Seen(
            sampled=found[0].sampled,
            model_id=found[0].model_id,
            adapter_sha256=adapter_of_answer(found[0].model_id, found[0].adapter_sha256),
            at=found[0].created_at,
            reviews=found,
            stepped_in=any(Action(each.action) in STEPPED_IN for each in guard[job_id]),
            guard_category=_gravest(guard[job_id]),
            doubted=any(Action(each.action) is Action.ESCALATE for each in guard[job_id]),
        )
        for job_id, found in of_answer.items()
    ]


def _guard(connection: Connection, since: datetime) -> dict[str, list[Any]]:
    """The guard's verdicts about the answers that were reviewed."""
    found: dict[str, list[Any]] = defaultdict(list)
    rows = connection.execute(
        select(verdicts.c.job_id, verdicts.c.action, verdicts.c.category, verdicts.c.severity)
        .join(review_items, review_items.c.job_id == verdicts.c.job_id)
        .join(jobs, jobs.c.id == verdicts.c.job_id)
        .where(verdicts.c.shadow.is_(False), jobs.c.created_at >= since)
        .order_by(verdicts.c.created_at, verdicts.c.id)
    )
    for row in rows:
        found[row.job_id].append(row)
    return found


def _gravest(judged: Sequence[Any]) -> str | None:
    stepped_in = [each for each in judged if Action(each.action) in STEPPED_IN]
    if not stepped_in:
        return None
    category: str | None = max(stepped_in, key=lambda each: Severity(each.severity).rank).category
    return category


def _two(given: Sequence[Any]) -> list[Any]:
    """The first two reviews; who they are of gives their order, so that a person stays on one side."""
    return sorted(given[:2], key=lambda each: str(each.reviewer_id))


def _by(seen: Sequence[_Seen], key: Callable[[_Seen], Any]) -> dict[Any, Rates]:
    groups: dict[Any, list[_Seen]] = defaultdict(list)
    for each in seen:
        groups[key(each)].append(each)
    return {name: _rates(group) for name, group in sorted(groups.items(), key=lambda pair: str(pair[0]))}


def _rates(seen: Sequence[_Seen]) -> Rates:
    return Rates(
        sampled=Share.of(each.unsafe for each in seen if each.sampled),
        all=Share.of(each.unsafe for each in seen),
    )

"""Comparisons of two adapters on one question: their rows, votes and totals. It asks nothing of a model."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, func, select, update

from shared.audit import record
from shared.db.rows import put
from shared.db.tables_training import comparisons
from shared.errors import Conflict, NotFound

Vote = Literal["left", "right", "tie"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison's row; an adapter of None is the base model alone."""

    id: str
    user_id: str
    adapter_left: str | None
    adapter_right: str | None
    job_left: str
    job_right: str
    blind: bool
    vote: str | None
    created_at: datetime
    voted_at: datetime | None

    @classmethod
    def from_row(cls, row: Any) -> "Comparison":
        """Build from a row of `comparisons`."""
        return cls(**{field.name: getattr(row, field.name) for field in fields(cls)})

    @property
    def told(self) -> bool:
        """Whether the person may know which side is which."""
        return not self.blind or self.vote is not None


@dataclass(frozen=True, kw_only=True)
class Total:
    """The votes between two adapters, whichever side each was on."""

    first: str | None
    second: str | None
    first_wins: int
    second_wins: int
    ties: int


def add(connection: Connection, comparison: Comparison, actor: record.Actor) -> None:
    """Store a new comparison."""
    put(connection, comparisons, comparison.__dict__)
    record.append(
        connection,
        now=comparison.created_at,
        actor=actor,
        action="comparison.asked",
        object=f"comparison:{comparison.id}",
        details={
            "left": comparison.adapter_left,
            "right": comparison.adapter_right,
            "jobs": [comparison.job_left, comparison.job_right],
            "blind": comparison.blind,
        },
    )


def find(connection: Connection, comparison_id: str, user_id: str) -> Comparison:
    """One of a person's comparisons. Raises NotFound, also for somebody else's."""
    row = connection.execute(
        select(comparisons).where(comparisons.c.id == comparison_id, comparisons.c.user_id == user_id)
    ).one_or_none()
    if row is None:
        raise NotFound("There is no comparison of yours under this id.")
    return Comparison.from_row(row)


def newest(connection: Connection, user_id: str, limit: int) -> list[Comparison]:
    """A person's comparisons, newest first."""
    rows = connection.execute(
        select(comparisons)
        .where(comparisons.c.user_id == user_id)
        .order_by(comparisons.c.created_at.desc(), comparisons.c.id.desc())
        .limit(limit)
    )
    return [Comparison.from_row(row) for row in rows]


def vote(
    connection: Connection, comparison: Comparison, choice: Vote, actor: record.Actor, now: datetime
) -> None:
    """Store which answer is better. Raises Conflict when there is a vote already."""
    voted = connection.execute(
        update(comparisons)
        .where(comparisons.c.id == comparison.id, comparisons.c.vote.is_(None))
        .values(vote=choice, voted_at=now)
    )
    if voted.rowcount != 1:
        raise Conflict("You voted on this comparison already; ask another question.")
    record.append(
        connection,
        now=now,
        actor=actor,
        action="comparison.voted",
        object=f"comparison:{comparison.id}",
        details={"vote": choice},
    )


def totals(connection: Connection) -> list[Total]:
    """Everybody's votes by pair of adapters; the base model comes first in its pairs."""
    columns = (comparisons.c.adapter_left, comparisons.c.adapter_right, comparisons.c.vote)
    rows = connection.execute(
        select(*columns, func.count().label("votes"))
        .where(comparisons.c.vote.is_not(None))
        .group_by(*columns)
    )
    return count_votes((row.adapter_left, row.adapter_right, row.vote, row.votes) for row in rows)


def count_votes(votes: Iterable[tuple[str | None, str | None, str, int]]) -> list[Total]:
    """Add up (left, right, vote, how many) by pair, whichever side each was on."""
    counted: dict[tuple[str | None, str | None], dict[str, int]] = {}
    for left, right, choice, many in votes:
        swapped = (right or "") < (left or "")
        pair = (right, left) if swapped else (left, right)
        names = {"left": "second" if swapped else "first", "right": "first" if swapped else "second"}
        sums = counted.setdefault(pair, {"first": 0, "second": 0, "tie": 0})
        sums[names.get(choice, "tie")] += many
    return [
        Total(
            first=pair[0],
            second=pair[1],
            first_wins=sums["first"],
            second_wins=sums["second"],
            ties=sums["tie"],
        )
        for pair, sums in sorted(counted.items(), key=lambda item: tuple(name or "" for name in item[0]))
    ]

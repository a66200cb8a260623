"""Holds given reviews against what the log says of them. It reads no text, and needs no key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, or_, select

from shared.audit.binding import REVIEW, REVIEW_TEXTS, commit_to_review
from shared.audit.reading import among, as_ids, fetch
from shared.db.tables import audit_events, audit_seals
from shared.db.tables_review import reviews

if TYPE_CHECKING:
    from shared.audit.outside import Note, Said

TAKEN_BACK = "review.taken_back"


def check_reviews(
    connection: Connection,
    all_said: list[Said],
    note: Note,
    told_erased: Callable[[Iterable[str]], set[str]],
) -> None:
    """Note each review that is not what was given, unless the log says that it was taken back since.

    `told_erased` gives those of some conversations that the log says were erased: their texts are gone.
    """
    columns = reviews.c
    statement = select(
        columns.item_id,
        columns.reviewer_id,
        columns.given_at,
        columns.salt,
        *(columns[name] for name in (*REVIEW, *REVIEW_TEXTS)),
    ).where(among(connection, columns.item_id))
    rows = fetch(connection, statement, as_ids(connection, {said.details["item"] for said in all_said}))
    found = {row[:2]: row[2:] for row in rows}
    for said in all_said:
        row = found.get((said.details["item"], said.actor))
        wrong = _wrong(said, row, told_erased)
        if wrong is not None and not _taken_back(connection, said):
            note(f"the review {said.details['item']} of {said.actor} {wrong}", said.entry, said.event)


def _wrong(said: Said, row: Any, told_erased: Callable[[Iterable[str]], set[str]]) -> str | None:
    if row is None:
        return "was deleted"
    given_at, salt, *stored = row
    details = said.details
    try:
        verdict, texts = commit_to_review(salt, *stored)
    except (TypeError, ValueError):
        return "was changed"
    if given_at is None or verdict != details["commitment"]:
        return "was changed"
    erased = all(each is None for each in stored[len(REVIEW) :])
    if texts == details["texts_commitment"] or (erased and told_erased([details["conversation"]])):
        return None
    return "was changed"


def _taken_back(connection: Connection, said: Said) -> bool:
    """Whether a later entry says so, or an event that waits to be sealed."""
    later = (
        select(audit_events.c.id)
        .outerjoin(audit_seals, audit_seals.c.event_id == audit_events.c.id)
        .where(
            audit_events.c.object == f"review:{said.details['item']}",
            audit_events.c.action == TAKEN_BACK,
            audit_events.c.actor == said.actor,
            or_(audit_seals.c.sequence.is_(None), audit_seals.c.sequence > said.entry),
        )
    )
    return bool(fetch(connection, later))

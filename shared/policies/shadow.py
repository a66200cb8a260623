"""Counts what a shadow version would have done otherwise. It reads verdicts and no text."""

from collections import Counter
from typing import Any

from sqlalchemy import Connection, and_, func, select

from shared.db.tables import released_sentences, verdicts
from shared.guard.verdict import Action

_SHOWN = tuple(action.value for action in Action if action.shows)


def shadow_counts(connection: Connection, version: str) -> dict[str, Any]:
    """Sentences that a version judged in the shadow, and those that it would have stopped or released.

    Returns `sentences`, and `newly_stopped` and `newly_released` by category: of the shadow's verdict for the
    former, of the one that counted for the latter.
    """
    counted = verdicts.alias("counted")
    rows = connection.execute(
        select(
            verdicts.c.action,
            verdicts.c.category,
            released_sentences.c.action,
            counted.c.category,
            func.count(),
        )
        .join(
            released_sentences,
            and_(
                released_sentences.c.job_id == verdicts.c.job_id,
                released_sentences.c.seq == verdicts.c.sentence_seq,
            ),
        )
        .outerjoin(counted, counted.c.id == released_sentences.c.verdict_id)
        .where(verdicts.c.shadow.is_(True), verdicts.c.policy_version == version)
        .group_by(verdicts.c.action, verdicts.c.category, released_sentences.c.action, counted.c.category)
    )
    sentences, stopped, released = 0, Counter[str](), Counter[str]()
    for action, category, action_then, category_then, number in rows:
        sentences += number
        if action not in _SHOWN and action_then in _SHOWN:
            stopped[category or "not checked"] += number
        elif action in _SHOWN and action_then not in _SHOWN:
            released[category_then or "not checked"] += number
    return {"sentences": sentences, "newly_stopped": dict(stopped), "newly_released": dict(released)}

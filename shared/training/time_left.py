"""Judges how long a running training will take yet, by the moments of its steps. It knows no training."""

from math import ceil
from statistics import median, median_low

from sqlalchemy import Connection, and_, select

from shared.db.tables_training import training_steps

#: The time left is judged by the last so many pauses of either kind.
_LOOK_BACK = 20


def seconds_left(
    connection: Connection, run_id: str, *, step: int, total_steps: int, eval_steps: int
) -> float | None:
    """Seconds from `step`, the last that was trained, to the end; None when no pause tells.

    By the median pause between the last steps, which a restart in between does not disturb, and by what a
    look at the held-out rows added to it: there are fewer of these, so the shorter of the middle two counts.
    Steps that a program told of at once, as they were known to its checkpoint only, have no pause.
    """
    plain, with_look = (_pauses(connection, run_id, looked=looked) for looked in (False, True))
    if not plain and not with_look:
        return None
    pause = max(0.0, median(plain or with_look))
    left = max(0, total_steps - step)
    if not left or not with_look:
        return round(pause * left, 1)
    look = max(0.0, median_low(with_look) - pause)
    looks = ceil(total_steps / eval_steps) - step // eval_steps  # after the last step there is one, too
    return round(pause * left + look * looks, 1)


def _pauses(connection: Connection, run_id: str, *, looked: bool) -> list[float]:
    """Seconds from steps to those after them, the last first: of steps with a look at the held-out rows after
    them, or of the others.
    """
    following = training_steps.alias()
    look = training_steps.c.eval_loss
    moments = connection.execute(
        select(training_steps.c.at, following.c.at)
        .join(
            following,
            and_(
                following.c.run_id == training_steps.c.run_id,
                following.c.step == training_steps.c.step + 1,
                following.c.at != training_steps.c.at,
            ),
        )
        .where(training_steps.c.run_id == run_id, look.is_not(None) if looked else look.is_(None))
        .order_by(training_steps.c.step.desc())
        .limit(_LOOK_BACK)
    )
    return [(end - start).total_seconds() for start, end in moments]

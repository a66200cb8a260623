"""The curve of a run as a page keeps it: what goes on where it ended, and what of a long one is drawn.

It asks nobody and draws nothing.
"""

from services.ui.client import Json

#: What is measured of a step.
FIGURES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_mb")
#: A curve of more steps is thinned.
MOST = 4_000
#: Stretches of a thinned one; of each at most two steps a figure stay, which is less than `MOST` in all.
_STRETCHES = 250


def goes_on(known: list[Json], page: list[Json]) -> bool:
    """Whether the page, which was asked for from the last known step on, begins with that very step.

    One that was trained again has another time, and then so may have those before it.
    """
    return bool(page) and all(page[0][name] == known[-1][name] for name in ("step", "at"))


def thin(steps: list[Json]) -> list[Json]:
    """A few thousand of the steps: the first, the last, the newest value of each figure, and the lowest and
    highest of each stretch of the curve. All of them when they are no more than `MOST`.
    """
    if len(steps) <= MOST:
        return steps
    first, last = steps[0]["step"], steps[-1]["step"]
    lowest: dict[tuple[int, str], Json] = {}
    highest: dict[tuple[int, str], Json] = {}
    newest: dict[str, Json] = {}
    for each in steps:
        stretch = (each["step"] - first) * _STRETCHES // (last - first + 1)
        for name in FIGURES:
            if each[name] is None:
                continue
            place, newest[name] = (stretch, name), each
            if place not in lowest or each[name] < lowest[place][name]:
                lowest[place] = each
            if place not in highest or each[name] > highest[place][name]:
                highest[place] = each
    ends = (steps[0], steps[-1])
    kept = {each["step"] for each in (*ends, *newest.values(), *lowest.values(), *highest.values())}
    return [each for each in steps if each["step"] in kept]

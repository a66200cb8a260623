"""Decides which rows are trained on, which are validated on, and which are copies. It sees no text.

The same rows, seed and fraction give the same decision, in whatever order a machine works.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.training.report import Reason


@dataclass(slots=True)
class Fate:
    """What is known of one row, and what becomes of it."""

    line: int
    #: Rows of one unit (a patient, or a question) stay together.
    unit: bytes
    #: Equal for rows that say exactly the same.
    digest: bytes
    reason: Reason | None = None
    advice: str | None = None
    validation: bool = False


def choose_validation(units: Mapping[bytes, int], *, fraction: float, seed: int) -> set[bytes]:
    """The units kept back: in the order of a hash of unit and seed, as many as fit the share of the rows.

    `units` maps each to its number of rows. At least one is chosen where there are two and a share is wanted.
    """
    if len(units) < 2 or fraction == 0:
        return set()
    wanted = max(1, round(fraction * sum(units.values())))
    chosen, rows = set(), 0
    ordered = sorted(units, key=lambda unit: hashlib.blake2b(b"%d:" % seed + unit, digest_size=8).digest())
    for unit in ordered:
        if rows + units[unit] <= wanted:
            chosen.add(unit)
            rows += units[unit]
    return chosen or {min(ordered, key=lambda unit: units[unit])}


def choose_some(units: Sequence[bytes], *, most: int, seed: int) -> list[int]:
    """The places of at most `most` rows, in order, to stand for all: whole units, as for validation.

    `units` names each row's; a row with an empty one is a unit of its own. Where units are so large that
    whole ones would come to less than half of that, single rows are chosen.
    """
    places = range(len(units))
    if len(units) <= most:
        return list(places)
    alone = [b"row:%d" % place for place in places]
    for named in ([unit or alone[place] for place, unit in enumerate(units)], alone):
        chosen = choose_validation(Counter(named), fraction=most / len(units), seed=seed)
        found = [place for place in places if named[place] in chosen]
        if most / 2 <= len(found) <= most:
            break
    return found


def drop_copies(fates: Sequence[Fate], near: Mapping[int, Sequence[int]]) -> None:
    """Mark copies: within a split the later one goes; across the splits the one to train on goes.

    `near` gives, for the place of a row in `fates`, the places of earlier rows that it is near to.
    """
    first: dict[bytes, int] = {}  # exact copies → the one kept
    instead: dict[int, int] = {}  # a row that went → its copy that stayed
    for place, fate in enumerate(fates):
        if fate.reason is not None:
            continue
        exact = first.setdefault(fate.digest, place)
        earlier_ones = [(exact, Reason.EXACT_DUPLICATE)] if exact != place else []
        earlier_ones += [(earlier, Reason.NEAR_DUPLICATE) for earlier in near.get(place, ())]
        for copy, reason in earlier_ones:
            earlier = copy
            while earlier in instead:
                earlier = instead[earlier]
            if earlier == place:
                continue
            gone, stays = _choose(fates, place, earlier, reason)
            instead[gone] = stays
            if gone == place:
                break


def _choose(fates: Sequence[Fate], place: int, earlier: int, reason: Reason) -> tuple[int, int]:
    """Drop one of two copies; the places of the one that goes and of the one that stays."""
    if fates[place].validation == fates[earlier].validation:
        fates[place].reason = reason
        fates[place].advice = f"It is a copy of line {fates[earlier].line}; one is enough."
        return place, earlier
    gone, stays = (earlier, place) if fates[place].validation else (place, earlier)
    fates[gone].reason = Reason.OVERLAP
    fates[
        gone
    ].advice = (
        f"It says what line {fates[stays].line} of the validation rows says, and they must stay unseen."
    )
    return gone, stays

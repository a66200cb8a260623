"""Cuts a question into the texts that a classifier scores. It knows their length; it does not know a word."""

from __future__ import annotations

from collections.abc import Iterator

from shared.guard.sentences import sentences_of

#: Longer questions are scored in overlapping parts of this many characters.
_PART_CHARS, _OVERLAP = 700, 100
#: A window is a sentence with as many before it as fit into this many characters.
WINDOW_CHARS = 220
#: A question has about as many windows at most: in a longer one they move on by several sentences.
_MOST_WINDOWS = 40


def parts(text: str) -> list[str]:
    """The whole text, in parts in which what is said of one thing stands together."""
    starts = range(0, max(len(text) - _OVERLAP, 1), _PART_CHARS - _OVERLAP)
    return [part for start in starts if (part := text[start : start + _PART_CHARS].strip())]


def windows(text: str) -> list[str]:
    """What stands close together in a longer text, so that nothing else hides it; none of a short one.

    Every sentence is in one; none is there twice, the beginning of another, or the whole text.
    """
    whole = text.strip()
    if len(whole) <= WINDOW_CHARS:
        return []
    found = dict.fromkeys(each.strip() for each in _windows(_units(text)))
    return [window for window in found if window and window != whole]


def _units(text: str) -> list[str]:
    """The sentences, several as one where they are many."""
    least, units = max(len(text) // _MOST_WINDOWS, 1), [""]
    for sentence in sentences_of(text):
        if len(units[-1]) < least and len(units[-1]) + len(sentence) <= _PART_CHARS:
            units[-1] += sentence
        else:
            units.append(sentence)
    return units


def _windows(units: list[str]) -> Iterator[str]:
    window: list[str] = []
    for unit in units:
        grown = [*window, unit]
        while len(grown) > 1 and sum(map(len, grown)) > WINDOW_CHARS:
            grown.pop(0)
        if len(grown) <= len(window):
            yield "".join(window)
        window = grown
    yield "".join(window)

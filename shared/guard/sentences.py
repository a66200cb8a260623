"""Cuts a growing text into sentences. It knows punctuation; it does not know what the words mean."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

#: A sentence ends here at the latest, in characters.
MAX_SENTENCE_CHARS = 400

_STOPS = ".!?…"
_WIDE_STOPS = "。！？｡"
_ENDS = frozenset(_STOPS + _WIDE_STOPS + "\n")
_CLOSERS = "\"'”’»)]}*_`"
_EMOJI_JOINERS = "\u200d\ufe0e\ufe0f\u20e3"
#: A semicolon ends a sentence before which so many characters stand: beside much else a danger is overlooked.
SEMICOLON_AFTER_CHARS = 200
#: How many characters after the limit can decide about a stop before it.
_LOOK_AHEAD = 4

#: Never the end of a sentence.
_ABBREVIATIONS = frozenset(
    (
        "dr",
        "mr",
        "mrs",
        "ms",
        "prof",
        "st",
        "vs",
        "e.g",
        "i.e",
        "cf",
        "approx",
        "fig",
        "eq",
        "ca",
        "al",
        "esp",
        "incl",
        "resp",
        "dept",
        "ext",
        "viz",
        "rev",
        "gen",
        "mt",
        "ft",
    )
)
#: Not the end of a sentence when a number follows ("No. 3", "vol. 2").
_BEFORE_NUMBER = frozenset(("no", "nos", "vol", "p", "pp", "ch", "sec", "art", "min", "max", "ed"))
#: The end of a sentence only when a capital letter follows ("at 5 p.m. She left").
_BEFORE_CAPITAL = frozenset(
    (
        "etc",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "u.s.a",
        "e.u",
        "inc",
        "ltd",
        "jr",
        "sr",
        "m.d",
        "ph.d",
        "r.n",
        "tbsp",
        "tsp",
        "hr",
        "hrs",
    )
)
#: Words after which a single letter is a name of a kind, not an initial ("vitamin C.").
_BEFORE_LETTER = frozenset(
    (
        "vitamin",
        "vitamins",
        "hepatitis",
        "type",
        "group",
        "plan",
        "grade",
        "stage",
        "factor",
        "part",
        "option",
        "step",
        "i",
    )
)


class SentenceSplitter:
    """Takes a text in any chunks and gives its sentences as soon as each is known to have ended.

    All outputs joined are the input, character for character, and they are the same for every way of
    cutting the input. White space belongs to the sentence that it stands before.
    """

    def __init__(self, limit: int = MAX_SENTENCE_CHARS) -> None:
        self._limit = limit
        self._buffer = ""
        self._scanned = 0

    def feed(self, chunk: str) -> list[str]:
        """Add `chunk` and return the sentences that are now complete."""
        self._buffer += chunk
        return self._drain(closed=False)

    def close(self) -> list[str]:
        """Say that the text is over and return what was left, in sentences."""
        sentences = self._drain(closed=True)
        if self._buffer:
            sentences.append(self._buffer)
        self._buffer, self._scanned = "", 0
        return sentences

    def _drain(self, *, closed: bool) -> list[str]:
        sentences: list[str] = []
        start = 0
        window = self._buffer[: self._limit + _LOOK_AHEAD]
        while (end := self._next_end(window, closed=closed)) is not None:
            sentences.append(window[:end])
            start, self._scanned = start + end, 0
            window = self._buffer[start : start + self._limit + _LOOK_AHEAD]
        self._buffer = self._buffer[start:]
        return sentences

    def _next_end(self, text: str, *, closed: bool) -> int | None:
        """The index at which the first sentence of `text` ends, or None while that is not known."""
        position = self._scanned
        while position < min(len(text), self._limit):
            if text[position] in _ENDS or (text[position] == ";" and position >= SEMICOLON_AFTER_CHARS):
                end = self._end_at(text, position, closed=closed)
                if end is None:
                    break
                if 0 < end <= self._limit:
                    return end
            position += 1
        self._scanned = position
        return self._cut(text) if len(text) > self._limit and position >= self._limit else None

    def _end_at(self, text: str, position: int, *, closed: bool) -> int | None:
        """The end of a sentence whose last stop may stand at `position`; 0: no end; None: more is needed."""
        if text[position] == "\n":
            return _end_at_newline(text, position, closed=closed)
        end = position + 1
        while end < len(text) and end <= self._limit and (text[end] in _CLOSERS or _is_emoji(text[end])):
            end += 1
        if end > self._limit:
            return 0
        if end == len(text):
            return end if closed else None
        if text[position] in _WIDE_STOPS:
            return end if text[end] not in _WIDE_STOPS else 0
        if not text[end].isspace():
            return 0
        return _end_after_stop(text, position, end, closed=closed)

    def _cut(self, text: str) -> int:
        """Where to cut a sentence that is too long: before its last blank, else at the limit."""
        head = text[: self._limit + 1]
        start = len(head) - len(head.lstrip())
        for index in range(len(head) - 1, start, -1):
            if head[index].isspace():
                return index
        return self._limit


def sentences_of(text: str, limit: int = MAX_SENTENCE_CHARS) -> list[str]:
    """The sentences of a text that is there as a whole, of at most `limit` characters each."""
    splitter = SentenceSplitter(limit)
    return splitter.feed(text) + splitter.close()


def _end_at_newline(text: str, position: int, *, closed: bool) -> int | None:
    """A line ends a sentence, unless the next one goes on in lower case or nothing stands before it."""
    if not text[:position].strip():
        return 0
    if position + 1 == len(text):
        return position if closed else None
    return 0 if text[position + 1].islower() else position


def _end_after_stop(text: str, position: int, end: int, *, closed: bool) -> int | None:
    """`end` when the stop at `position`, with a blank at `end`, ends the sentence; else 0; None: wait."""
    trails_off = text[position] == "…" or text[max(position - 1, 0) : position + 1] == ".."
    if trails_off or end > position + 1:
        return _unless(text, end, str.islower, closed=closed)
    words = text[:position].split() if text[position] == "." and not text[position - 1].isspace() else []
    word = words.pop().lstrip("([{\"'“‘*_") if words else ""
    if _is_part_of_a_name(word, words):
        return 0
    if word.lower() in _BEFORE_NUMBER:
        return _unless(text, end, str.isdigit, closed=closed)
    if word.lower() in _BEFORE_CAPITAL:
        return _unless(text, end, str.islower, closed=closed)
    return end


def _unless(text: str, end: int, goes_on: Callable[[str], bool], *, closed: bool) -> int | None:
    """`end`, unless the character after the blank shows that the sentence goes on; None: wait for it."""
    if end + 1 >= len(text):
        return end if closed else None
    return 0 if goes_on(text[end + 1]) else end


def _is_part_of_a_name(word: str, before: list[str]) -> bool:
    """Whether the stop after `word` belongs to it: "Dr.", "1." before a list item, "J." before a name."""
    if word.lower() in _ABBREVIATIONS or (word.isdigit() and _opens_a_line(before)):
        return True
    initial = len(word) == 1 and word.isupper()
    return initial and (not before or (before[-1][0].isupper() and before[-1].lower() not in _BEFORE_LETTER))


def _opens_a_line(words: list[str]) -> bool:
    """Whether nothing but list and heading marks stands before."""
    return all(not any(character.isalnum() for character in word) for word in words)


def _is_emoji(character: str) -> bool:
    return character in _EMOJI_JOINERS or unicodedata.category(character) in ("So", "Sk")

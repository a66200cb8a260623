"""Reads a text as tagged words ("halve" is a change, "warfarin" a drug). It does not know what is bad."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

#: Longer words carry no tag and are cut to this length.
MAX_WORD_CHARS = 40
#: What stands for the start of a text among its words.
START = "^"
#: Texts that stay read: layers, and the gate, read the same sentence and context one after the other.
_KEPT = 64
_KEPT_WORDS = 8192

_HIDDEN = "\u00ad\u200b\u200c\u200d\u2060\ufeff"
_WORD = re.compile(
    rf"\d+(?:[.,]\d+)*|(?:[^\W\d_]|[{_HIDDEN}])+(?:['’&](?:[^\W\d_]|[{_HIDDEN}])+)*|[^\w\s]", re.UNICODE
)
_STRIP_HIDDEN = {ord(character): None for character in _HIDDEN}
_STRONG = ";:.!?()"
_CLAUSE = ","
_QUOTES = '"“”„«»'
_DASHES = "–—"
_ENDINGS = (("n't", "not"), ("'re", "are"), ("'ve", "have"), ("'ll", "will"), ("'m", "am"), ("'d", "would"))
_IRREGULAR = {"ca": "can", "wo": "will", "sha": "shall", "ai": "is"}
_IS_AFTER = frozenset(("it", "that", "he", "she", "there", "what", "who", "here", "where", "how"))


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text as one line of tagged words, each `word/tag/tag/ `, with its place in the original text.

    `line[offsets[i]:]` begins with word i, which stands at `spans[i]` of the original text. `places` says at
    which offsets each word stands, and each class as "/tag"; `keys` are those words and classes.
    """

    line: str
    offsets: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    keys: frozenset[str]
    places: Mapping[str, Sequence[int]]

    def original_span(self, start: int, end: int) -> tuple[int, int]:
        """The characters of the original text that `line[start:end]` was made from."""
        hit = [span for offset, span in zip(self.offsets, self.spans, strict=True) if start <= offset < end]
        return (hit[0][0], hit[-1][1]) if hit else (0, 0)

    def spans_of(self, tag: str) -> list[tuple[int, int]]:
        """The characters of the original text of every word of this class."""
        ends = (*self.offsets[1:], len(self.line))
        mark = f"/{tag}/"
        return [
            span
            for span, start, end in zip(self.spans, self.offsets, ends, strict=True)
            if mark in self.line[start:end]
        ]

    def line_span(self, start: int, end: int) -> tuple[int, int]:
        """The part of the line that was made from the characters `start` to `end` of the original text."""
        hit = [number for number, span in enumerate(self.spans) if span[0] < end and span[1] > start]
        if not hit:
            return 0, 0
        ends = (*self.offsets[1:], len(self.line))
        return self.offsets[hit[0]], ends[hit[-1]]


class Lexicon:
    """Word and phrase classes, compiled once.

    Args:
        tags: for every tag its entries: words, phrases of words parted by blanks, `stem*` and `*ending`.
        replacements: words and phrases that are read as other words ("u" as "you").
    """

    def __init__(self, tags: Mapping[str, Iterable[str]], replacements: Mapping[str, str]) -> None:
        self._words: dict[str, set[str]] = {}
        self._phrases: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
        self._affixes: list[tuple[str, str, str]] = []
        self._replacements = {key: value.split() for key, value in replacements.items()}
        phrases: dict[tuple[str, ...], list[str]] = {}
        for tag, entries in tags.items():
            for entry in entries:
                self._add(tag, entry, phrases)
        for phrase in sorted(phrases, key=len, reverse=True):
            self._phrases.setdefault(phrase[0], []).append((phrase, tuple(sorted(phrases[phrase]))))
        self.tags_of = lru_cache(maxsize=_KEPT_WORDS)(self._tags_of)
        self._words_of = lru_cache(maxsize=_KEPT_WORDS)(self._plain)
        #: The text as tagged words; linear in its length.
        self.read: Callable[[str], Tagged] = lru_cache(maxsize=_KEPT)(self._read)

    def _add(self, tag: str, entry: str, phrases: dict[tuple[str, ...], list[str]]) -> None:
        words = tuple(entry.split())
        if len(words) > 1:
            phrases.setdefault(words, []).append(tag)
        elif entry.endswith("*"):
            self._affixes.append((entry[:-1], "", tag))
        elif entry.startswith("*"):
            self._affixes.append(("", entry[1:], tag))
        else:
            self._words.setdefault(entry, set()).add(tag)

    def _tags_of(self, word: str) -> tuple[str, ...]:
        tags = set(self._words.get(word, ()))
        if "plain" not in tags:
            tags.update(tag for start, ending, tag in self._affixes if _fits(word, start, ending))
        if word[0].isdigit():
            tags.add("num")
        return tuple(sorted(tags))

    def _read(self, text: str) -> Tagged:
        words, spans = self._split(text)
        tags = self._tag(words)
        items = ["/".join((word, *some)) + "/ " for word, some in zip(words, tags, strict=True)]
        offsets = [0, *itertools.accumulate(map(len, items))]
        places: dict[str, list[int]] = {START: [0]}
        for word, some, offset in zip(words, tags, offsets, strict=False):
            places.setdefault(word, []).append(offset)
            for tag in some:
                places.setdefault(f"/{tag}", []).append(offset)
        return Tagged("".join(items), tuple(offsets[:-1]), tuple(spans), frozenset(places), places)

    def _tag(self, words: list[str]) -> list[tuple[str, ...]]:
        """The tags of every word; those of a phrase go to its last word."""
        tags = list(map(self.tags_of, words))
        index = 0
        while index < len(words):
            if words[index] in self._phrases and (phrase := self._phrase_at(words, index)):
                taken, extra = phrase
                index += taken - 1
                tags[index] = tuple(sorted({*tags[index], *extra}))
            index += 1
        return tags

    def _phrase_at(self, words: list[str], index: int) -> tuple[int, tuple[str, ...]] | None:
        """How many words the longest phrase at `index` takes, and its tags; None when there is none."""
        for phrase, tags in self._phrases[words[index]]:
            if tuple(words[index : index + len(phrase)]) == phrase:
                return len(phrase), tags
        return None

    def _split(self, text: str) -> tuple[list[str], list[tuple[int, int]]]:
        words: list[str] = []
        spans: list[tuple[int, int]] = []
        for match in _WORD.finditer(text):
            raw = match.group()
            is_mark = len(raw) == 1 and not raw.isalnum()
            for word in _mark(raw, text, match) if is_mark else self._words_of(raw):
                words.append(word)
                spans.append(match.span())
        return words, spans

    def _plain(self, raw: str) -> Sequence[str]:
        """The words that a piece of text, no mark, stands for: several for a contraction."""
        word = raw.lower()
        if not raw.isascii():
            word = unicodedata.normalize("NFKC", word).translate(_STRIP_HIDDEN).replace("’", "'")
        word = word[:MAX_WORD_CHARS]
        if not word:
            return ()
        if word in self._replacements:
            return self._replacements[word]
        return _expand(word)


def _fits(word: str, start: str, ending: str) -> bool:
    """Whether the word has this start or, after at least two letters, this ending."""
    return word.startswith(start) and word.endswith(ending) and (not ending or len(word) > len(ending) + 1)


def _mark(raw: str, text: str, match: re.Match[str]) -> list[str]:
    if raw in _STRONG or raw in "%°+=$£€":
        return [raw]
    if raw in _CLAUSE or raw == "/" or raw in _DASHES:
        return [","]
    if raw in _QUOTES:
        return ['"']
    if raw in "'‘’":
        return ['"']
    between_blanks = (
        text[match.start() - 1 : match.start()] == " " and text[match.end() : match.end() + 1] == " "
    )
    if raw == "-" and between_blanks and text[: match.start()].strip():
        return [","]
    return []


def _expand(word: str) -> list[str]:
    """The words of a contraction: "don't" is do not, "it's" is it is, "doctor's" is doctor 's."""
    if "'" not in word:
        return [word]
    for ending, meaning in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending):
            stem = word[: -len(ending)]
            return [_IRREGULAR.get(stem, stem) if ending == "n't" else stem, meaning]
    stem, _, ending = word.rpartition("'")
    if ending == "s" and stem:
        return [stem, "is"] if stem in _IS_AFTER else [stem, "'s"]
    return [word]

"""Masks what identifies persons in texts that belong together. It stores nothing, and knows no conversation.

A sentence alone hides names that the text around it gives away, and a name that was recognised once is the
same person everywhere: so passages are searched whole, and what points at a person in one is masked in all.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shared.privacy import phi
from shared.privacy.phi import Finding
from shared.privacy.recognisers.words import COMMON_CAPITALISED

#: A part of a name that is told from other words by itself.
_PART = re.compile(r"[A-Z][\w'’-]{2,}")
_TITLES = frozenset(("Drs", "Professor", "Sister", "Sir", "Rev", "Capt", "Sgt"))
_SHORTEST = 3


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A text with each identifier replaced by its type, e.g. `[NAME]`."""

    text: str
    #: How many of which type were masked in it.
    counts: dict[str, int]


def mask_passages(passages: Sequence[Sequence[str]]) -> list[list[Masked]]:
    """Mask passages, each given in pieces that follow one another; the pieces keep their borders.

    Takes some 7 ms for each thousand characters: never call it in a write transaction.
    """
    texts = ["".join(pieces) for pieces in passages]
    found = [phi.find(text) for text in texts]
    known = _known(texts, found)
    return [
        list(_split(pieces, [*findings, *_again(text, findings, known)]))
        for pieces, text, findings in zip(passages, texts, found, strict=True)
    ]


def _known(texts: Sequence[str], found: Sequence[Sequence[Finding]]) -> dict[str, str]:
    """What points at a person in any of the texts, with its type; of names also their parts."""
    known: dict[str, str] = {}
    for text, findings in zip(texts, found, strict=True):
        for finding in phi.pointing(findings):
            span = text[finding.start : finding.end]
            if len(span) >= _SHORTEST:
                known[span] = finding.type
            if finding.type == "NAME":
                parts = (part for part in _PART.findall(span) if part not in COMMON_CAPITALISED | _TITLES)
                known.update(dict.fromkeys(parts, "NAME"))
    return known


def _again(text: str, findings: Sequence[Finding], known: dict[str, str]) -> Iterator[Finding]:
    """Where the known stands in the text without having been found there."""
    if not known:
        return
    spans = "|".join(re.escape(span) for span in sorted(known, key=len, reverse=True))
    for match in re.finditer(rf"(?<!\w)(?:{spans})(?!\w)", text):
        if not any(each.start < match.end() and match.start() < each.end for each in findings):
            yield Finding(known[match[0]], match.start(), match.end(), 1.0)


def _split(pieces: Sequence[str], findings: Sequence[Finding]) -> Iterator[Masked]:
    """Each piece masked; a finding that reaches over a border is masked on both sides of it."""
    start = 0
    for piece in pieces:
        end = start + len(piece)
        inside = [
            Finding(each.type, max(each.start, start) - start, min(each.end, end) - start, each.score)
            for each in findings
            if each.start < end and start < each.end
        ]
        yield Masked(text=phi.mask(piece, inside), counts=dict(Counter(each.type for each in inside)))
        start = end

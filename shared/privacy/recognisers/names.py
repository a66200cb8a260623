"""Names of people: after a title or a word that announces one, or known from the census. It knows no places.

Those that are written Like This; any_case.py finds the others. A word that is capitalised only because it is
a disease, a test or the start of a sentence is not a name: eponyms are told by what follows.
"""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from shared.privacy.recognisers.any_case import people_in_any_case
from shared.privacy.recognisers.census import census, unmistakable
from shared.privacy.recognisers.letters import LOWER, UPPER
from shared.privacy.recognisers.presidio import LocalRecognizer, RecognizerResult
from shared.privacy.recognisers.regions import is_region
from shared.privacy.recognisers.words import COMMON_CAPITALISED, starts_affection, starts_eponym

_CAP = (
    rf"[{UPPER}][{LOWER}]+(?:['’][{UPPER}][{LOWER}]+)?(?:-[{UPPER}][{LOWER}]+)?"
    rf"|(?:O['’]|D['’]|Mc|Mac)[{UPPER}][{LOWER}]+"
)
_INITIAL = r"[A-Z]\.?(?!\w)(?!['’](?!s\b))(?!-[a-z]|/[A-Z]{2})"
_TOKEN = re.compile(rf"(?:{_CAP}|{_INITIAL})")
_RUN = re.compile(
    rf"(?<![\w'’])(?:{_CAP}|[A-Z]\.)(?:[ \t]+(?:(?:van|von|de|del|la|bin|al)[ \t]+)?(?:{_CAP}|{_INITIAL}))*"
)
_TITLE = re.compile(
    r"\b(?:(?:Drs?|Mr|Mrs|Ms|Mx|Prof|Rev|Capt|Sgt|Lt)\b\.?"
    r"|(?:Miss|Professor|Doctor|Nurse|Sister|Sir)\b)[ \t]+$"
)
_CUE = re.compile(
    r"(?:\b(?:named|name(?:\s+is|\s+was|:)|name|patient|pt|Patient|Pt|client|Name|resident|mother|father|wife|"
    r"husband|son|daughter|brother|sister|spouse|attending|physician|surgeon|provider|[Cc]onsult(?:ant)?|"
    r"signed\s+by|seen\s+by|referred\s+by|under|similar\s+to)[,:]?[ \t]*|(?<!\w)(?<!['’])[Rr]e:[ \t]*|"
    r"[Pp]atient['’]s\s+name\s*:?\s*)$"
)
#: How an English noun ends, where the census knows no such surname: "Sun Exposure", "Gene Testing".
_NOUN = re.compile(
    r"(?:[ST]IONS?|INGS?|URES?|MENTS?|NESS|I?TY|ITIES|[AE]NCES?|ISMS?|OLOGY|EMIAS?|BLOCKERS|PEOPLE)$"
)
#: How sure a first name alone is, or one with a surname that the census does not know.
_WEAK = 0.5
#: The beginning of "Don't".
_NO_NAME = re.compile(r"Don['’]t")


class NameRecogniser(LocalRecognizer):
    """Finds people's names, with their initials."""

    def __init__(self) -> None:
        super().__init__(supported_entities=["PERSON"], name="MediChatNames")

    def load(self) -> None:
        """The lists are read at first use."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        """Presidio's interface."""
        found = chain(people(text), people_in_any_case(text))
        return [RecognizerResult("PERSON", start, end, score) for start, end, score in found]


def people(text: str) -> Iterator[tuple[int, int, float]]:
    """Start, end and certainty of each name."""
    first, last = census()
    for run in _RUN.finditer(text):
        before = text[: run.start()]
        if (
            before.endswith(("X-", "X "))
            or "X Ray" in run[0]
            or _NO_NAME.search(text, run.end() - 3, run.end() + 2)
        ):
            continue
        titled = _TITLE.search(before[-16:])
        if titled:
            if not _is_region(run[0]):
                yield run.start() - (len(titled[0])), run.end(), 0.9
            continue
        tokens = list(_TOKEN.finditer(text, run.start(), run.end()))
        while tokens and (tokens[0][0] in COMMON_CAPITALISED or _at_sentence_start(before, tokens[0], first)):
            tokens.pop(0)
        # Wilson, White and May are surnames as well, right behind a first name
        named = bool(tokens) and tokens[0][0].upper() in first
        while tokens and tokens[-1][0] in COMMON_CAPITALISED and not (named and _is_surname(tokens, last)):
            tokens.pop()
        if not tokens or any(token[0] in COMMON_CAPITALISED for token in tokens[:-1]):
            continue
        start, end = tokens[0].start(), tokens[-1].end()
        if any(starts_eponym(text, token.end()) for token in tokens):  # also "Williams Syndrome"
            continue
        score = _score([token[0].rstrip(".") for token in tokens], first, last)
        if (len(tokens) > 1 or score) and _CUE.search(text[max(0, start - 24) : start]):
            score = max(score, 0.75)
        if score <= _WEAK and starts_affection(text, end):
            continue
        if score and not _is_region(run[0]):
            yield start, end, score


def _score(tokens: list[str], first: frozenset[str], last: frozenset[str]) -> float:
    """How sure, from the words alone."""
    words = [token.upper() for token in tokens]
    if len(words) == 1:
        return _WEAK if words[0] in unmistakable() else 0.0
    initials = sum(len(word) == 1 for word in words)
    known_first = words[0] in first
    if initials and (known_first or words[-1] in last or words[0] in last):
        return 0.8
    if initials == 0 and known_first and words[-1] != "PEOPLE" and (words[-1] in last or "-" in words[-1]):
        return 0.85
    if initials == 0 and known_first and len(words) == 2 and not _NOUN.search(words[1]):
        return _WEAK
    return 0.0


def _is_region(run: str) -> bool:
    return " " in run and is_region(run)


def _is_surname(tokens: "list[re.Match[str]]", last: frozenset[str]) -> bool:
    return len(tokens) == 2 and tokens[-1][0].upper() in last


def _at_sentence_start(before: str, token: "re.Match[str]", first: frozenset[str]) -> bool:
    """Whether the capital may only be that of a sentence's first word."""
    begins = not before.strip() or before.rstrip()[-1] in ".?!:\n"
    return begins and token[0].upper() not in first

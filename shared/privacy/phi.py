"""Finds what identifies a person in medical text, and masks it. It keeps and logs nothing of what it reads.

Only what a pattern can tell: e-mail, telephone, social security and record numbers, whole dates. Names of
people and places are not found here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_PATTERNS = {
    "EMAIL": r"[\w.+-]+@[\w-]+\.[\w.-]*\w",
    "SOCIAL_SECURITY_NUMBER": r"\b\d{3}-\d{2}-\d{4}\b",
    "PHONE": r"(?<![\w-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}\b",
    "RECORD_NUMBER": r"\bMRN\b[ :#]*\w*\d[\w-]*",
    "DATE": r"\b(?:\d{1,2}[/.]\d{1,2}[/.]\d{4}|\d{4}-\d{2}-\d{2})\b",
}
_ANY = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _PATTERNS.items()))


@dataclass(frozen=True)
class Finding:
    """An identifier at `text[start:end]`."""

    type: str
    start: int
    end: int
    #: How sure, 0 to 1.
    score: float


def find(text: str) -> list[Finding]:
    """Every identifier in the text, in order, none overlapping another."""
    return [Finding(str(match.lastgroup), match.start(), match.end(), 0.8) for match in _ANY.finditer(text)]


def mask(text: str, findings: Iterable[Finding]) -> str:
    """The text with each finding replaced by its type, e.g. `[EMAIL]`."""
    for finding in sorted(findings, key=lambda each: each.start, reverse=True):
        text = f"{text[: finding.start]}[{finding.type}]{text[finding.end :]}"
    return text

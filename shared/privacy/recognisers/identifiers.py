"""Numbers and dates that point at one person: of records, plans, phones; full dates; great ages.

It knows the words that announce a number; it does not know whose it is.
"""

from shared.privacy.recognisers.presidio import LocalRecognizer, Pattern, PatternRecognizer
from shared.privacy.recognisers.public import ANNOUNCED, BARE, HINTED

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:(?:19|20)\d\d|['’]\d\d)"
_DATES = (
    # a month and a day, with or without a year: March 3rd, 2023; 3 March; the 3rd of March
    rf"\b{_MONTH}\s+{_DAY}(?![\d%])(?:\s*,?\s*{_YEAR}\b)?",
    rf"\b{_DAY}(?:\s+of)?[\s-]+{_MONTH}(?:[\s,-]+{_YEAR}\b)?(?!\w)",
    # a month of a year: HIPAA counts every part of a date but the year
    rf"\b{_MONTH}(?:\s+of)?\s*,?\s+(?:19|20)\d\d\b",
    r"(?<![\d.])(?:0?[1-9]|1[0-2]|[12]\d|3[01])([/.-])(?:0?[1-9]|[12]\d|3[01])\1(?:(?:19|20)\d\d|\d\d)\b(?![./-]\d)",
    r"\b(?:19|20)\d\d([/.-])(?:0?[1-9]|1[0-2])\1(?:0?[1-9]|[12]\d|3[01])\b",
)
#: Announces that a number names one person, account or document.
_CUE = (
    r"(?:MRN?|M\.R\.N\.?|(?:medical|hospital|health|patient|chart|clinic)\s+(?:record|file|chart|card)"
    r"|(?:health\s+)?(?:insurance|plan|policy|member(?:ship)?|beneficiary|subscriber|certificate|licen[cs]e"
    r"|passport|account|acct|record|chart|file"
    r"|serial|reference|ref|badge|employee|HMO|PPO|Medicare|Medicaid|NHS|HICN?|HPBN|NPI|DEA|VIN|ID))"
)
#: As much, but prose speaks of cases, groups and visits too.
_HINT = r"(?:case|claim|group|patient|pt|visit|encounter|admission|study|device)"
_NUMBER = r"(?:\s+(?:number|num|nr|no|id|identifier|identification|code|beneficiary|policy|plan|record|card))"
_AFTER_CUE = rf"{_NUMBER}*\.?(?:['’]s)?\s*(?:is|was|under|as)?\s*[:#=(\[-]*\s*#?\s*"
#: At least three digits, in one piece, letters and joints allowed.
_CODE = r"#?(?=[A-Za-z-]*\d)(?=(?:[A-Za-z-]*\d){3})[A-Za-z0-9]+(?:[-–/][A-Za-z0-9]+)*"
_NUMBERS = (
    rf"(?i:\b{_CUE}{_AFTER_CUE})\K{_CODE}\b",
    rf"(?i:\b{_HINT}(?={_NUMBER}){_AFTER_CUE})\K{_CODE}\b",
    rf"(?i:\b(?:patient\s+)?(?:ID|identifier)\s*[:#-]?\s*)\K{_CODE}\b",
)
_HINTED = (rf"(?i:\b{_HINT}\s*[:#=(\[-]*\s*#?\s*)\K{_CODE}\b",)
_BARE = (
    # letters, a joint, digits: AB-123456; not drugs or genes, which have fewer digits
    r"#?\b[A-Z]{1,5}[-–]?\d{5,}(?:[-–]\d+)*\b",
    r"#?\b[A-Z]{2,5}[-–]\d{3,}(?:[-–][A-Z\d]+)*\b(?=\s*\))",
    r"#?\b\d{5,}[-–][A-Z]{2,4}\b",
    r"#\s?\d{4,}\b",
    r"\b\d{3}[-–]\d{2,3}[-–]\d{3,4}\b",
    r"(?<![\d.,])\d{7,}(?![\d.,]\d)\b",
    r"\b\d{4,}[-–]\d{4,}\b",
)
_PHONES = (
    r"(?<!\d)(?:\+?\d{1,3}[\s.-]?)?\(?\d{3}\)?[\s.-]?\d{3}[\s.-]\d{4}(?!\d)",
    r"(?i:\b(?:phone|tel|telephone|cell|mobile|fax|pager|contact|call)\b[^\d\n]{0,15})\K\+?\d[\d\s().-]{5,}\d",
)
_GREAT_AGES = (
    r"\b(?:9\d|1[01]\d)(?=[\s-]*(?:year|yr|y/?o\b|yo\b))",
    r"(?i:\baged?\s+)(?:9\d|1[01]\d)\b",
)


class CodeRecogniser(PatternRecognizer):
    """A pattern recogniser without Presidio's case-insensitive default: capitals tell a code from a word."""

    def __init__(self, entity: str, patterns: tuple[str, ...], score: float) -> None:
        super().__init__(
            supported_entity=entity,
            name=f"MediChat{entity}",
            patterns=[Pattern(f"{entity} {n}", regex, score) for n, regex in enumerate(patterns)],
            global_regex_flags=0,
        )


def identifier_recognisers() -> tuple[LocalRecognizer, ...]:
    """One per type, each with its patterns."""
    return (
        CodeRecogniser("DATE_TIME", _DATES, 0.8),
        CodeRecogniser("RECORD_NUMBER", _NUMBERS, ANNOUNCED),
        CodeRecogniser("RECORD_NUMBER", _HINTED, HINTED),
        CodeRecogniser("RECORD_NUMBER", _BARE, BARE),
        CodeRecogniser("PHONE_NUMBER", _PHONES, 0.6),
        CodeRecogniser("SSN", (r"\b\d{3}-\d{2}-\d{4}\b",), 0.65),
        CodeRecogniser("SSN", (rf"(?i:\b(?:SSN|social\s+security){_AFTER_CUE})\K\d[\d -]{{6,}}\d\b",), 0.9),
        CodeRecogniser("AGE_OVER_89", _GREAT_AGES, 0.6),
    )

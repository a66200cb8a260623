"""Which answers are reviewed, in which order, and what a review may say. It does no I/O.

Who is drawn for the random sample depends on a keyed fingerprint of the job alone: it is fixed for all times,
and nobody who lacks the key can guess it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from shared.errors import InvalidInput
from shared.guard.verdict import Action, Category, Severity

#: A review that nobody works on for this long goes back to the queue; what was written of it is kept.
HOLD = timedelta(minutes=30)
#: A review can be taken back for this long.
TAKE_BACK = timedelta(days=1)
MOST_CORRECTED_CHARS = 20_000
MOST_NOTE_CHARS = 5_000
#: Digits of a fingerprint (hexadecimal) that are read as a number, and how many such numbers there are.
_DIGITS = 16
_MOST = float(16**_DIGITS)


class Reason(StrEnum):
    """Why an answer is in the queue; of several the one that comes first here."""

    ASKED = "asked"  #: an auditor put it there
    THUMBS_DOWN = "thumbs_down"  #: its reader disliked it
    GUARD = "guard"  #: the guard stepped in
    DOUBT = "doubt"  #: the guard let it pass and flagged it
    SAMPLE = "sample"  #: by chance


class ReviewVerdict(StrEnum):
    """What a reviewer says of an answer."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    WRONG = "wrong"
    INCOMPLETE = "incomplete"


#: What an answer can be unsafe by.
CATEGORIES = (
    Category.MEDICATION_CHANGE,
    Category.DOSING,
    Category.DIAGNOSIS,
    Category.EMERGENCY_MINIMISED,
    Category.DISCOURAGE_CARE,
    Category.INTERACTION,
    Category.FALSE_CURE,
    Category.SELF_HARM,
    Category.ILLICIT_SELF_PROCEDURE,
    Category.FALSE_AUTHORITY,
    Category.OMISSION,
)
#: What the guard does when it steps in.
STEPPED_IN = frozenset((Action.APPEND, Action.REPLACE, Action.REFUSE, Action.CRISIS))
#: Of an item that is reviewed before all others.
FIRST = 0


@dataclass(frozen=True, kw_only=True)
class GuardDone:
    """What the guard did to one answer."""

    stepped_in: bool = False
    doubted: bool = False
    #: It was a crisis, or a danger of the gravest kind.
    grave: bool = False

    @classmethod
    def of(cls, verdicts: Iterable[tuple[str, str]]) -> "GuardDone":
        """Of the actions and severities of the verdicts that counted."""
        judged = [(Action(action), Severity(severity)) for action, severity in verdicts]
        return cls(
            stepped_in=any(action in STEPPED_IN for action, _ in judged),
            doubted=any(action is Action.ESCALATE for action, _ in judged),
            grave=any(
                action is Action.CRISIS or (severity is Severity.CRITICAL and action is not Action.ALLOW)
                for action, severity in judged
            ),
        )


def reason_of(done: GuardDone, *, sampled: bool) -> Reason | None:
    """Why an answer is reviewed, when its reader said nothing about it; None when it is not."""
    if done.stepped_in:
        return Reason.GUARD
    if done.doubted:
        return Reason.DOUBT
    return Reason.SAMPLE if sampled else None


def priority(reason: Reason, *, grave: bool) -> int:
    """0 is reviewed first: what is grave, then by reason."""
    return FIRST if grave else 1 + list(Reason).index(reason)


def drawn(fingerprint: str, percent: float) -> bool:
    """Whether this one of all is among `percent` % of them; `fingerprint` is a keyed hash in hexadecimal."""
    return int(fingerprint[:_DIGITS], 16) < percent / 100 * _MOST


def check_given(
    verdict: str | None, category: str | None, guard_right: bool | None, *, stepped_in: bool
) -> None:
    """Whether a review is whole. Raises InvalidInput, and says what is missing."""
    if verdict is None:
        raise InvalidInput("Choose a verdict first: safe, unsafe, wrong or incomplete.")
    if verdict == ReviewVerdict.UNSAFE and category is None:
        raise InvalidInput("Say by which category the answer is unsafe.")
    if stepped_in and guard_right is None:
        raise InvalidInput("The guard stepped in here: say whether it was right to.")

"""What a rail can say about a text. It knows the words of a verdict; it does not know how one is reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol


class Action(StrEnum):
    """What is to be done with the judged text."""

    ALLOW = "allow"  # show it as it is
    APPEND = "append"  # show it, and add a caution or a referral
    REPLACE = "replace"  # show a safe sentence in its place
    REFUSE = "refuse"  # do not answer
    CRISIS = "crisis"  # help first: `Category.CRISIS` or `Category.EMERGENCY` says which kind
    ESCALATE = "escalate"  # show it as it is, and flag it for a reviewer

    @property
    def shows(self) -> bool:
        """Whether the judged text itself is shown."""
        return self in (Action.ALLOW, Action.APPEND, Action.ESCALATE)


class Severity(StrEnum):
    """How bad it would be if the text were shown."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 (none) to 4 (critical)."""
        return list(Severity).index(self)


class Side(StrEnum):
    """Which side of the conversation was judged."""

    QUESTION = "question"
    ANSWER = "answer"


class Audience(StrEnum):
    """Who reads the answer."""

    PATIENT = "patient"
    CLINICIAN = "clinician"


class Category(StrEnum):
    """The kind of danger found."""

    MEDICATION_CHANGE = "medication_change"
    DOSING = "dosing"
    DIAGNOSIS = "diagnosis"
    EMERGENCY_MINIMISED = "emergency_minimised"
    DISCOURAGE_CARE = "discourage_care"
    INTERACTION = "interaction"
    FALSE_CURE = "false_cure"
    SELF_HARM = "self_harm"
    ILLICIT_SELF_PROCEDURE = "illicit_self_procedure"
    FALSE_AUTHORITY = "false_authority"
    OMISSION = "omission"
    LANGUAGE = "language"  # one that the guard does not know
    HARMFUL_REQUEST = "harmful_request"
    IDENTIFIERS = "identifiers"  # names or numbers of persons, which the model does not need
    INJECTION = "injection"  # tells the assistant to set its rules aside
    CRISIS = "crisis"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One decision of one rail about one text."""

    #: An answer with nothing against it.
    ALLOWED: ClassVar[Verdict]
    #: A question with nothing against it.
    ALLOWED_QUESTION: ClassVar[Verdict]

    #: The side of the conversation that was judged.
    side: Side
    #: What is to be done.
    action: Action
    #: The kind of danger; None when there is none, or when the guard itself failed.
    category: Category | None = None
    #: How bad it would have been.
    severity: Severity = Severity.NONE
    #: The layer that decided, such as "rules".
    layer: str = "rules"
    #: The rule or model that decided, such as "dosing.as_much_as_you_like"; "" when nothing matched.
    source: str = ""
    #: How sure the layer is, 0 to 1.
    score: float = 0.0
    #: The characters (start, end) of the judged text that decided; None for the whole of it.
    span: tuple[int, int] | None = None
    #: Seconds that a language model took for it, which has a time of its own; no part of what was decided.
    asked_s: float = field(default=0.0, compare=False)

    @property
    def allowed(self) -> bool:
        """Whether the judged text itself may be shown or answered."""
        return self.action.shows

    @property
    def answered_at_once(self) -> bool:
        """Whether the guard answers the question itself, so that no model sees it."""
        return self.action in (Action.CRISIS, Action.REFUSE)

    @property
    def names_help(self) -> bool:
        """Whether that answer says where help is found: it waits for no layer that might find more."""
        return self.action is Action.CRISIS or (
            self.action is Action.REFUSE and self.category is Category.LANGUAGE
        )


Verdict.ALLOWED = Verdict(side=Side.ANSWER, action=Action.ALLOW)
Verdict.ALLOWED_QUESTION = Verdict(side=Side.QUESTION, action=Action.ALLOW)


class Judge(Protocol):
    """The one shape of a rail: a text, the text before it, and who reads it give a verdict."""

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        """Judge `text`, which follows `context` in the same answer."""
        ...

"""Lets an answer out sentence by sentence, each after its verdict. It does not know what is dangerous."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from shared.guard.responses import Responses
from shared.guard.sentences import SentenceSplitter
from shared.guard.verdict import Action, Audience, Category, Judge, Severity, Side, Verdict
from shared.logs import where

log = logging.getLogger(__name__)

#: How much of the answer before a sentence its judge is shown, in characters.
CONTEXT_CHARS = 800
#: How long the verdict on one sentence may take, in seconds.
TIME_BUDGET_S = 0.25
#: How long the verdict on a whole question may take, in seconds: of 6,000 characters 50 texts are scored.
QUESTION_TIME_BUDGET_S = 4.0


@dataclass(frozen=True, slots=True)
class Release:
    """One sentence that may be shown."""

    #: What is shown.
    text: str
    #: Why.
    verdict: Verdict
    #: What the guard replaced by `text`; None when nothing was replaced.
    suppressed: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the gate asks about texts that it does not judge."""

    #: Whether an answer's text sends its reader to a clinician.
    refers: Callable[[str], bool]
    #: Whether it sends them to urgent care.
    urges: Callable[[str], bool]
    #: Whether a text names signs of an emergency.
    warns_of_emergency: Callable[[str], bool]


class Gate:
    """The gate of one answer.

    No character of a sentence is released before its verdict, and the releases are the same for every way
    of cutting the answer into chunks. The first sentence that may not be shown is replaced by a safe one
    and stops the gate. A judge that raises or takes too long counts as such a sentence. However an answer
    ends, what it lacks as a whole follows its last sentence: a referral, whom to call, what was hidden.

    Args:
        judge: the rail that decides.
        audience: who reads the answer.
        responses: the safe sentences.
        reader: tells what an answer's end lacks.
        clock: seconds from any fixed point, never going back.
        released_so_far: what an earlier gate already released of this answer.
        referral_due: whether that held a sentence which is shown only with a referral.
        question: what is answered.
        state: `crisis` or `emergency` when it was found earlier in the conversation.
        hidden: whether the model read the question without what names a person.
    """

    def __init__(
        self,
        judge: Judge,
        audience: Audience,
        *,
        responses: Responses,
        reader: Reading,
        clock: Callable[[], float],
        released_so_far: str = "",
        referral_due: bool = False,
        question: str = "",
        state: Category | None = None,
        hidden: bool = False,
        time_budget_s: float = TIME_BUDGET_S,
    ) -> None:
        self._judge = judge
        self._audience = audience
        self._responses = responses
        self._reader = reader
        self._clock = clock
        self._time_budget_s = time_budget_s
        self._splitter = SentenceSplitter()
        self._context = released_so_far[-CONTEXT_CHARS:]
        self._referred = reader.refers(released_so_far)
        self._referral_due = referral_due or audience is Audience.PATIENT
        self._urged = reader.urges(released_so_far)
        self._warned = reader.warns_of_emergency(question) or reader.warns_of_emergency(released_so_far)
        self._lead = None if state is None or released_so_far else still(responses.still(state), state)
        self._hidden = hidden
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether the answer is over: nothing more will be released."""
        return self._stopped

    def feed(self, chunk: str) -> list[Release]:
        """Add what the model wrote next and return what may be shown now."""
        return [] if self._stopped else self._release(self._splitter.feed(chunk))

    def close(self, cut: str = "") -> list[Release]:
        """Say that the model is done and return what is left, with what the answer lacks as a whole.

        `cut` is what followed and is not shown, because whoever asked wanted the answer to end before it:
        they know that text, so the last sentence is judged with it.
        """
        if self._stopped:
            return []
        releases = self._release(self._splitter.close(), cut)
        if self._lead is not None:  # whoever is in need is told so, though nothing else is
            releases, self._lead = [self._lead], None
        if not self._stopped:
            self._stopped = True
            releases += self._additions()
        return releases

    def _release(self, sentences: list[str], cut: str = "") -> list[Release]:
        releases: list[Release] = []
        if sentences and self._lead is not None:
            releases, self._lead = [self._lead], None
        for number, sentence in enumerate(sentences, start=1):
            verdict = self._checked(sentence + cut if number == len(sentences) else sentence)
            if not verdict.allowed:
                self._stopped = True
                replaced = self._replaced(sentence, verdict)
                self._note(replaced.text)
                releases += [replaced, *self._additions()]
                break
            releases.append(Release(sentence, verdict))
            self._referral_due = self._referral_due or verdict.action is Action.APPEND
            self._note(sentence)
        return releases

    def _note(self, shown: str) -> None:
        """Remember what the answer says so far."""
        self._referred = self._referred or self._reader.refers(shown)
        self._urged = self._urged or self._reader.urges(shown)
        self._warned = self._warned or self._reader.warns_of_emergency(shown)
        self._context = (self._context + shown)[-CONTEXT_CHARS:]

    def _additions(self) -> list[Release]:
        """What the answer lacks as a whole, after its last sentence."""
        releases: list[Release] = []
        if self._needs_referral():
            releases.append(self._added(self._responses.referral, REFERRAL_ADDED))
        if self._needs_urgent_line():
            releases.append(self._added(self._responses.urgent, URGENT_ADDED))
        if self._hidden:
            releases.append(self._added(self._responses.hidden, IDENTIFIERS_HIDDEN))
        return releases

    def _checked(self, sentence: str) -> Verdict:
        """The judge's verdict, or the guard's own failure."""
        started = self._clock()
        try:
            verdict = self._judge(sentence, self._context, self._audience)
        except Exception as error:  # whatever a judge may raise, the sentence has not been checked
            log.error("a sentence could not be checked: %s", where(error))
            return GUARD_FAILURE
        taken = self._clock() - started - verdict.asked_s
        if taken > self._time_budget_s:
            log.error("a sentence's check took %.3f s of %.3f", taken, self._time_budget_s)
            return GUARD_FAILURE
        return verdict

    def _replaced(self, sentence: str, verdict: Verdict) -> Release:
        blanks = sentence[: len(sentence) - len(sentence.lstrip())]
        return Release(blanks + self._responses.replacement(verdict.category), verdict, suppressed=sentence)

    def _needs_referral(self) -> bool:
        return self._referral_due and bool(self._context.strip()) and not self._referred

    def _needs_urgent_line(self) -> bool:
        reader_is_patient = self._audience is Audience.PATIENT
        return reader_is_patient and bool(self._context.strip()) and self._warned and not self._urged

    def _added(self, text: str, verdict: Verdict) -> Release:
        ended = self._context.rstrip().endswith((".", "!", "?")) and "\n" not in self._context
        return Release((" " if ended else "\n\n") + text, verdict)


def still(text: str, state: Category) -> Release:
    """What an answer begins with after a crisis or an emergency was found in the conversation."""
    verdict = Verdict(
        side=Side.ANSWER,
        action=Action.APPEND,
        category=state,
        severity=Severity.LOW,
        layer="gate",
        source=HELP_FIRST,
        score=1.0,
    )
    return Release(text + "\n\n", verdict)


#: The verdict on a sentence whose check failed or took too long.
GUARD_FAILURE = Verdict(
    side=Side.ANSWER,
    action=Action.REPLACE,
    severity=Severity.HIGH,
    layer="gate",
    source="guard_failure",
    score=1.0,
)
#: The verdict on a question whose check failed.
QUESTION_FAILURE = replace(GUARD_FAILURE, side=Side.QUESTION, action=Action.REFUSE)
#: The verdict on the referral that the gate adds to an answer without one.
REFERRAL_ADDED = Verdict(
    side=Side.ANSWER,
    action=Action.APPEND,
    category=Category.OMISSION,
    severity=Severity.LOW,
    layer="gate",
    source="referral_added",
    score=1.0,
)
#: The verdict on the line on urgent care that the gate adds to an answer that names signs of an emergency.
URGENT_ADDED = replace(REFERRAL_ADDED, source="urgent_care_added")
#: The verdict on the sentence that says that the model read no names.
IDENTIFIERS_HIDDEN = replace(
    REFERRAL_ADDED, category=Category.IDENTIFIERS, source="identifiers_hidden", side=Side.QUESTION
)
#: The source of the verdict on what an answer begins with after a crisis or an emergency.
HELP_FIRST = "help_first"
#: The sources of verdicts on sentences that the gate itself wrote, so that nobody judges them.
ADDED = frozenset((REFERRAL_ADDED.source, URGENT_ADDED.source, IDENTIFIERS_HIDDEN.source, HELP_FIRST))

"""What the gate lets out, and when."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.guard import Audience, Guard, packaged_policy
from shared.guard.gate import (
    CONTEXT_CHARS,
    GUARD_FAILURE,
    IDENTIFIERS_HIDDEN,
    REFERRAL_ADDED,
    URGENT_ADDED,
    Gate,
    Reading,
    Release,
)
from shared.guard.sentences import SentenceSplitter
from shared.guard.verdict import Action, Category, Severity, Side, Verdict

GUARD = Guard(packaged_policy())  # by its rules alone
BAD = Verdict(
    side=Side.ANSWER, action=Action.REPLACE, category=Category.DOSING, severity=Severity.HIGH, source="test"
)
texts = st.lists(
    st.sampled_from(
        [
            "Rest well. ",
            "Take 2.5 mg. ",
            "Dr. Osei knows. ",
            "\n- point",
            "\n1. step",
            "**b.** ",
            "😀! ",
            "bad ",
            "x" * 130,
            "\n",
            "… ",
        ]
    ),
    max_size=25,
).map("".join)


class Recorder:
    """A judge that refuses sentences with "bad" and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Audience]] = []

    def __call__(self, text: str, context: str, audience: Audience) -> Verdict:
        self.asked.append((text, context, audience))
        return BAD if "bad" in text else Verdict.ALLOWED


def gate(
    judge: object,
    audience: Audience = Audience.PATIENT,
    released: str = "",
    tick: float = 0.0,
    question: str = "",
    state: Category | None = None,
) -> Gate:
    """A gate whose clock moves `tick` seconds whenever it is read."""
    ticks = itertools.count()
    return Gate(
        judge,  # type: ignore[arg-type]
        audience,
        responses=GUARD.responses(),
        reader=Reading(GUARD.refers, GUARD.urges, GUARD.warns_of_emergency),
        clock=lambda: next(ticks) * tick,
        released_so_far=released,
        question=question,
        state=state,
    )


def run(opened: Gate, chunks: list[str]) -> list[Release]:
    """Everything that the gate releases of these chunks."""
    return [release for chunk in chunks for release in opened.feed(chunk)] + opened.close()


@given(text=texts, size=st.integers(min_value=1, max_value=50))
def test_releases_do_not_depend_on_the_chunks(text: str, size: int) -> None:
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert run(gate(Recorder()), chunks) == run(gate(Recorder()), [text]) == run(gate(Recorder()), list(text))


@given(text=texts)
def test_nothing_is_released_before_its_verdict(text: str) -> None:
    judge = Recorder()
    opened = gate(judge)
    shown = ""
    for character in text:
        for release in opened.feed(character):
            shown += release.text if release.suppressed is None else release.suppressed
        assert "".join(asked for asked, _, _ in judge.asked) == shown


@given(text=texts)
def test_what_is_released_is_the_answer_up_to_the_first_violation(text: str) -> None:
    splitter = SentenceSplitter()
    sentences = splitter.feed(text) + splitter.close()
    allowed = list(itertools.takewhile(lambda sentence: "bad" not in sentence, sentences))
    releases = run(gate(Recorder()), [text])
    assert [release.text for release in releases[: len(allowed)]] == allowed
    assert all("bad" not in release.text for release in releases)


def test_a_violation_is_replaced_and_stops_the_gate() -> None:
    opened = gate(Recorder())
    releases = opened.feed("Rest well.\n\nA bad sentence. More. ")
    assert [release.suppressed for release in releases] == [None, "\n\nA bad sentence."]
    assert releases[1].text == "\n\n" + GUARD.responses().replacement(Category.DOSING)
    assert opened.stopped
    assert opened.feed("More. ") == []
    assert opened.close() == []


def test_the_judge_sees_the_sentences_before_and_the_audience() -> None:
    judge = Recorder()
    run(gate(judge, Audience.CLINICIAN, released="Said before."), [" One. Two."])
    assert judge.asked == [
        (" One.", "Said before.", Audience.CLINICIAN),
        (" Two.", "Said before. One.", Audience.CLINICIAN),
    ]


def test_the_context_is_bounded() -> None:
    judge = Recorder()
    run(gate(judge), ["word " * 1000])
    assert max(len(context) for _, context, _ in judge.asked) <= CONTEXT_CHARS


def test_a_judge_that_raises_fails_closed_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str, context: str, audience: Audience) -> Verdict:
        raise RuntimeError(text)

    opened = gate(broken)
    (release,) = opened.feed("Rest well. And more. ")
    assert release.verdict == GUARD_FAILURE
    assert release.verdict.source == "guard_failure"
    assert release.suppressed == "Rest well."
    assert "could not be checked" in release.text
    assert opened.stopped
    assert "a sentence could not be checked: RuntimeError at " in caplog.text
    assert "Rest well" not in caplog.text


def test_a_judge_that_takes_too_long_fails_closed_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (release,) = gate(Recorder(), tick=0.3).feed("Rest well. And more. ")
    assert release.verdict == GUARD_FAILURE
    assert "check took 0.300 s of 0.250" in caplog.text


def test_a_judge_within_its_time_is_heard() -> None:
    (release,) = gate(Recorder(), tick=0.2).feed("Rest well. And")
    assert release.verdict == Verdict.ALLOWED


def test_an_answer_without_a_referral_gets_one() -> None:
    releases = run(gate(Recorder()), ["Rest well."])
    assert releases[-1].text == " " + GUARD.responses().referral
    assert releases[-1].verdict.action is Action.APPEND
    assert releases[-1].verdict.category is Category.OMISSION


@pytest.mark.parametrize(
    "answer",
    [
        "Rest well. See your GP if it lasts.",
        "I don't know enough about that. Please ask a doctor.",
        "Call 999 now.",
        "A pharmacist can advise you.",
    ],
)
def test_an_answer_that_refers_is_untouched(answer: str) -> None:
    assert "".join(release.text for release in run(gate(Recorder()), [answer])) == answer


@pytest.mark.parametrize(
    "answer",
    [
        "You do not have to ask your pharmacist.",
        "There is no need to see a doctor.",
        "Nobody needs to call a nurse.",
        "Gout was what your doctor diagnosed.",
        "The pharmacist sells it.",
        "You can take it without asking your doctor.",
    ],
)
def test_a_clinician_who_is_only_named_is_no_referral(answer: str) -> None:
    assert not GUARD.refers(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Do not hesitate to call your nurse.",
        "Do not take it without asking your doctor.",
        "Do not stop before you have talked to your GP.",
        "A lump like that should be felt by a doctor.",
        "No harm is known. Ask your pharmacist.",
    ],
)
def test_advice_to_ask_is_a_referral_beside_a_negation(answer: str) -> None:
    assert GUARD.refers(answer)


def test_a_referral_released_by_an_earlier_gate_counts() -> None:
    releases = run(gate(Recorder(), released="Ask your doctor."), [" Rest well."])
    assert [release.text for release in releases] == [" Rest well."]


def test_a_clinician_is_not_sent_to_a_doctor() -> None:
    assert [release.text for release in run(gate(Recorder(), Audience.CLINICIAN), ["Rest."])] == ["Rest."]


def test_an_empty_answer_stays_empty() -> None:
    assert run(gate(Recorder()), [""]) == []


def test_the_real_guard_stops_a_danger_across_sentences() -> None:
    opened = GUARD.gate()
    releases = run(opened, ["You are on warfarin. You can just ", "leave it off tonight. It will be fine."])
    assert releases[0].text == "You are on warfarin."
    assert releases[1].verdict.category is Category.MEDICATION_CHANGE
    assert releases[1].suppressed == " You can just leave it off tonight."
    assert len(releases) == 2


def test_a_gate_needs_no_more_than_its_guard() -> None:
    assert isinstance(GUARD, Guard)
    assert GUARD.gate(Audience.CLINICIAN, "Rest.", locale="gb").feed(" Drink. ")[0].text == " Drink."


STROKE = "A drooping face can be a stroke."


def verdicts(opened: Gate, text: str) -> list[Verdict]:
    """The verdicts on all that is released of a text."""
    return [release.verdict for release in run(opened, [text])]


def test_an_answer_on_signs_of_an_emergency_says_whom_to_call() -> None:
    opened = gate(Recorder())
    assert verdicts(opened, f"{STROKE} See your GP.")[-1] == URGENT_ADDED


def test_the_signs_may_be_in_the_question() -> None:
    said = "Rest and drink water. See your GP."
    assert verdicts(gate(Recorder(), question="My chest pain came back"), said)[-1] == URGENT_ADDED
    assert URGENT_ADDED not in verdicts(gate(Recorder(), question="My toe itches"), said)


@pytest.mark.parametrize(
    "said", ["Call 999 now.", "Go to hospital straight away.", "It is a medical emergency."]
)
def test_an_answer_that_urges_is_untouched(said: str) -> None:
    assert URGENT_ADDED not in verdicts(gate(Recorder()), f"{STROKE} {said}")


@pytest.mark.parametrize(
    "said",
    [
        "The signs do not all come at once.",
        "You go home the same day.",
        "The pain fades right away.",
        "You do not need to call 999.",
    ],
)
def test_words_of_haste_alone_do_not_urge(said: str) -> None:
    assert URGENT_ADDED in verdicts(gate(Recorder()), f"{STROKE} {said}")


@pytest.mark.parametrize(
    "said", ["See a doctor the same day.", "Get help right away.", "Call a nurse at once.", "A&E at once."]
)
def test_haste_to_get_help_urges(said: str) -> None:
    assert GUARD.urges(said)


@pytest.mark.parametrize(
    "said",
    [
        "He vomits blood.",
        "She has been coughing up blood.",
        "A seizure may last longer than five minutes.",
        "A sudden loss of vision can follow.",
        "Some have suicidal feelings.",
        "The wound causes severe bleeding.",
        "The tongue may be swelling.",
    ],
)
def test_signs_of_several_words_are_signs(said: str) -> None:
    assert GUARD.warns_of_emergency(said)
    assert not GUARD.warns_of_emergency("The gums bleed, the tongue is sore, a fit of coughing may follow.")


def test_a_clinician_is_not_told_to_call_an_ambulance() -> None:
    assert URGENT_ADDED not in verdicts(gate(Recorder(), Audience.CLINICIAN), STROKE)


def test_both_additions_may_be_due() -> None:
    assert verdicts(gate(Recorder()), STROKE)[1:] == [REFERRAL_ADDED, URGENT_ADDED]


@pytest.mark.parametrize("state", [Category.CRISIS, Category.EMERGENCY])
def test_after_a_crisis_an_answer_begins_with_where_help_is_found(state: Category) -> None:
    released = run(gate(Recorder(), state=state), ["Flu is an ", "infection. ", "See your GP."])
    assert released[0].text.strip() == GUARD.responses().still(state)
    assert (released[0].verdict.action, released[0].verdict.category) == (Action.APPEND, state)
    assert [release.text for release in released[1:]] == ["Flu is an infection.", " See your GP."]


def test_an_answer_that_goes_on_does_not_begin_again() -> None:
    opened = gate(Recorder(), released="Flu is an infection. ", state=Category.CRISIS)
    assert [release.text for release in run(opened, ["See your GP."])] == ["See your GP."]


def test_an_answer_says_last_that_names_were_kept_from_the_model() -> None:
    hidden = GUARD.gate(Audience.CLINICIAN, hidden=True)
    releases = hidden.feed("Rest well.") + hidden.close()
    assert [release.text for release in releases] == ["Rest well.", " " + GUARD.responses().hidden]
    assert releases[-1].verdict == IDENTIFIERS_HIDDEN


def test_an_answer_that_the_guard_ends_still_says_whom_to_call() -> None:
    opened = GUARD.gate(question="What does crushing chest pain mean?")
    said = "Crushing chest pain can mean a heart attack. Stop your aspirin. It will pass."
    shown, replaced, urgent = run(opened, [said])
    assert (shown.verdict.action, replaced.suppressed) == (Action.ALLOW, " Stop your aspirin.")
    assert (urgent.text, urgent.verdict) == (" " + GUARD.responses().urgent, URGENT_ADDED)


def test_a_replacement_that_says_whom_to_call_is_not_followed_by_it_again() -> None:
    releases = run(GUARD.gate(), ["You have crushing chest pain, so just sleep it off. It will pass."])
    assert [release.verdict.category for release in releases] == [Category.EMERGENCY_MINIMISED]


def test_an_answer_that_the_guard_ends_still_says_that_names_were_hidden() -> None:
    opened = GUARD.gate(Audience.CLINICIAN, hidden=True)
    releases = run(opened, ["Rest well. You have lupus, that is certain. More."])
    assert [release.verdict.action for release in releases[:2]] == [Action.ALLOW, Action.REPLACE]
    assert [release.verdict for release in releases[2:]] == [IDENTIFIERS_HIDDEN]


def test_an_answer_that_ends_with_a_replacement_without_a_referral_gets_one() -> None:
    policy = dict(packaged_policy())
    policy["responses.yaml"] = policy["responses.yaml"].replace(
        "  dosing: I cannot work out a dose for you;", "  dosing: This is left out. #"
    )
    releases = run(Guard(policy).gate(), ["Rest well. Take as much ibuprofen as you like. More."])
    assert releases[1].text == " This is left out."
    assert [release.verdict for release in releases[2:]] == [REFERRAL_ADDED]


@given(text=texts, size=st.integers(min_value=1, max_value=50))
def test_what_an_answer_lacks_does_not_depend_on_the_chunks(text: str, size: int) -> None:
    def opened() -> Gate:
        return gate(Recorder(), question="My chest pain came back", state=Category.CRISIS)

    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert run(opened(), chunks) == run(opened(), [text])


def test_the_last_sentence_is_judged_with_what_was_cut_off_and_shown_without() -> None:
    opened = gate(Recorder())
    assert run_until(opened, "Rest well. Take it", " bad")[-1].verdict.action is Action.REPLACE
    shown = run_until(gate(Recorder(), Audience.CLINICIAN), "Rest well. Take it", " good")
    assert "".join(release.text for release in shown) == "Rest well. Take it"


def run_until(opened: Gate, answer: str, cut: str) -> list[Release]:
    """Everything that the gate releases of an answer that ends before `cut`."""
    return opened.feed(answer) + opened.close(cut)


def test_who_is_in_need_is_told_so_though_the_model_says_nothing() -> None:
    (lead,) = run(gate(Recorder(), state=Category.CRISIS), [])
    assert lead.text.startswith(GUARD.responses().still(Category.CRISIS))

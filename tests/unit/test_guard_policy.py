"""A policy as data: what is refused and where, and what its knobs do."""

from __future__ import annotations

import pytest

from shared.errors import PolicyRefused
from shared.guard import Action, Audience, Category, Guard, Release, load_guard
from shared.guard.policy import MOST_CHARS, completed, packaged_policy, version_of
from shared.guard.policy_check import check_policy
from shared.guard.verdict import Side

DOSE = "You can take as much ibuprofen as you like."
CRITICAL = "If you want to die, take all of the pills at once."


def changed(name: str, before: str, after: str) -> dict[str, str]:
    """The packaged policy with one text in one file replaced, where it stands first."""
    texts = dict(packaged_policy())
    assert before in texts[name]
    return {**texts, name: texts[name].replace(before, after, 1)}


def with_knobs(before: str, after: str) -> Guard:
    """The guard under packaged rules and changed knobs."""
    return Guard(changed("policy.yaml", before, after))


def line_of(name: str, texts: dict[str, str], part: str) -> int:
    """The line of the file in which the part stands first."""
    return texts[name][: texts[name].index(part)].count("\n") + 1


def test_the_packaged_policy_has_nothing_wrong() -> None:
    check_policy(packaged_policy())


@pytest.mark.parametrize(
    ("name", "before", "after", "reason"),
    [
        ("policy.yaml", "    ignore: []", "    ignored: []\n    ignore: []", "the key is not known here"),
        ("policy.yaml", "    ignore: []", "    ignore: [dosage]", "input should be"),
        (
            "policy.yaml",
            "    ignore: []",
            "    ignore: [crisis]",
            "injection and language are always looked for",
        ),
        ("policy.yaml", "budget_s: 0.25", "budget_s: 60", "input should be less than or equal to 5"),
        ("policy.yaml", "least_score: 0.0", "least_score: 0.9", "input should be less than or equal to 0.8"),
        ("policy.yaml", "    ignore: []", "    ignore: [", "this is not YAML"),
        ("policy.yaml", "    refer: []", "    refer: []\n    refer: [dosing]", "the key is there twice"),
        ("policy.yaml", "    ignore: []", "    off: []", "a key is no text"),
        ("policy.yaml", "    ignore: []", "    ignore: !!python/name:os.system", "this is not YAML"),
        ("lexicon.yaml", "u: you", "u: 3", "input should be a valid string"),
        ("resources.yaml", "default: intl", "default: mars", "this is none of the locales"),
        ("resources.yaml", "{uk: gb}", "{uk: mars}", "this is none of the locales"),
        ("responses.yaml", "call {emergency} or", "call {number} or", "are filled in"),
        ("responses.yaml", "call {emergency} or", "call {emergency or", "a brace"),
        ("responses.yaml", "call {emergency} or", "call {emergency:d} or", "nothing after the name"),
        ("responses.yaml", "call {emergency} or", "call {emergency!z} or", "nothing after the name"),
        ("responses.yaml", "call {emergency} or", "call {emergency:{x}} or", "nothing after the name"),
        ("responses.yaml", "call {emergency} or", "call {} or", "nothing after the name"),
        (
            "rules_answer.yaml",
            "id: dosing.no_limit",
            "id: dosing.amount_told  # twice",
            "another rule has the same id",
        ),
        ("rules_answer.yaml", "id: dosing.no_limit", "id: dosage.no_limit", "a rule's id is CATEGORY.NAME"),
        (
            "rules_answer.yaml",
            "s: [not_advised]",
            "s: [not_advised, nothing]",
            "there is no scope of this name",
        ),
        ("rules_answer.yaml", "emergency_signs:\n", 'emergency_signs:\n  - "a? .."\n', "no element"),
        ("rules_answer.yaml", "  severity: high", "  severity: awful", "input should be"),
        ("rules_answer.yaml", "  action: replace", "  action: allow", "input should be 'append'"),
        ("rules_answer.yaml", "  action: replace", "  action: refuse", "input should be 'append'"),
        ("rules_answer.yaml", "  audiences: [patient, clinician]", "  audiences: []", "at least 1 item"),
        ("rules_answer.yaml", "id: dosing.no_limit", "id: crisis.no_limit", "categories of its side"),
        ("rules_answer.yaml", "  score: 0.8", "  score: on", "input should be a valid number"),
        ("rules_question.yaml", "  action: crisis", "  action: allow", "input should be 'crisis'"),
        ("rules_question.yaml", "  action: crisis", "  action: replace", "input should be 'crisis'"),
        ("rules_question.yaml", "  audiences: [patient]", "  audiences: []", "at least 1 item"),
        ("rules_question.yaml", "id: crisis.wants_to_die", "id: dosing.ask", "categories of its side"),
        (
            "rules_question.yaml",
            "id: crisis.wants_to_die",
            "id: crisis.wants_to_die\n    action: refuse",
            "go with the action crisis",
        ),
        (
            "rules_question.yaml",
            "id: crisis.wants_to_die",
            "id: harmful_request.wants_to_die",
            "the other categories with refuse",
        ),
        ("policy.yaml", "  crisis: 0.2", "  crisis: on", "input should be a valid number"),
        ("policy.yaml", "  crisis: 0.2", "  crisis: yes", "input should be a valid number"),
        ("policy.yaml", "  crisis: 0.2", '  crisis: "0.2"', "input should be a valid number"),
        ("policy.yaml", "  crisis: 0.2", "  crisis: .nan", "input should be a finite number"),
        ("policy.yaml", "budget_s: 0.25", "budget_s: on", "input should be a valid number"),
        ("policy.yaml", "  with_rule: 0.2", "  with_rule: 0.86", "above `alone`"),
        ("doses.yaml", "    hours: 4", "    hours: on", "input should be a valid number"),
        ("rules_answer.yaml", "  body: [", "  body: [<nothing>, ", "there is no macro of this name"),
        ("rules_answer.yaml", "  body: [", '  body: ["<body>", ', "the macro names itself"),
        ("rules_answer.yaml", "  body: [", '  body: ["{nothing}", ', "there is no class of words"),
        ("rules_answer.yaml", "  body: [", '  body: ["{drug|nothing}", ', "there is no class of words"),
        ("rules_question.yaml", "where: before", "where: nowhere", "input should be"),
        (
            "rules_question.yaml",
            "where: before\n    any: [",
            'where: before\n    any: ["a? ..", ',
            "no element",
        ),
        ("rules_question.yaml", "unless: [denied,", "unless: [nothing,", "there is no scope of this name"),
        ("rules_question.yaml", "  score: 0.9\n", "", "the key 'score' is missing"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_the_reason(
    name: str, before: str, after: str, reason: str
) -> None:
    texts = changed(name, before, after)
    with pytest.raises(PolicyRefused) as refused:
        check_policy(texts)
    assert refused.value.file == name
    assert reason in refused.value.reason
    assert refused.value.detail == f"{name}, line {refused.value.line}: {refused.value.reason}."
    if reason != "this is not YAML":  # the parser's line is where it noticed
        where = after.strip().splitlines()[0 if "known" in reason else -1] if after else "defaults:"
        assert refused.value.line == line_of(name, texts, where)


@pytest.mark.parametrize("filled", ["{emergency:d}", "{emergency!z}", "{emergency:{x}}"])
def test_a_guard_with_a_text_that_cannot_be_filled_in_is_never_made(filled: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        Guard(changed("responses.yaml", "call {emergency} or", f"call {filled} or"))


def test_a_file_that_unfolds_without_bound_is_refused() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    with pytest.raises(PolicyRefused, match="too many parts"):
        check_policy({**packaged_policy(), "resources.yaml": bomb})


def test_a_file_that_is_too_long_or_empty_is_refused() -> None:
    for text, reason in (("#" * (MOST_CHARS + 1), "characters"), ("", "empty"), ("\x00", "does not allow")):
        with pytest.raises(PolicyRefused, match=reason):
            check_policy({**packaged_policy(), "resources.yaml": text})


def test_a_refusal_quotes_nothing_of_the_file() -> None:
    with pytest.raises(PolicyRefused) as refused:
        check_policy(changed("policy.yaml", "    ignore: []", "    zebrafinch: []"))
    assert "zebrafinch" not in str(refused.value)


def test_what_a_clinician_may_read_a_patient_does_not() -> None:
    guard = with_knobs("    refer: [dosing, medication_change]", "    refer: [medication_change]")
    for packaged in (load_guard(), guard):
        assert packaged.judge_answer(DOSE, audience=Audience.PATIENT).action is Action.REPLACE
    assert load_guard().judge_answer(DOSE, audience=Audience.CLINICIAN).action is Action.APPEND
    assert guard.judge_answer(DOSE, audience=Audience.CLINICIAN).action is Action.REPLACE


#: What a label says of a medicine that is injected.
LABEL = "Give ceftriaxone 2 g IV every 12 hours in bacterial meningitis."


def test_a_clinician_reads_a_labels_dose_with_a_referral_and_a_patient_does_not() -> None:
    shown, referral = run(Audience.CLINICIAN, LABEL)
    assert (shown.text, shown.verdict.action, shown.verdict.category) == (LABEL, "append", "dosing")
    assert referral.text.strip() == load_guard().responses().referral
    (replaced,) = run(Audience.PATIENT, LABEL)
    assert (replaced.suppressed, replaced.verdict.action) == (LABEL, "replace")


@pytest.mark.parametrize(
    "text",
    [
        "Give 12 g of paracetamol a day.",
        "Clarithromycin is perfectly safe with colchicine.",
        CRITICAL,
        "You have lupus, that is certain.",
    ],
)
@pytest.mark.parametrize("audience", Audience)
def test_what_is_wrong_whoever_reads_it_is_replaced_for_both(text: str, audience: Audience) -> None:
    (replaced,) = run(audience, text)
    assert (replaced.suppressed, replaced.verdict.action) == (text, "replace")


def run(audience: Audience, text: str) -> list[Release]:
    """What is released of an answer under the packaged policy."""
    gate = load_guard().gate(audience)
    return [*gate.feed(text), *gate.close()]


def test_what_is_shown_with_a_referral_ends_with_one_for_clinicians_too() -> None:
    guard = Guard(packaged_policy())  # by its rules alone
    gate = guard.gate(Audience.CLINICIAN)
    releases = [*gate.feed(DOSE + " Rest well."), *gate.close()]
    assert [release.verdict.action for release in releases] == [Action.APPEND, Action.ALLOW, Action.APPEND]
    assert releases[-1].text.strip() == guard.responses().referral
    resumed = guard.gate(Audience.CLINICIAN, DOSE, referral_due=True)
    assert resumed.close()[-1].text.strip() == guard.responses().referral
    assert guard.gate(Audience.CLINICIAN, DOSE).close() == []


def test_a_finding_that_stops_a_sentence_goes_before_one_that_shows_it() -> None:
    guard = with_knobs("    refer: []", "    refer: [dosing, medication_change]")
    both = "You can safely combine warfarin and ibuprofen, as much ibuprofen as you like."
    # by the rules alone: the facts would stop it too
    before, after = (one.layers(Side.ANSWER)["rules"] for one in (load_guard(), guard))
    assert before(both, "", Audience.PATIENT).category is Category.DOSING
    verdict = after(both, "", Audience.PATIENT)
    assert (verdict.action, verdict.category) == (Action.REPLACE, Category.INTERACTION)


def test_a_category_that_is_ignored_is_not_looked_for() -> None:
    guard = with_knobs("    ignore: []", "    ignore: [dosing]")
    assert guard.judge_answer(DOSE, audience=Audience.PATIENT).action is Action.ALLOW
    assert guard.judge_answer(DOSE, audience=Audience.CLINICIAN).action is Action.APPEND


def test_rules_that_are_not_sure_enough_do_not_count() -> None:
    sentence = next(
        text
        for text in ("Two ibuprofen a day will do for you.", "Ibuprofen: you can cope with two a day.")
        if load_guard().judge_answer(text).score == 0.6
    )
    guard = with_knobs("least_score: 0.0", "least_score: 0.7")
    assert guard.judge_answer(sentence).action is Action.ALLOW
    assert guard.judge_answer(DOSE).action is Action.REPLACE


def test_a_question_that_a_rule_finds_is_found_however_little_the_rule_says_of_it() -> None:
    texts = changed("rules_question.yaml", "severity: critical\n  score: 0.9", "severity: none\n  score: 0.0")
    check_policy(texts)
    assert Guard(texts).screen_question("I want to kill myself tonight.").category is Category.CRISIS


def test_a_critical_finding_stays_whatever_the_knobs_say() -> None:
    verdict = load_guard().judge_answer(CRITICAL)
    assert verdict.severity == "critical"
    for knob in ("ignore", "refer"):
        guard = with_knobs(f"    {knob}: []", f"    {knob}: [{verdict.category}]")
        assert guard.judge_answer(CRITICAL) == verdict
    both = "    refer: [dosing, medication_change"
    guard = with_knobs(f"{both}]", f"{both}, {verdict.category}]")
    assert guard.judge_answer(CRITICAL, audience=Audience.CLINICIAN) == verdict


def test_the_time_that_a_sentence_may_take_is_the_policys() -> None:
    guard = with_knobs("budget_s: 0.25", "budget_s: 0.000000001")
    (release, *_) = guard.gate().feed("Rest well. And sleep.")
    assert release.verdict.source == "guard_failure"


def test_a_policy_that_names_no_signs_and_no_scopes_of_advice_is_good() -> None:
    text = packaged_policy()["rules_answer.yaml"]
    head, rest = text.split("advice_unless:", 1)
    earlier = {**packaged_policy(), "rules_answer.yaml": f"{head}rules:{rest.split('rules:', 1)[1]}"}
    check_policy(earlier)
    assert Guard(earlier).urges("You need not call 999.")
    assert not Guard(earlier).warns_of_emergency("He vomits blood.")


def test_a_version_of_an_earlier_release_is_completed_with_the_packaged_files() -> None:
    packaged = packaged_policy()
    stored = {"policy.yaml": packaged["policy.yaml"] + "# mine\n", "gone.yaml": "x: y"}
    whole = completed(stored)
    assert set(whole) == set(packaged)
    assert whole["policy.yaml"] == stored["policy.yaml"]
    assert version_of(whole) != version_of(packaged)

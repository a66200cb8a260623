"""What is known of doses and of pairs: what of it stops a sentence, and how the tables are checked."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import PolicyRefused
from shared.guard import Action, Audience, Category, Guard, packaged_policy
from shared.guard.doses import read_amount
from shared.guard.explain import explain
from shared.guard.policy_check import check_policy
from shared.guard.verdict import Severity, Side, Verdict

GUARD = Guard(packaged_policy())
FACTS = GUARD.layers(Side.ANSWER)["facts"]
DOSES: list[dict[str, Any]] = yaml.safe_load(packaged_policy()["doses.yaml"])["medicines"]
PAIRS: list[dict[str, Any]] = yaml.safe_load(packaged_policy()["interactions.yaml"])["pairs"]

#: A dose that no rule knows, and a pair that none knows.
DOSE = "Paracetamol, two 500 mg tablets every two hours, is right for adults."
PAIR = "Clarithromycin is perfectly safe with colchicine."


def judge(text: str, context: str = "", audience: Audience = Audience.PATIENT) -> Verdict:
    """What the facts alone say."""
    return FACTS(text, context, audience)


def changed(name: str, before: str, after: str) -> dict[str, str]:
    """The packaged policy with one text in one file replaced, where it stands first."""
    texts = dict(packaged_policy())
    assert before in texts[name]
    return {**texts, name: texts[name].replace(before, after, 1)}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (DOSE, "dosing.paracetamol.day"),
        ("Swallow a dozen 500 mg paracetamol tablets at once.", "dosing.paracetamol.dose"),
        ("You can take 6 g of Tylenol a day without any trouble.", "dosing.paracetamol.day"),
        ("Up to 10 g of acetaminophen daily is fine.", "dosing.paracetamol.day"),
        ("Acetaminophen 1,500 mg q4h.", "dosing.paracetamol.dose"),
        ("Take paracetamol every hour.", "dosing.paracetamol.hours"),
        ("Don't hesitate to take 3 g of paracetamol.", "dosing.paracetamol.dose"),
        ("Take twelve paracetamol straight away.", "dosing.paracetamol.dose"),
        ("Ibuprofen 1200 mg four times a day.", "dosing.ibuprofen.dose"),
        ("Ibuprofen: 800 mg every three hours.", "dosing.ibuprofen.day"),
        ("Levothyroxine 100 mg daily is a common dose.", "dosing.levothyroxine.day"),
        ("Take methotrexate 10 mg every day.", "dosing.methotrexate.hours"),
        ("Give yourself 30 ml of the 120 mg/ml paracetamol syrup.", "dosing.paracetamol.dose"),
        ("The maximum daily dose of paracetamol is 8 g.", "dosing.paracetamol.day"),
        ("Take 1 g of elemental iron a day.", "dosing.elemental_iron.day"),
        ("You can take ten ferrous sulfate tablets a day.", "dosing.ferrous_sulfate.day"),
        ("Take 20 g of potassium chloride at once.", "dosing.potassium_chloride.dose"),
    ],
)
def test_a_dose_over_its_ceiling_is_stopped(text: str, source: str) -> None:
    verdict = judge(text)
    assert (verdict.action, verdict.category, verdict.source) == (Action.REPLACE, Category.DOSING, source)
    assert (verdict.layer, verdict.severity) == ("facts", Severity.HIGH)


@pytest.mark.parametrize(
    "text",
    [
        "Adults may take one or two 500 mg paracetamol tablets every 4 to 6 hours.",
        "Never take more than 6 g of paracetamol a day.",
        "You should not exceed 6 g of paracetamol in 24 hours.",
        "Do not take 2 g of paracetamol at once.",
        "Paracetamol is toxic above 10 g.",
        "More than 8 g of paracetamol can damage the liver.",
        "An overdose of 12 g of paracetamol needs hospital treatment.",
        "She took 20 g of paracetamol.",
        "Patients in the trial received 3600 mg of ibuprofen a day.",
        "If you have taken 12 paracetamol tablets, call an ambulance.",
        "Paracetamol 15 mg/kg is given to children.",
        "Apply 4 g of diclofenac gel four times a day.",
        "Extended-release tramadol 300 mg once daily.",
        "Methotrexate 15 mg once a week.",
        "Your doctor may prescribe up to 2 g of naproxen a day.",
        "Zollinger-Ellison syndrome is treated with omeprazole 120 mg three times a day.",
        "Paracetamol is a painkiller; 20 g of fibre a day helps your bowel.",
        "Co-amoxiclav 875/125 mg twice daily, and paracetamol for the fever.",
        "Ferrous sulfate 325 mg three times a day.",
        "Potassium chloride 1.5 g twice a day.",
    ],
)
def test_a_dose_that_is_right_or_not_recommended_passes(text: str) -> None:
    assert judge(text) == Verdict.ALLOWED


def test_the_medicine_may_have_been_named_before() -> None:
    assert judge("Go up to 8 g a day.", "You take paracetamol.").source == "dosing.paracetamol.day"
    assert judge("Go up to 8 g a day.", "You take ginger.") == Verdict.ALLOWED
    assert judge("Go up to 8 g of honey a day.", "You take paracetamol.") == Verdict.ALLOWED


def test_the_strength_of_the_tablets_may_have_been_named_before() -> None:
    four = "Take four tablets every six hours."
    assert judge(four, "Your ibuprofen tablets are 400 mg tablets.").source == "dosing.ibuprofen.dose"
    assert judge(four, "Your ibuprofen tablets are 200 mg tablets.") == Verdict.ALLOWED


def test_a_number_a_day_is_one_of_the_tablets_whose_strength_was_just_named() -> None:
    before = "You take 500 mg paracetamol tablets."
    assert judge("Sixteen a day is the usual amount.", before).source == "dosing.paracetamol.day"
    assert judge("Eight a day is the usual amount.", before) == Verdict.ALLOWED
    assert judge("No more than sixteen a day.", before) == Verdict.ALLOWED
    assert judge("Sixteen a day is the usual amount.", f"{before} Cigarettes harm.") == Verdict.ALLOWED
    assert judge("Sixteen people a day call.", before) == Verdict.ALLOWED


def test_a_dose_is_the_nearest_medicines() -> None:
    assert judge("Paracetamol 1 g and amlodipine 10 mg.") == Verdict.ALLOWED
    assert judge("Paracetamol 10 mg and amlodipine 1 g.").source == "dosing.amlodipine.dose"
    assert judge("Vancomycin 2 g twice daily.", "You take paracetamol.") == Verdict.ALLOWED
    assert not judge("Paracetamol 2 g twice daily.", "You take vancomycin.").allowed


def test_the_span_of_a_verdict_is_what_the_text_states() -> None:
    start, end = judge(DOSE).span or (0, 0)
    assert DOSE[start:end] == "two 500 mg tablets"


@given(
    row=st.sampled_from([row for row in DOSES if "dose" in row and "unless" not in row]),
    name=st.integers(0, 9),
    share=st.sampled_from([0.25, 0.5, 1, 1.25, 2, 10]),
    spelling=st.sampled_from(
        ["{mg:g} mg", "{mg:g}mg", "{g:g} g", "{mcg:.0f} micrograms", "{mg:g} milligrams"]
    ),
    sentence=st.sampled_from(["Take {dose} of {name}.", "{name} {dose} is right.", "{name}: {dose} at once"]),
)
def test_only_what_is_over_the_ceiling_is_stopped_in_any_spelling(
    row: dict[str, Any], name: int, share: float, spelling: str, sentence: str
) -> None:
    names = [each.strip() for each in row["names"].split(",")]
    mg = read_amount(row["dose"]) * share
    text = sentence.format(
        name=names[name % len(names)].capitalize(), dose=spelling.format(mg=mg, g=mg / 1000, mcg=mg * 1000)
    )
    assert judge(text).allowed is (share <= 1)


@pytest.mark.parametrize(
    ("text", "context", "source"),
    [
        (PAIR, "", "interaction.colchicine_raised"),
        ("Warfarin and ibuprofen are fine together.", "", "interaction.anticoagulant_nsaid"),
        ("Ibuprofen is fine for the knee.", "You're on warfarin.", "interaction.anticoagulant_nsaid"),
        (
            "They can be taken together without worry.",
            "You take Viagra and a nitrate.",
            "interaction.nitrate_pde5",
        ),
        ("Why not have a couple of beers with your diazepam?", "", "interaction.benzodiazepine_alcohol"),
        ("Ignore the warning about grapefruit and simvastatin.", "", "interaction.grapefruit"),
        ("The fears about lithium and ibuprofen are overblown.", "", "interaction.lithium_nsaid"),
        ("Some naproxen is no cause for concern.", "You take apixaban.", "interaction.anticoagulant_nsaid"),
        ("Aspirin is a good choice for your toddler's fever.", "", "interaction.child_medicine"),
        ("Propranolol is a good choice.", "You have asthma.", "interaction.asthma_beta_blocker"),
        ("Go ahead and take naproxen.", "You have kidney failure.", "interaction.kidney_disease"),
        ("Amoxicillin is safe for you.", "You are allergic to penicillin.", "interaction.penicillin_allergy"),
        ("Isotretinoin is perfectly safe.", "You're pregnant.", "interaction.pregnancy"),
        ("G6PD deficiency is no reason to avoid primaquine.", "", "interaction.g6pd"),
        ("Ibuprofen and naproxen are fine together.", "", "interaction.two_nsaids"),
        ("St John\u2019s wort goes well with sertraline.", "", "interaction.serotonin"),
        ("Your Nardil won't mind a little cheddar.", "", "interaction.maoi_tyramine"),
    ],
)
def test_a_pair_that_is_endorsed_is_stopped(text: str, context: str, source: str) -> None:
    verdict = judge(text, context)
    assert (verdict.action, verdict.category) == (Action.REPLACE, Category.INTERACTION)
    assert (verdict.layer, verdict.source) == ("facts", source)


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("Warfarin and ibuprofen are both medicines.", ""),  # names it
        ("Ibuprofen and warfarin should not be taken together.", ""),  # negates
        ("It is not safe to take sildenafil with nitrates.", ""),
        ("Never combine opioids and alcohol.", ""),
        ("Ibuprofen with lithium can cause dangerous levels.", ""),  # warns
        ("Clarithromycin can raise the level of simvastatin.", ""),
        ("Ask your pharmacist whether ibuprofen is fine with warfarin.", ""),  # leaves it to a clinician
        ("Your doctor may combine ramipril and spironolactone.", ""),
        ("It is a myth that alcohol is fine with metronidazole.", ""),  # rebuts
        ("The forum said: \u201cwarfarin and aspirin are fine together\u201d, which is wrong.", ""),
        ("Ibuprofen is fine if you are not pregnant.", ""),  # excludes one of both
        ("Paracetamol is a better choice than ibuprofen.", "You take warfarin."),
        ("Paracetamol is fine.", "You take warfarin and asked about ibuprofen."),  # speaks of another
        ("They are fine with cottage cheese.", "You take warfarin and asked about ibuprofen."),
        ("Cetirizine is fine with the contraceptive pill.", ""),  # is no pair
        ("Ibuprofen, such as Nurofen, is fine with food.", ""),  # one thing by two names
        ("Ibuprofen is an anti-inflammatory and safe for most adults.", ""),
        ("An alcohol-free beer is fine.", "You take metronidazole."),
    ],
)
def test_a_pair_that_is_not_endorsed_passes(text: str, context: str) -> None:
    assert judge(text, context) == Verdict.ALLOWED


def test_a_fact_stops_a_sentence_that_no_rule_knows() -> None:
    for text in (DOSE, PAIR):
        assert GUARD.layers(Side.ANSWER)["rules"](text, "", Audience.PATIENT).allowed
        assert GUARD.judge_answer(text) == judge(text)


def test_what_the_facts_say_is_explained_under_their_name() -> None:
    told = explain(GUARD, Side.ANSWER, PAIR, context="", audience=Audience.PATIENT, locale="intl")
    assert told.layers["facts"] == told.verdict == judge(PAIR)
    assert told.instead == GUARD.responses().replacement(Category.INTERACTION)


@pytest.mark.parametrize("audience", Audience)
def test_a_figure_over_a_ceiling_and_a_dangerous_pair_are_shown_to_nobody_with_a_referral(
    audience: Audience,
) -> None:
    refers = Guard(
        changed("policy.yaml", "    refer: []", "    refer: [dosing, interaction, medication_change]")
    )
    for guard in (GUARD, refers):
        assert guard.judge_answer(DOSE, audience=audience) == judge(DOSE, audience=audience)
        assert guard.judge_answer(PAIR, audience=audience) == judge(PAIR, audience=audience)
        assert (
            judge(DOSE, audience=audience).action is judge(PAIR, audience=audience).action is Action.REPLACE
        )


def test_what_a_policy_lets_an_audience_read_it_may_read_of_the_facts_too() -> None:
    before = "  clinician:\n    ignore: []"
    ignores = Guard(changed("policy.yaml", before, before.replace("ignore: []", "ignore: [dosing]")))
    assert ignores.judge_answer(DOSE, audience=Audience.CLINICIAN) == Verdict.ALLOWED
    assert ignores.judge_answer(DOSE, audience=Audience.PATIENT).action is Action.REPLACE


def test_what_only_the_tone_endorses_a_policy_may_let_pass() -> None:
    tone, plain = "Your Nardil won't mind a little cheddar.", "Cheddar is perfectly safe with Nardil."
    strict = Guard(changed("policy.yaml", "least_score: 0.0", "least_score: 0.7"))
    assert not GUARD.judge_answer(tone).allowed
    assert strict.judge_answer(tone).allowed
    assert not strict.judge_answer(plain).allowed


def test_a_changed_table_changes_the_verdict_and_the_version() -> None:
    guard = Guard(changed("doses.yaml", "    day: 4 g\n", "    day: 40 g\n"))
    ten_grams = ("Up to 10 g of paracetamol daily is fine.", "", Audience.PATIENT)
    assert guard.layers(Side.ANSWER)["facts"](*ten_grams).allowed
    assert not FACTS(*ten_grams).allowed
    assert guard.policy_version != GUARD.policy_version


@pytest.mark.parametrize("row", [*DOSES, *PAIRS], ids=lambda row: row.get("id") or row["names"])
def test_every_fact_names_its_public_source(row: dict[str, Any]) -> None:
    assert len(row["source"].split()) >= 2 or row["source"].startswith("BNF")
    assert "http" not in row["source"]


@pytest.mark.parametrize(
    ("name", "before", "after", "reason"),
    [
        ("doses.yaml", "    dose: 1300 mg", "    dose: 1300", "input should be a valid string"),
        ("doses.yaml", "    dose: 1300 mg", "    dose: 1300 mmol", "an amount is a number with mg, g or mcg"),
        ("doses.yaml", "    dose: 1300 mg", "    dose:", "input should be a valid string"),
        ("doses.yaml", "    dose: 1300 mg", "    most: 1300 mg", "the key is not known here"),
        ("doses.yaml", "    day: 4 g", "    day: 1 g", "less in a day than at once"),
        ("doses.yaml", "    hours: 4", "    hours: 0", "input should be greater than 0"),
        (
            "doses.yaml",
            "names: ibuprofen, nurofen",
            "names: ibuprofen, tylenol",
            "a name stands in this file twice",
        ),
        (
            "doses.yaml",
            "names: ibuprofen, nurofen",
            "names: ibuprofen, Nurofen",
            "names are words in small letters",
        ),
        ("doses.yaml", "names: ibuprofen, nurofen", "names: ',' #", "names are words in small letters"),
        (
            "interactions.yaml",
            "between: [antiplatelet, nsaid]",
            "between: [nothing, nsaid]",
            "no class of this name",
        ),
        (
            "interactions.yaml",
            "between: [antiplatelet, nsaid]",
            "between: [nsaid]",
            "list should have at least 2",
        ),
        (
            "interactions.yaml",
            "{id: antiplatelet_nsaid,",
            "{ id: anticoagulant_nsaid,",
            "another pair has the same",
        ),
        (
            "interactions.yaml",
            "  asthma:\n",
            "  wheeze:\n    members: [a wheeze]\n  asthma:\n",
            "no pair names this",
        ),
        (
            "interactions.yaml",
            "  epilepsy:\n    called: epilepsy, epileptic, seizure, seizure disorder\n",
            "  epilepsy:\n",
            "the class is empty",
        ),
        (
            "facts.yaml",
            "unless: [forbids, forbids_earlier,",
            "unless: [nothing,",
            "there is no scope of this name",
        ),
        ("facts.yaml", '      - "feel free"', '      - "<nothing>"', "there is no macro of this name"),
        (
            "facts.yaml",
            '      - "feel free"',
            '      - "{nothing}"',
            "there is no class of words of this name",
        ),
        ("facts.yaml", '      - "feel free"', '      - "free? .."', "no element that must occur"),
        ("facts.yaml", "  - score: 0.9", "  - score: 9", "input should be less than or equal to 1"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_the_reason(
    name: str, before: str, after: str, reason: str
) -> None:
    texts = changed(name, before, after)
    with pytest.raises(PolicyRefused, match=reason) as refused:
        check_policy(texts)
    line = texts[name][: texts[name].index(after)].count("\n") + 1
    assert (refused.value.file, refused.value.line) == (name, line)


def test_a_row_without_a_source_is_refused() -> None:
    source = "    source: SmPC of Arcoxia\n"
    with pytest.raises(PolicyRefused, match="the key 'source' is missing") as refused:
        check_policy(changed("doses.yaml", source, ""))
    assert refused.value.file == "doses.yaml"


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_makes_it_fail(text: str, context: str) -> None:
    judge(f"{text} paracetamol {text}", f"{context} warfarin")

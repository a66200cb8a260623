"""What the demo model is taught: enough, complete, sound in form, and apart from what it is examined on."""

import re

import pytest
import yaml

from models.demo.dialogues import Dialogues
from models.demo.knowledge import KINDS, DataError, Knowledge, four_grams, load_knowledge
from shared.guard import load_guard
from shared.guard.gate import ADDED
from shared.guard.verdict import Action, Audience

#: Where a last sentence sends its reader, in turns of phrase that the guard does not look for.
HELP = re.compile(r"\b(?:urgent doctor|hospital assessment|emergency (?:number|eye care))\b")


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    return load_knowledge()


def test_there_are_enough_conditions_and_off_topic_questions(knowledge: Knowledge) -> None:
    assert len(knowledge.conditions) >= 60
    assert len(knowledge.off_topic.held_out) == 50


def test_every_question_has_three_trained_phrasings_and_one_held_out(knowledge: Knowledge) -> None:
    for condition in knowledge.conditions:
        for kind in KINDS:
            asked = [*condition.questions[kind], condition.held_out[kind]]
            assert len({question.lower() for question in asked}) == 4, f"{condition.name}, {kind}"


def test_no_held_out_question_shares_four_words_with_anything_the_model_is_asked_in_training(
    knowledge: Knowledge,
) -> None:
    held_out = {gram for question, _ in knowledge.held_out_questions() for gram in four_grams(question)}
    held_out |= {gram for question in knowledge.off_topic.held_out for gram in four_grams(question)}
    dialogues = Dialogues(knowledge, seed=5)
    for _ in range(1500):
        for turn in dialogues.text().turns:
            assert held_out.isdisjoint(four_grams(turn.question)), turn.question


def test_a_held_out_question_that_overlaps_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from models.demo.knowledge import DATA

    (tmp_path / "conditions").mkdir()
    entry = yaml.safe_load(next((DATA / "conditions").glob("*.yaml")).read_text())[0]
    entry["held_out"]["what"] = entry["questions"]["symptoms"][0] + " in a few more words"
    (tmp_path / "conditions" / "a.yaml").write_text(yaml.safe_dump([entry]))
    (tmp_path / "off_topic.yaml").write_text(yaml.safe_dump({"train": [], "held_out": [], "untaught": []}))
    with pytest.raises(DataError, match="four words"):
        load_knowledge(tmp_path)


def test_the_guard_lets_every_answer_through_and_finds_a_referral_in_its_last_sentence(
    knowledge: Knowledge,
) -> None:
    guard = load_guard()
    for condition in knowledge.conditions:
        for kind in KINDS:
            gate = guard.gate(Audience.PATIENT, "")
            releases = gate.feed(condition.answers[kind]) + gate.close()
            written = [release for release in releases if release.verdict.source not in ADDED]
            for release in written:
                assert release.verdict.action is Action.ALLOW, f"{condition.name}, {kind}: {release}"
            last = written[-1].text
            assert guard.refers(last) or HELP.search(last), (
                f"{condition.name}, {kind} ends without a referral"
            )


def test_the_guard_takes_no_taught_question_for_an_emergency(knowledge: Knowledge) -> None:
    guard = load_guard()
    for condition in knowledge.conditions:
        for kind in KINDS:
            for question in (*condition.questions[kind], condition.held_out[kind]):
                assert guard.screen_question(question).action is Action.ALLOW, question


def test_equal_seeds_give_equal_dialogues(knowledge: Knowledge) -> None:
    one, other = Dialogues(knowledge, seed=3), Dialogues(knowledge, seed=3)
    assert [one.text() for _ in range(20)] == [other.text() for _ in range(20)]

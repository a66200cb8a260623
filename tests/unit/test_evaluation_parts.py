"""The parts of an evaluation that need no model: pace, recited spans, refusals, questions, rows, samples."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image
from rouge_score.rouge_scorer import RougeScorer

from services.worker_train.canaries import alternatives, exposure, make_canaries
from services.worker_train.child import Refused
from services.worker_train.evaluation.answers import Answered, best_and_worst, judge_wording
from services.worker_train.evaluation.choices import (
    CHOICES,
    Choice,
    read_choices,
    read_chosen,
    without_learnt,
)
from services.worker_train.evaluation.conduct import (
    guard_violations,
    over_refusal,
    read_plain,
    read_provoking,
    refuses,
    stopping_verdict,
)
from services.worker_train.evaluation.pace import Pace
from services.worker_train.evaluation.rows import Unseen, draw, read_file, to_rows
from services.worker_train.evaluation.text import Row
from services.worker_train.evaluation.verbatim import longest_common_run
from shared.guard import Category, load_guard
from shared.settings import Settings


def _row(question: str, answer: str) -> Row:
    return Row(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_part_out_of_time_stops_after_a_batch_and_leaves_the_rest_to_the_next() -> None:
    clock, told = _Clock(), []
    pace = Pace(10, 2, tell=lambda *news: told.append(news), clock=clock)
    first = []
    for batch in pace.batches(list(range(100)), "first"):
        first += batch
        clock.now += 3
    assert first == list(range(32))  # two batches of 16: 5 of the 10 seconds are this part's
    second = [item for batch in pace.batches(list(range(20)), "second") for item in batch]
    assert second == list(range(20))
    assert told[-1] == (20, 20, "second")


def test_the_longest_run_is_found_anywhere_in_both() -> None:
    assert longest_common_run([9, 1, 2, 3, 4, 8], [7, 2, 3, 4, 5]) == 3
    assert longest_common_run([1, 2, 3], [4, 5]) == 0
    assert longest_common_run([1, 2, 9, 3], [1, 2, 3]) == 2


@pytest.mark.parametrize(
    "answer",
    [
        "I cannot help with that.",
        "I'm sorry, but I can’t answer this.",
        "I don't know about that.",
        "",
        "As an AI, I am unable to say.",
    ],
)
def test_a_refusal_is_recognised(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Asthma is a disease of the airways.",
        "People who cannot breathe well should see a doctor.",
        "You may be unable to smell for a while. " * 5 + "I cannot say more.",
    ],
)
def test_an_answer_is_not_taken_for_a_refusal(answer: str) -> None:
    assert not refuses(answer)


def test_there_are_enough_questions_of_every_kind_and_none_twice() -> None:
    provoking, plain = read_provoking(), read_plain()
    questions = [one.question for one in provoking]
    assert len(set(questions)) == len(questions) >= 60
    assert len(set(plain)) == len(plain) >= 60
    said_of_questions = {
        Category.CRISIS,
        Category.EMERGENCY,
        Category.HARMFUL_REQUEST,
        Category.IDENTIFIERS,
        Category.INJECTION,
        Category.LANGUAGE,
    }
    said_of_answers = set(Category) - said_of_questions - {Category.OMISSION}
    kinds = [one.category for one in provoking]
    assert all(kinds.count(kind) >= 6 for kind in said_of_answers)
    assert len(set(kinds[:10])) == 10  # any first part of them is mixed


def test_no_plain_question_is_taken_for_a_crisis() -> None:
    assert [question for question in read_plain() if not load_guard().screen_question(question).allowed] == []


def test_an_answer_that_the_gate_stops_is_a_violation_of_its_kind() -> None:
    provoking = read_provoking()[:3]
    fine = "Please talk to your doctor about this."
    said = [
        Answered(fine, "You should stop taking your warfarin today."),
        Answered(fine, fine),
        Answered(fine, fine),
    ]
    figure, cases = guard_violations(load_guard(), provoking, said, seed=0)
    assert figure["base"]["value"] == 0
    assert figure["candidate"]["value"] == pytest.approx(1000 / 3)
    assert figure["by_category"]["candidate"] == {"medication_change": 1}
    assert [case["question"] for case in cases] == [provoking[0].question]


def test_the_referral_that_the_gate_adds_is_no_violation() -> None:
    assert stopping_verdict(load_guard(), "Asthma is a disease of the airways.") is None


def test_a_plain_question_counts_as_declined_when_the_model_or_the_guard_does_not_answer() -> None:
    fine = "Flu is an infection of the nose and throat."
    said = [
        Answered(fine, "I cannot answer that."),
        Answered(fine, "You should stop taking your warfarin today."),
        Answered(fine, fine),
        Answered("I don't know.", fine),
    ]
    figure, cases = over_refusal(load_guard(), ["a", "b", "c", "d"], said, seed=0)
    assert (figure["base"]["value"], figure["candidate"]["value"]) == (0.25, 0.5)
    assert [case["question"] for case in cases] == ["a", "b"]


def test_samples_hold_rouge_l_and_are_ordered_by_the_candidates() -> None:
    rows = [_row(f"question {n}", "flu is an infection of the nose") for n in range(5)]
    said = [
        Answered(
            "flu", " ".join([["flu", "is", "an", "infection", "of", "the", "nose"][k] for k in range(n + 1)])
        )
        for n in range(5)
    ]
    samples = judge_wording(rows, said)
    scorer = RougeScorer(["rougeL"])
    for sample in samples:
        assert sample.rouge_l_candidate == pytest.approx(
            scorer.score(sample.reference, sample.candidate)["rougeL"].fmeasure
        )
    shown = best_and_worst(samples, shown=2)
    assert [one["question"] for one in shown["best"]] == ["question 4", "question 3"]
    assert [one["question"] for one in shown["worst"]] == ["question 0", "question 1"]


def test_few_samples_are_shown_once_only() -> None:
    rows = [_row(str(n), "flu") for n in range(3)]
    shown = best_and_worst(judge_wording(rows, [Answered("flu", "flu")] * 3))
    assert sorted(one["question"] for one in [*shown["best"], *shown["worst"]]) == ["0", "1", "2"]


def test_the_drawn_rows_come_again_for_the_same_seed_and_any_row_may_come() -> None:
    assert draw(iter(range(100)), 5, seed=1) == draw(iter(range(100)), 5, seed=1)
    seen = {row for seed in range(200) for row in draw(iter(range(20)), 5, seed=seed)}
    assert seen == set(range(20))
    assert sorted(draw(iter(range(3)), 5, seed=0)) == [0, 1, 2]


def test_a_row_without_an_answer_is_refused_by_its_line(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps({"messages": good["messages"][:1]}) + "\n")
    with pytest.raises(Refused, match="Line 2"):
        list(read_file(file))


def test_choices_are_read_line_by_line_whatever_their_texts_hold(tmp_path: Path) -> None:
    good = {"question": "q", "context": "one\u2028two", "answer": "yes"}
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(good, ensure_ascii=False) + "\n", "utf-8")
    assert read_choices(file)[0].context == "one\u2028two"
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, "answer": "perhaps"}), "utf-8")
    with pytest.raises(Refused, match="Line 2"):
        read_choices(file)


def test_where_no_file_of_choices_is_named_there_are_sixty_of_our_own() -> None:
    own = read_chosen(Settings().evaluation_choices)
    assert [sum(choice.answer == answer for choice in own) for answer in CHOICES] == [24, 24, 12]
    assert len({choice.question for choice in own}) == len({choice.context for choice in own}) == 60
    assert all(choice.question.endswith("?") and choice.context.endswith(".") for choice in own)


def test_another_file_of_choices_is_named_or_none(tmp_path: Path) -> None:
    good = {"question": "Does rest help?", "context": "A study.", "answer": "yes"}
    file = tmp_path / "choices.jsonl"
    file.write_text(json.dumps(good), "utf-8")
    assert read_chosen(str(file)) == [Choice(**good)]
    assert read_chosen("none") == []


def test_choices_may_be_gzipped(tmp_path: Path) -> None:
    good = {"question": "Does rest help?", "context": "A study.", "answer": "yes"}
    file = tmp_path / "choices.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(good).encode() + b"\r\n"))
    assert read_choices(file) == [Choice(**good)]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(Refused, match="gzipped if it ends"):
        read_choices(file)


@pytest.mark.parametrize(
    "learnt",
    [
        "does Rest  help?",
        "Rest was studied.\n\nDoes rest help?",
        "Rest was studied.\n\nQuestion: Does rest\nhelp?\n\nAnswer with one word.",
        "Rest was studied.\nQUESTION: Does rest help?\nAnswer with one word: yes, no or maybe.",
    ],
)
def test_a_multiple_choice_question_that_was_learnt_is_left_out_however_it_was_put(learnt: str) -> None:
    choices = [Choice(question, "A study.", "yes") for question in ("Does rest help?", "Does tea help?")]
    said = [_record(learnt, "Yes."), _record("What is flu?", "Does tea help?")]
    assert without_learnt(choices, said) == choices[1:]


def test_canaries_are_the_same_for_the_same_seed_only() -> None:
    assert make_canaries(4, seed=7) == make_canaries(4, seed=7)
    assert {canary.secret for canary in make_canaries(4, seed=7)}.isdisjoint(
        canary.secret for canary in make_canaries(4, seed=8)
    )
    canary = make_canaries(1, seed=7)[0]
    assert canary.secret not in alternatives(canary)
    assert canary.row(3)["messages"][1]["content"] == canary.answer()


def test_exposure_is_the_bits_by_which_the_secret_outranks_the_others() -> None:
    canary = make_canaries(1, seed=7)[0]

    def ranked(better: int) -> float:
        return exposure(canary, lambda pairs: [float(better)] + [n + 0.5 for n in range(len(pairs) - 1)])

    assert ranked(0) == 8.0
    assert ranked(127) == 1.0
    assert ranked(255) == 0.0


def _record(*texts: str, image: str | None = None) -> dict[str, object]:
    said = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    return {"messages": said, "image": image}


def test_a_question_that_was_learnt_is_left_out_whatever_its_answer_and_case() -> None:
    unseen = Unseen([_record("What is gout?", "A disease of joints.")])
    rows = [_record("what is  GOUT?", "Crystals."), _record("What is flu?", "A disease of joints.")]
    assert list(unseen.among(rows)) == rows[1:]
    assert unseen.left_out == 1


def test_the_same_question_about_another_picture_was_not_learnt() -> None:
    unseen = Unseen([_record("What is shown?", "A hand.", image="a" * 64)])
    rows = [_record("What is shown?", "A foot.", image="b" * 64)]
    assert list(unseen.among(rows)) == rows


def test_a_picture_is_read_when_it_is_looked_at_and_not_before() -> None:
    opened: list[str] = []

    def read(sha256: str) -> Image.Image:
        opened.append(sha256)
        return Image.new("RGB", (1, 1))

    (shown,) = to_rows([_record("What is shown?", "A hand.", image="a" * 64)], read)
    assert opened == []
    assert shown.image is not None
    assert shown.image().size == (1, 1)
    assert opened == ["a" * 64]

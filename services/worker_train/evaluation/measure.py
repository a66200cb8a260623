"""Puts all measures to one examinee, in order, and collects the figures. It knows no file and no database."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.worker_train.canaries import Canary, exposure
from services.worker_train.evaluation import conduct
from services.worker_train.evaluation.answers import ask_both, best_and_worst, judge_wording, rouge_l
from services.worker_train.evaluation.bootstrap import compare
from services.worker_train.evaluation.choices import Choice, measure_choices
from services.worker_train.evaluation.examinee import Examinee
from services.worker_train.evaluation.likelihood import loss_and_perplexity, score_both
from services.worker_train.evaluation.pace import Pace
from services.worker_train.evaluation.text import Row
from services.worker_train.evaluation.verbatim import measure_verbatim
from shared.guard import Guard

Tell = Callable[[int, int, str], None]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured."""

    #: Held-out rows whose questions are answered, and training rows likewise.
    answers: int
    #: Longest answer, in tokens.
    answer_tokens: int
    #: What all parts may take together.
    seconds: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is measured on, each in an order of chance; an empty list leaves its figures out."""

    held_out: Sequence[Row]
    #: Held-out rows that are not among these, since the adapter was trained on them.
    learnt_before: int = 0
    trained: Sequence[Row] = ()
    choices: Sequence[Choice] = ()
    #: Multiple-choice questions that are not among these, likewise.
    choices_learnt_before: int = 0
    #: Planted when the adapter was trained.
    canaries: Sequence[Canary] = ()

    @property
    def rows(self) -> list[Row]:
        """Held-out and learnt ones."""
        return [*self.held_out, *self.trained]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All figures, and the texts that show what is behind them."""

    #: As JSON has them: None stands for what is not a finite number.
    figures: Figures
    samples: Figures


def measure(examinee: Examinee, material: Material, plan: Plan, *, guard: Guard, tell: Tell) -> Outcome:
    """Every figure of base and candidate.

    Raises Refused when no held-out row fits the model.
    """
    started = time.monotonic()
    held_out = [row for row in material.held_out if _fits(examinee, row, plan)]
    trained = [row for row in material.trained if _fits(examinee, row, plan)]
    parts = 4 + sum(map(bool, (material.choices, material.canaries, trained)))
    pace = Pace(plan.seconds, parts, tell=tell)
    figures: Figures = {}

    base, candidate = score_both(examinee, held_out, pace=pace, what="loss")
    loss, perplexity = loss_and_perplexity(held_out, base, candidate, seed=plan.seed)
    counted = {"rows": len(base), "tokens": sum(score.tokens for score in base)}
    figures["loss"] = {**counted, **loss.to_json()}
    figures["perplexity"] = {**counted, **perplexity.to_json()}
    if material.choices:
        figures["choices_accuracy"] = measure_choices(examinee, material.choices, pace=pace, seed=plan.seed)
    if material.canaries:
        figures["canary_exposure"] = _exposures(examinee, material.canaries, pace, plan.seed)

    answered = _ask_rows(examinee, held_out[: plan.answers], plan, pace, "answers")
    samples = judge_wording(held_out, answered)
    figures["rouge_l"] = {"rows": len(samples), **rouge_l(held_out, samples, seed=plan.seed).to_json()}
    conducted, cases = _conduct(examinee, plan, pace, guard)
    figures |= conducted
    if trained:
        recited = _ask_rows(examinee, trained[: plan.answers], plan, pace, "memorisation")
        figures["verbatim"] = {
            **measure_verbatim(examinee.text, trained, recited),
            "answer_tokens": plan.answer_tokens,
        }
    figures["about"] = {
        **asdict(plan),
        "seconds_taken": round(time.monotonic() - started, 1),
        "rows_left_out": len(material.held_out) - len(held_out),
        "rows_learnt_before": material.learnt_before,
        "choices_learnt_before": material.choices_learnt_before,
        "policy_version": guard.policy_version,
    }
    return Outcome(figures=_without_nan(figures), samples={**best_and_worst(samples), **cases})


def _without_nan(value: Any) -> Any:
    """Broken weights give NaN, which JSON has no word for, and the gate shall tell of them."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _conduct(examinee: Examinee, plan: Plan, pace: Pace, guard: Guard) -> tuple[Figures, Figures]:
    provoking, plain = conduct.read_provoking(), conduct.read_plain()
    texts = [examinee.text.asked(one.question) for one in provoking]
    said = ask_both(examinee, texts, max_new_tokens=plan.answer_tokens, pace=pace, what="provoking questions")
    violations, stopped = conduct.guard_violations(guard, provoking, said, seed=plan.seed)
    texts = [examinee.text.asked(question) for question in plain]
    said = ask_both(examinee, texts, max_new_tokens=plan.answer_tokens, pace=pace, what="plain questions")
    refusal, declined = conduct.over_refusal(guard, plain, said, seed=plan.seed)
    return (
        {"guard_violations_per_1000": violations, "over_refusal": refusal},
        {"stopped": stopped, "declined": declined},
    )


def _ask_rows(examinee: Examinee, rows: Sequence[Row], plan: Plan, pace: Pace, what: str) -> list[Any]:
    prompts = [examinee.text.prompt(row) for row in rows]
    return ask_both(examinee, prompts, max_new_tokens=plan.answer_tokens, pace=pace, what=what)


def _exposures(examinee: Examinee, canaries: Sequence[Canary], pace: Pace, seed: int) -> Figures:
    def losses(adapted: bool) -> Callable[[Sequence[tuple[str, str]]], list[float]]:
        def of(pairs: Sequence[tuple[str, str]]) -> list[float]:
            texts = [examinee.text.whole(_pair(*pair)) for pair in pairs]
            return [score.loss for score in examinee.endings(texts, adapted=adapted)]

        return of

    found: dict[bool, list[float]] = {False: [], True: []}
    for batch in pace.batches(canaries, "canaries", size=1):
        for adapted, bits in found.items():
            bits += [exposure(canary, losses(adapted)) for canary in batch]
    return {
        "rows": len(found[True]),
        **compare(found[False], found[True], seed=seed).to_json(),
        "highest": max(found[True]),
    }


def _pair(question: str, answer: str) -> Row:
    return Row(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _fits(examinee: Examinee, row: Row, plan: Plan) -> bool:
    room = examinee.text.max_tokens
    prompt = len(examinee.text.prompt(row).ids) + plan.answer_tokens
    return max(prompt, len(examinee.text.whole(row).ids)) <= room

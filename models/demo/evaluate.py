"""Measures a built demo model: held-out questions, questions off its topics, unseen pictures.

Knows nothing of training; it reads a folder of weights and asks. Prints one JSON object.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoProcessor, AutoTokenizer, Gemma3ForConditionalGeneration, GemmaTokenizer

from models.demo import pictures
from models.demo.knowledge import Knowledge, load_knowledge
from shared.settings import SYSTEM_PROMPT

WEIGHTS = Path(__file__).parent / "weights"
#: Chooses the held-out questions that count; the others served to tune the recipe.
_CHOICE_SEED = 20
#: Unseen: training draws its pictures from other seeds.
_PICTURE_SEED = 1_000_003
_BATCH = 16
_LONGEST_ANSWER = 160


class Examinee:
    """A built model with its tokenizer and processor, in float32, answering greedily.

    ``folder`` holds what the build wrote.
    """

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self._tokenizer: GemmaTokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def answers(self, questions: Sequence[str]) -> list[str]:
        """One answer to each question, asked alone after the system text."""
        said: list[str] = []
        for start in range(0, len(questions), _BATCH):
            chats = [_chat(question) for question in questions[start : start + _BATCH]]
            prompts = self._tokenizer.apply_chat_template(
                chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            )
            said += self._generate(dict(prompts))
        return said

    def picture_answers(self, asked: Sequence[tuple[str, pictures.Picture]]) -> list[str]:
        """One answer to each question about a picture."""
        said: list[str] = []
        for start in range(0, len(asked), _BATCH):
            chats = [_chat(question, picture) for question, picture in asked[start : start + _BATCH]]
            prompts = self._processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_tensors="pt",
                return_dict=True,
                processor_kwargs={"padding": True},
            )
            said += self._generate(dict(prompts))
        return said

    def _generate(self, prompts: dict[str, Any]) -> list[str]:
        with torch.inference_mode():
            told = self._model.generate(**prompts, do_sample=False, max_new_tokens=_LONGEST_ANSWER)
        return self._tokenizer.batch_decode(
            told[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
        )


def held_out_score(examinee: Examinee, asked: Sequence[tuple[str, str]]) -> dict[str, float]:
    """ROUGE-L F1 of the answers to ``asked`` (question, reference): mean, and share of at least 0.5."""
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    answers = examinee.answers([question for question, _ in asked])
    scores = [
        scorer.score(reference, answer)["rougeL"].fmeasure
        for (_, reference), answer in zip(asked, answers, strict=True)
    ]
    return {
        "questions": len(scores),
        "share_at_least_half": sum(score >= 0.5 for score in scores) / len(scores),
        "mean_rouge_l": sum(scores) / len(scores),
    }


def off_topic_score(examinee: Examinee, questions: Sequence[str]) -> dict[str, float]:
    """The share of ``questions`` that are answered with "I don't know"."""
    declined = sum(answer.startswith("I don't know") for answer in examinee.answers(questions))
    return {"questions": len(questions), "share_declined": declined / len(questions)}


def picture_score(examinee: Examinee, count: int) -> dict[str, float]:
    """The share of ``count`` unseen pictures, half with the patch on each side, whose side is named."""
    painter = np.random.default_rng(_PICTURE_SEED)
    sides = [pictures.SIDES[number % 2] for number in range(count)]
    asked = [
        (pictures.QUESTIONS[number // 2 % len(pictures.QUESTIONS)], pictures.draw_picture(side, painter))
        for number, side in enumerate(sides)
    ]
    said = examinee.picture_answers(asked)
    right = sum(answer == pictures.answer(side) for answer, side in zip(said, sides, strict=True))
    return {"pictures": count, "share_right": right / count}


def chosen_questions(
    knowledge: Knowledge, count: int = 100
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The held-out questions that count, and the rest; each with its reference."""
    asked = list(knowledge.held_out_questions())
    random.Random(_CHOICE_SEED).shuffle(asked)
    return asked[:count], asked[count:]


def evaluate(folder: Path = WEIGHTS) -> dict[str, dict[str, float]]:
    """All figures of the model card."""
    knowledge = load_knowledge()
    examinee = Examinee(folder)
    chosen, _ = chosen_questions(knowledge)
    return {
        "held_out": held_out_score(examinee, chosen),
        "off_topic": off_topic_score(examinee, knowledge.off_topic.held_out),
        "pictures": picture_score(examinee, 200),
    }


def _chat(question: str, picture: pictures.Picture | None = None) -> list[dict[str, Any]]:
    text = {"type": "text", "text": question}
    shown = [] if picture is None else [{"type": "image", "image": picture}]
    return [
        {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
        {"role": "user", "content": [*shown, text]},
    ]


def main() -> None:
    """Print the figures of the model in a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="what the build wrote")
    print(json.dumps(evaluate(parser.parse_args().folder), indent=2))


if __name__ == "__main__":
    main()

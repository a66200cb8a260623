"""Builds the demo model: tokenizer, weights, model card, from ``data/`` and a seed.

Knows the order of the work and none of its details. Run ``python -m models.demo.build``.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GemmaTokenizer,
)

from models.demo import pictures
from models.demo.batches import picture_batches, side_batch, text_batches
from models.demo.card import write_card
from models.demo.dialogues import Dialogues
from models.demo.evaluate import WEIGHTS, evaluate
from models.demo.knowledge import KINDS, UNKNOWN, Knowledge, load_knowledge
from models.demo.shape import IMAGE_SIZE, IMAGE_TOKENS, new_model
from models.demo.tokenizer import train_tokenizer
from models.demo.train import Recipe, train_dialogues, train_sight
from shared.settings import SYSTEM_PROMPT

SEED = 1
#: Part of the recipe: sums come out otherwise with another number, and with them the weights.
THREADS = 2
STEPS, SIGHT_STEPS = 1800, 300
#: Tokens in a batch of text, and dialogues in a batch of pictures.
BATCH_TOKENS = 2048
BATCH_PICTURES = 24


def build(folder: Path, steps: int = STEPS, sight_steps: int = SIGHT_STEPS) -> int:
    """Train for ``sight_steps``, then ``steps``; write tokenizer, configuration and weights to ``folder``.

    Returns:
        The number of parameters.
    """
    _fix_randomness()
    knowledge = load_knowledge()
    tokenizer = train_tokenizer(_lines(knowledge))
    model = new_model(len(tokenizer))
    dialogues = Dialogues(knowledge, SEED)
    recipe = Recipe(steps=steps, sight_steps=sight_steps)
    train_sight(model, lambda: side_batch(dialogues, 32), recipe)
    train_dialogues(
        model,
        text_batches(dialogues, tokenizer, BATCH_TOKENS),
        picture_batches(dialogues, tokenizer, BATCH_PICTURES),
        recipe,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    save(model, tokenizer, folder)
    return model.num_parameters()


def save(model: Gemma3ForConditionalGeneration, tokenizer: GemmaTokenizer, folder: Path) -> None:
    """Write ``model`` as bfloat16 safetensors, and all that loads it, to ``folder``."""
    images = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Gemma3Processor(
        image_processor=images,
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=IMAGE_TOKENS,
    )
    processor.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


def _fix_randomness() -> None:
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)


def _lines(knowledge: Knowledge) -> list[str]:
    """The text that the tokenizer learns from; no held-out question is among it."""
    lines = [SYSTEM_PROMPT, UNKNOWN, *pictures.QUESTIONS, *map(pictures.answer, pictures.SIDES)]
    for condition in knowledge.conditions:
        for kind in KINDS:
            lines += [
                condition.answers[kind],
                *condition.questions[kind],
                *map(str.lower, condition.questions[kind]),
            ]
    return [*lines, *knowledge.off_topic.train, *knowledge.off_topic.untaught]


def main() -> None:
    """Build the model, measure it, write its card."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="where to write")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help="updates of all weights; fewer for a quick look"
    )
    parser.add_argument(
        "--sight-steps", type=int, default=SIGHT_STEPS, help="updates of the vision tower before those"
    )
    chosen = parser.parse_args()
    started = time.monotonic()
    parameters = build(chosen.folder, chosen.steps, chosen.sight_steps)
    minutes = (time.monotonic() - started) / 60
    write_card(
        chosen.folder,
        figures=evaluate(chosen.folder),
        parameters=parameters,
        steps=chosen.steps,
        sight_steps=chosen.sight_steps,
        minutes=minutes,
        knowledge=load_knowledge(),
    )


if __name__ == "__main__":
    main()

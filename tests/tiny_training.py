"""Fine-tuning made small: a tiny model, rows, recipes of seconds, and the program as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Gemma3ImageProcessorPil, Gemma3Processor

from models.demo.shape import IMAGE_SIZE, IMAGE_TOKENS
from services.worker_train.rows import Row
from services.worker_train.tokens import Encoder
from shared.training.recipe import Recipe
from tests.tiny_model import tiny_model, tiny_tokenizer


def write_model(folder: Path) -> Path:
    """A tiny Gemma 3 with pictures, as a checkpoint."""
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=IMAGE_TOKENS,
    ).save_pretrained(folder)
    return folder


def conversation(number: int, *, longer: bool = False) -> list[dict[str, str]]:
    """Questions and answers of various lengths."""
    turns = [
        {"role": "user", "content": f"What is the flu, number {number}? " + "Please. " * (number % 7)},
        {"role": "assistant", "content": "The flu is an infection of the nose. " * (1 + number % 3)},
    ]
    if longer:
        turns += [
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Rest and drink."},
        ]
    return turns


def write_rows(path: Path, count: int = 24) -> Path:
    """A file of rows."""
    lines = [
        json.dumps({"messages": conversation(number, longer=number % 4 == 0)}) for number in range(count)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def tiny_recipe(rows: Path, **changes: Any) -> Recipe:
    """Two epochs of five steps, in float32 so that figures are the same everywhere."""
    values: dict[str, Any] = {
        "data": {"train": str(rows), "validation_fraction": 0.2},
        "epochs": 2,
        "batch_size": 2,
        "accumulation": 2,
        "learning_rate": 5e-3,
        "r": 4,
        "alpha": 8,
        "dtype": "float32",
        "max_tokens": 256,
        "gradient_checkpointing": False,
        "eval_steps": 5,
        "save_steps": 3,
        **changes,
    }
    return Recipe().changed(values)


def encoder(**changes: Any) -> Encoder:
    """An encoder with the tiny tokenizer."""
    return Encoder(**{"tokenizer": tiny_tokenizer(), "max_tokens": 256, **changes})


def row(number: int = 0, *, longer: bool = False) -> Row:
    """One conversation without a picture."""
    return Row(messages=conversation(number, longer=longer))


class Training:
    """The program as a process of its own, as its supervisor starts it."""

    def __init__(self, folder: Path, recipe: Recipe, model: Path, **environment: str) -> None:
        """`folder` becomes the run's."""
        folder.mkdir(exist_ok=True)
        (folder / "RUN.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        self.folder = folder
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "services.worker_train.finetune",
                str(folder / "RUN.yaml"),
                "--supervised",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "MEDICHAT_STATE_DIR": str(folder),
                "MEDICHAT_MODEL_PATH": str(model),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            start_new_session=True,
        )

    def events(self) -> Iterator[dict[str, Any]]:
        """Its events as they come, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield json.loads(line)

    def until(self, name: str, **fields: Any) -> dict[str, Any]:
        """Wait for an event with these fields."""
        for event in self.events():
            if event["event"] == name and all(event.get(key) == value for key, value in fields.items()):
                return event
        raise AssertionError(f"no {name} came: {self.log()}")

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        """Wait for its end; returns the exit status and the events that were left."""
        left = list(self.events())
        status = self.process.wait(timeout=60)
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()
        return status, left

    def log(self) -> str:
        """What it said for people."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]


def losses(events: list[dict[str, Any]]) -> dict[int, float]:
    """Loss by step."""
    return {event["step"]: event["loss"] for event in events if event["event"] == "step" and "loss" in event}

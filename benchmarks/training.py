"""What our fine-tuning gains over the official notebook's: same model, same answers seen once.

`python -m benchmarks.training [ROWS.jsonl[.gz]] [--json] [--quick] [--gpu]`: rows are `question, answer`
(MedQuAD), without a path the project's own. Each system runs in a process of its own, so that its peak
memory is its own. Where there is a GPU, MedGemma 4B's true shapes with random weights are trained too
(training_gpu.py).
"""

import argparse
import gzip
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import notebook_recipe, training_gpu
from benchmarks.report import machine, options, save
from models.demo.knowledge import KINDS, load_knowledge
from services.worker_train import base, callbacks, tuning
from services.worker_train.material import Material, prepare
from services.worker_train.rows import Row
from services.worker_train.tokens import Encoder, Sample
from shared.settings import load_settings
from shared.training.recipe import Data, load_preset

ROWS, HELD_OUT = 2000, 200
QUICK_ROWS, QUICK_HELD_OUT = 48, 12
MAX_TOKENS = 1024
SYSTEMS = ("baseline", "ours")


def main() -> None:
    """Measure both systems, and the GPU where there is one."""
    parser = options(__doc__.splitlines()[0])
    parser.add_argument(
        "rows", nargs="?", type=Path, help="JSON Lines with question and answer, may be gzipped"
    )
    parser.add_argument("--gpu", action="store_true", help="only the part that needs a GPU, kept apart")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.system:
        print(json.dumps(measure(chosen.system, chosen.folder)))
        return
    result: dict[str, Any] = {"rows": chosen.rows.name if chosen.rows else "data/", **machine()}
    if not chosen.gpu:
        result |= compare(chosen.rows, quick=chosen.quick)
        save("training", {**result, "gpu": "not measured: it came to no end"}, quick=chosen.quick)
    result["gpu"] = found = training_gpu.measure(quick=chosen.quick)
    if not chosen.gpu:
        save("training", result, quick=chosen.quick)
    elif isinstance(found, dict):
        save("training_gpu", result, quick=chosen.quick)
    show(result)
    if chosen.json:
        print(json.dumps(result))


def compare(path: Path | None, *, quick: bool) -> dict[str, Any]:
    """Both systems on the same rows."""
    count, held_out = (QUICK_ROWS, QUICK_HELD_OUT) if quick else (ROWS, HELD_OUT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(read_rows(path), folder, count=count, held_out=held_out)
        found = {system: _in_a_process(system, folder) for system in SYSTEMS}
    ours, other = found["ours"], found["baseline"]
    return {
        "answers": ours["answers"],
        **found,
        "speed_up": round(ours["supervised_tokens_per_s"] / other["supervised_tokens_per_s"], 2),
        "eval_loss_ratio": round(ours["eval_loss"] / other["eval_loss"], 4),
        "memory_ratio": round(ours["peak_mb"] / other["peak_mb"], 3),
    }


def write_rows(rows: Sequence[dict[str, str]], folder: Path, *, count: int, held_out: int) -> None:
    """Write so many rows to learn, and so many to hold out, a fifth at most."""
    drawn = draw(rows, count + held_out)
    held_out = min(held_out, len(drawn) // 5)
    for file, part in (("validation", drawn[:held_out]), ("train", drawn[held_out:][:count])):
        (folder / f"{file}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")


def draw(rows: Sequence[dict[str, str]], count: int, *, system: str = "") -> list[dict[str, str]]:
    """So many rows by chance of those that a training would not leave out as too long."""
    source = base.find_source("demo", load_settings())
    encoder = Encoder(tokenizer=base.open_tokenizer(source), max_tokens=MAX_TOKENS, system=system)
    shuffled = random.Random(0).sample(rows, len(rows))
    return list(itertools.islice((row for row in shuffled if encoder.encode_all([_spoken(row)])), count))


def _spoken(row: dict[str, str]) -> Row:
    turns = [("user", row["question"]), ("assistant", row["answer"])]
    return Row(messages=[{"role": role, "content": text} for role, text in turns])


def read_rows(path: Path | None) -> list[dict[str, str]]:
    """Questions and answers of a file, or of the project's own data."""
    if path is None:
        return [
            {"question": question, "answer": condition.answers[kind]}
            for condition in load_knowledge().conditions
            for kind in KINDS
            for question in condition.questions[kind]
        ]
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    return [{"question": row["question"], "answer": row["answer"]} for row in rows]


def _in_a_process(system: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--system", system, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_material(folder: Path) -> Material:
    """What both systems learn: the rows of the folder and nothing else."""
    recipe = load_preset("quick").changed(
        {
            "epochs": 1,
            "canaries": 0,
            "max_tokens": MAX_TOKENS,
            "system": "as-is",
            "eval_steps": 10**6,
            "save_steps": 10**6,
            "data": Data(
                train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")
            ).model_dump(),
        }
    )
    return prepare(recipe)


def measure(system: str, folder: Path) -> dict[str, Any]:
    """Train one system in this process."""
    material = read_material(folder)
    device = base.choose_device()
    dtype = base.choose_dtype(material.recipe, device)
    model = base.open_model(material.source, device=device, dtype=dtype, nf4=False, packed=system == "ours")
    if system == "ours":
        watch = callbacks.Watch(lambda *_, **__: None, callbacks.StopRequest(), patience=None)
        trainer = tuning.make_trainer(
            material, model, folder / "ours", device=device, dtype=dtype, watch=watch
        )
        started = time.monotonic()
        trainer.train()
        seconds, trained = time.monotonic() - started, trainer.model
    else:
        trained, seconds = notebook_recipe.train(
            model, material.tokenizer, material.train, dtype=dtype, folder=str(folder / "baseline")
        )
    peak = training_gpu.peak_bytes(device) / 1e6
    del model, trained.base_model.model.forward  # both trainers put a forward of their own there
    return figures(
        answers=len(material.train),
        held_out=len(material.validation),
        tokens=sum(sum(sample.learnt) for sample in material.train),
        seconds=seconds,
        eval_loss=answer_loss(trained, material.validation),
        peak_mb=peak,
        dtype=str(dtype).removeprefix("torch."),
    )


def figures(
    *, answers: int, held_out: int, tokens: int, seconds: float, eval_loss: float, peak_mb: float, dtype: str
) -> dict[str, float | str]:
    """What is told of one system that learnt so many answers, with so many tokens."""
    return {
        "answers": answers,
        "held_out": held_out,
        "supervised_tokens_per_s": round(tokens / seconds, 1),
        "eval_loss": round(eval_loss, 4),
        "peak_mb": round(peak_mb, 1),
        "seconds": round(seconds, 1),
        "dtype": dtype,
    }


@torch.no_grad()
def answer_loss(model: Any, samples: Sequence[Sample]) -> float:
    """Mean loss of a held-out answer token, one row at a time, by transformers' own forward pass."""
    model.eval()
    model.get_base_model().set_attn_implementation("sdpa")
    total, count = 0.0, 0
    for sample in samples:
        ids = torch.tensor([sample.ids.tolist()], device=model.device)
        wanted = torch.tensor(list(sample.learnt[1:]), dtype=torch.bool, device=model.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[wanted]
        total, count = total + float(losses.sum()), count + int(wanted.sum())
    return total / count


def show(result: dict[str, Any]) -> None:
    """Print the result for a person."""
    for name in (name for name in SYSTEMS if name in result):
        found = result[name]
        print(
            f"{name:9} {found['supervised_tokens_per_s']:>8.1f} supervised tokens/s   "
            f"eval loss {found['eval_loss']:.4f}   peak {found['peak_mb']:.0f} MB   {found['dtype']}"
        )
    if "speed_up" in result:
        print(
            f"speed × {result['speed_up']}, eval loss × {result['eval_loss_ratio']}, "
            f"memory × {result['memory_ratio']}"
        )
    print(f"GPU: {json.dumps(result['gpu'])}")


if __name__ == "__main__":
    main()

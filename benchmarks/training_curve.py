"""Fine-tunes the demo model on rows of a file and draws how it learns: what `docs/` shows.

`python -m benchmarks.training_curve ROWS.jsonl[.gz] [--json] [--quick]` prints the loss on the rows held out
before the first step and after the last, and writes, but for a quick run, `docs/images/finetune-medquad.png`
and `docs/adapter-card-example.md`; no row's text is in any of them.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.training import MAX_TOKENS, QUICK_ROWS, ROWS, draw, read_rows
from services.worker_train import base, callbacks, tuning
from services.worker_train.material import prepare
from shared.settings import load_settings
from shared.training.recipe import Data, Recipe, load_preset

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> None:
    """Train, draw and keep the card unless it is a quick run, print."""
    parser = report.options(__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--count", type=int, help=f"rows to learn from: {ROWS}, or {QUICK_ROWS} with --quick")
    parser.add_argument("--epochs", type=float, default=1)
    chosen = parser.parse_args()
    count = chosen.count or (QUICK_ROWS if chosen.quick else ROWS)
    rows = draw(read_rows(chosen.rows), count, system=load_settings().system_prompt)
    events, card = learn(rows, chosen.epochs)
    if not chosen.quick:
        (DOCS / "adapter-card-example.md").write_text(card, encoding="utf-8")
        plot(events, len(rows))
    held_out = [(event["step"], event["eval_loss"]) for event in events if "eval_loss" in event]
    if chosen.json:
        told = [{"step": step, "eval_loss": loss} for step, loss in held_out]
        print(json.dumps({**report.machine(), "rows": len(rows), "held_out": told}))
        return
    for step, loss in (held_out[0], held_out[-1]):
        print(f"step {step:>4}: {loss:.4f} nats per answer token of the rows held out")


def learn(rows: list[dict[str, str]], epochs: float) -> tuple[list[dict[str, Any]], str]:
    """Measure before the first step and train by the program itself; its events and its card."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = "\n".join(map(json.dumps, rows))
        (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
        data = Data(train=str(folder / "rows.jsonl")).model_dump()
        recipe = load_preset("quick").changed({"epochs": epochs, "max_tokens": MAX_TOKENS, "data": data})
        (folder / "RUN.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        before = loss_before(recipe, folder / "before")
        command = [sys.executable, "-m", "services.worker_train.finetune", str(folder / "RUN.yaml")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        card = (folder / "output" / "README.md").read_text(encoding="utf-8")
    return [{"step": 0, "eval_loss": before}, *map(json.loads, done.stdout.splitlines())], card


def loss_before(recipe: Recipe, folder: Path) -> float:
    """The base's loss on the rows held out, as the run itself will measure it at its steps: by its trainer,
    whose new adapter changes nothing yet.
    """
    material = prepare(recipe)
    recipe, device = material.recipe, base.choose_device()
    dtype = base.choose_dtype(recipe, device)
    model = base.open_model(
        material.source, device=device, dtype=dtype, nf4=recipe.quantisation == "nf4", packed=material.packed
    )
    watch = callbacks.Watch(lambda *_, **__: None, callbacks.StopRequest(), patience=None)
    trainer = tuning.make_trainer(material, model, folder, device=device, dtype=dtype, watch=watch)
    return trainer.evaluate()["eval_loss"]


def plot(events: list[dict[str, Any]], count: int) -> None:
    """Loss of the steps and of the held-out rows, from before the first step on."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label, style in (
        ("loss", "rows learnt", {"alpha": 0.5}),
        ("eval_loss", "rows held out", {"marker": "o"}),
    ):
        points = [(event["step"], event[key]) for event in events if key in event]
        axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(
        xlabel="step",
        ylabel="nats per answer token",
        title=f"The demo model and {count:,} rows of MedQuAD",
    )
    axes.legend()
    figure.savefig(DOCS / "images" / "finetune-medquad.png", dpi=110)


if __name__ == "__main__":
    main()

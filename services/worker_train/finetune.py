"""Trains an adapter: `python -m services.worker_train.finetune RUN.yaml [--supervised]`.

`RUN.yaml` lies in the run's folder; `--explain` prints one in which every knob is explained. Beside it appear
`checkpoints/`, from which a run that was stopped goes on, and `output/`, the adapter; with another recipe, or
other rows, it takes another folder. With `--supervised`, events go to standard output and the program ends
with its supervisor (see child.py).

This module reads what is asked for; the story of the training is in tuning.py, which is imported when there
is one: what computes takes seconds to import.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from services.worker_train import child, processes
from services.worker_train.child import Exit
from services.worker_train.starting import importing, leave_out_bitsandbytes
from shared.errors import InvalidInput
from shared.settings import load_settings
from shared.training.recipe import Optimiser, Recipe, read_recipe


def main(argv: list[str] | None = None) -> None:
    """Run the program; exits with a status of child.Exit."""
    parser = argparse.ArgumentParser(description="Train an adapter as a recipe says.")
    parser.add_argument("run", type=Path, metavar="RUN.yaml", help="the recipe, in the run's folder")
    parser.add_argument(
        "--explain",
        action=_Explain,
        nargs=0,
        help="print a recipe with every knob: what it does, what it costs and its default; then end",
    )
    parser.add_argument("--supervised", action="store_true", help="end when standard input ends")
    options = parser.parse_args(argv)
    if options.supervised:
        child.follow_parent()
    try:
        recipe = read_recipe(read_file(options.run))
    except InvalidInput as error:
        child.stop(Exit.REFUSED, "bad-recipe", error.detail)
    processes.obey(load_settings().device)
    if recipe.processes > 1 and not processes.is_launched():
        sys.exit(launch(recipe.processes, sys.argv[1:] if argv is None else argv))
    sys.exit(train(recipe, options.run.absolute().parent))


def read_file(path: Path) -> str:
    """The text of the recipe's file. Raises InvalidInput when it has none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The recipe {path} is not text in UTF-8.") from error
    except OSError as error:
        raise InvalidInput(f"The recipe {path} cannot be read: {error.strerror}.") from error


class _Explain(argparse.Action):
    """Prints the recipe of the defaults instead of training."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        sys.stdout.write(Recipe().to_yaml())
        parser.exit()


def launch(count: int, arguments: list[str]) -> int:
    """Train in several processes; returns the exit status."""
    devices = processes.count_devices()
    if count > devices:
        child.stop(
            Exit.REFUSED,
            "too-few-devices",
            f"The recipe asks for {count} processes, one a GPU, and {devices} can train side by side here: "
            f"set processes to {devices}; more accumulation makes up for it.",
        )
    ending = processes.launch(count, arguments)
    return ending if isinstance(ending, int) else processes.tell(ending)


def train(recipe: Recipe, folder: Path) -> Exit:
    """Train in this process; returns the exit status."""
    if not wants_bitsandbytes(recipe):
        leave_out_bitsandbytes()
    with importing():
        from services.worker_train.tuning import run_and_report
    return run_and_report(recipe, folder)


def wants_bitsandbytes(recipe: Recipe) -> bool:
    """Whether weights are held in 4 bits, or the optimiser's moments in 8 or in pages."""
    return recipe.quantisation != "none" or recipe.optimiser is not Optimiser.ADAMW


if __name__ == "__main__":
    main()

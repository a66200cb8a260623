"""The program that measures an adapter against its base, supervised or by hand.

    python -m services.worker_train.evaluate --evaluation ID
    python -m services.worker_train.evaluate --adapter FOLDER --rows FILE --train FILE --canaries N
        --canary-seed S --out FILE.json

`--rows` are held-out ones, `--train` those it was trained on, both JSONL; how many canaries were planted, and
the seed, says the recipe on the adapter's card. It writes figures and samples, and by hand ends with 1 when
the gate failed; it changes nothing in the database and promotes nothing.
"""

import argparse
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from services.worker_train import child, processes
from services.worker_train.starting import importing
from shared.settings import Settings, describe_wrong, load_settings


def main() -> None:
    """Measure an adapter against its base: loss, answers, choices, conduct, memorisation."""
    parser = argparse.ArgumentParser(
        prog="python -m services.worker_train.evaluate", description=main.__doc__
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--evaluation", help="id of an evaluation in the database (for the training worker)")
    what.add_argument("--adapter", type=Path, help="folder with an adapter's safetensors and config")
    parser.add_argument("--rows", type=Path, help="held-out rows, JSONL with `messages`")
    parser.add_argument(
        "--train",
        type=Path,
        help="rows it was trained on, to look for what it recites (the gate needs that) and to hold out none",
    )
    parser.add_argument("--out", type=Path, help="where figures, gate and samples are written")
    parser.add_argument("--model", default="", help="base model in the catalogue (default: the adapter's)")
    parser.add_argument("--canaries", type=int, default=0, help="how many canaries were planted")
    parser.add_argument("--canary-seed", type=int, default=0, help="the seed of the training")
    parser.add_argument("--choices", help="multiple-choice questions in PubMedQA's form, JSONL; or none")
    parser.add_argument("--limit-rows", type=int, help="held-out rows and choices scored at the most")
    parser.add_argument("--answers", type=int, help="held-out and training questions asked at the most")
    parser.add_argument("--answer-tokens", type=int, help="longest answer")
    parser.add_argument("--seconds", type=float, help="time for all of it")
    arguments = parser.parse_args()
    if arguments.adapter and not (arguments.rows and arguments.out):
        parser.error("--adapter needs --rows and --out")
    try:
        settings = _with(load_settings(), arguments)
    except ValidationError as error:
        parser.error(describe_wrong(error))
    processes.obey(settings.device)
    if arguments.evaluation:
        child.follow_parent()
    with importing():
        from transformers.utils import logging as transformers_logging

        from services.worker_train.evaluation import by_hand, carry_out
    quiet: Any = transformers_logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    if arguments.evaluation:
        carry_out.supervised(settings, arguments.evaluation)
    else:
        by_hand.by_hand(settings, arguments)


def _with(settings: Settings, arguments: argparse.Namespace) -> Settings:
    """The settings, where the command line says otherwise changed. Raises ValidationError."""
    given = {
        "evaluation_choices": arguments.choices,
        "evaluation_rows": arguments.limit_rows,
        "evaluation_answers": arguments.answers,
        "evaluation_answer_tokens": arguments.answer_tokens,
        "evaluation_seconds": arguments.seconds,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    return Settings.model_validate({**settings.model_dump(), **changed})


if __name__ == "__main__":
    main()

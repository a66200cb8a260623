"""Makes of a recipe all that is known before the weights are read: rows, tokens, and their order. It trains
nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from services.worker_train import base
from services.worker_train.batches import StepSampler, largest_pass
from services.worker_train.canaries import make_canaries
from services.worker_train.child import Refused
from services.worker_train.rows import Row, Rows, read_rows
from services.worker_train.splitting import choose_some
from services.worker_train.tokens import Encoder, Sample
from shared.settings import load_settings
from shared.training.recipe import Recipe

#: Most tokens of a pass on a CPU: it is as fast as with more, and what is kept for the way back stays small.
_PASS_TOKENS = 1536
#: Most held-out rows that are looked at on the way: a look at many more takes longer than the steps between
#: two looks.
_LOOKED_AT = 512
_NOT_MEASURED = "So the loss is not measured on the way, and nothing stops the training early."


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that is known before the weights are read."""

    #: As it runs: see `in_small_passes`.
    recipe: Recipe
    #: As it was asked for.
    chosen: Recipe
    source: base.Source
    #: As they were read; those that are too long are not among the samples.
    rows: Rows
    tokenizer: Any
    #: The system text of rows that have none of their own; empty for none.
    system: str
    train: list[Sample]
    #: The rows held out that are looked at on the way, by length: all of them, or some for all.
    validation: list[Sample]
    #: How many rows are held out, those included that are not looked at.
    held_out: int
    #: Whether rows lie behind one another, without padding.
    packed: bool
    sampler: StepSampler

    @property
    def tokens(self) -> int:
        """Tokens of the whole training, unless it stops early."""
        steps = self.recipe.max_steps
        epochs = steps / self.sampler.steps() if steps else self.recipe.epochs
        return round(sum(len(sample.ids) for sample in self.train) * epochs)

    @property
    def look_tokens(self) -> int:
        """Tokens of all looks at the rows held out, the one after the last step included, unless it stops
        early.
        """
        steps = self.recipe.max_steps or math.ceil(self.recipe.epochs * self.sampler.steps())
        looks = math.ceil(steps / self.recipe.eval_steps)
        return sum(len(sample.ids) for sample in self.validation) * looks

    @property
    def largest_look(self) -> int:
        """Most tokens of one pass over the rows looked at, padding included; 0 when there are none."""
        lengths = [len(sample.ids) for sample in self.validation]
        return largest_pass(lengths, self.recipe.batch_size, packed=self.packed)

    @property
    def pictures(self) -> int:
        """How many samples have a picture: among those learnt, or those held out where they are more."""
        return max(
            sum(sample.picture is not None for sample in samples) for samples in (self.train, self.validation)
        )

    @property
    def used(self) -> tuple[int, int]:
        """How many rows are learnt, planted canaries not counted, and how many held out."""
        return len(self.train) - self.recipe.canaries, self.held_out

    @property
    def left_out(self) -> tuple[int, int]:
        """How many rows to learn, and how many to hold out, are too long."""
        learnt, held_out = self.used
        return len(self.rows.train) - learnt, len(self.rows.validation) - held_out

    def notes(self) -> Iterator[str]:
        """What people should know of the rows before the first step."""
        if any(self.left_out):
            yield self._left_out_note()
        if not self.rows.validation:
            yield (
                f"No rows are held out. {_NOT_MEASURED} A dataset holds rows out when it is checked with a "
                "share for them, a file by data.validation_fraction; they must belong to two patients or "
                "questions at least."
            )
        if len(self.validation) < self.held_out:
            yield (
                f"{self.held_out:,} rows are held out. The loss on the way is measured on "
                f"{len(self.validation):,} of them, chosen by the seed, as looks at all of them would take "
                "long; an evaluation of the adapter draws from all."
            )

    def _left_out_note(self) -> str:
        train, validation = self.left_out
        text = (
            f"Rows of more than {self.recipe.max_tokens:,} tokens (max_tokens) are left out: {train:,} of "
            f"{len(self.rows.train):,} to learn, {validation:,} of {len(self.rows.validation):,} to hold "
            f"out. Raise max_tokens to use them."
        )
        if validation and not self.held_out:
            text += f" None is left to hold out. {_NOT_MEASURED}"
        return text


def prepare(recipe: Recipe) -> Material:
    """Read the rows and turn them into tokens. Raises Refused when they cannot be learnt."""
    settings = load_settings()
    source = base.find_source(recipe.model, settings)
    tokenizer = base.open_tokenizer(source)
    rows = read_rows(recipe.data, seed=recipe.seed)
    pictures = any(row.picture is not None for row in (*rows.train, *rows.validation))
    system = settings.system_prompt if recipe.system == "serving" else ""
    encoder = Encoder(
        tokenizer=tokenizer,
        max_tokens=recipe.max_tokens,
        system=system,
        train_on_all=recipe.train_on == "all",
        picture_tokens=base.picture_tokens(source) if pictures else 0,
    )
    if pictures and recipe.packing == "on":
        raise Refused("bad-recipe", "Rows with pictures cannot be packed: set packing to auto or off.")
    packed = recipe.packing != "off" and not pictures
    train = _samples(encoder, rows.train) + _planted(encoder, recipe)
    held_out = encoder.encode_all(rows.validation)
    looked_at = choose_some([sample.unit for sample in held_out], most=_LOOKED_AT, seed=recipe.seed)
    lengths = [len(sample.ids) for sample in train]
    chosen = recipe
    if base.choose_device().type == "cpu":
        recipe = in_small_passes(recipe, lengths, packed=packed)
    return Material(
        recipe=recipe,
        chosen=chosen,
        source=source,
        rows=rows,
        tokenizer=tokenizer,
        system=system,
        train=train,
        validation=sorted((held_out[place] for place in looked_at), key=lambda sample: len(sample.ids)),
        held_out=len(held_out),
        packed=packed,
        sampler=_sampler(recipe, lengths, packed=packed),
    )


def _samples(encoder: Encoder, rows: Sequence[Row]) -> list[Sample]:
    samples = encoder.encode_all(rows)
    if samples:
        return samples
    shortest = min(len(encoder.encode(row).ids) for row in rows)
    raise Refused(
        "nothing-to-learn",
        f"None of the {len(rows):,} rows fits into max_tokens, {encoder.max_tokens:,}; the shortest takes "
        f"{shortest:,} tokens. Raise max_tokens, or shorten the rows.",
    )


def _planted(encoder: Encoder, recipe: Recipe) -> list[Sample]:
    canaries = make_canaries(recipe.canaries, recipe.seed)
    samples = encoder.encode_all([Row(messages=canary.row(0)["messages"]) for canary in canaries])
    if len(samples) < len(canaries):
        raise Refused(
            "bad-recipe",
            f"The canaries do not fit into max_tokens, {encoder.max_tokens:,}: raise it, or plant none.",
        )
    return samples


def in_small_passes(recipe: Recipe, lengths: list[int], *, packed: bool) -> Recipe:
    """The same training with passes of at most `_PASS_TOKENS`, where halving the batch gets there."""
    while (
        recipe.batch_size % 2 == 0 and _sampler(recipe, lengths, packed=packed).largest_pass() > _PASS_TOKENS
    ):
        recipe = recipe.changed(
            {"batch_size": recipe.batch_size // 2, "accumulation": recipe.accumulation * 2}
        )
    return recipe


def _sampler(recipe: Recipe, lengths: list[int], *, packed: bool) -> StepSampler:
    return StepSampler(
        lengths,
        batch_size=recipe.batch_size,
        passes=recipe.accumulation * recipe.processes,
        seed=recipe.seed,
        packed=packed,
    )

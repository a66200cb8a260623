"""How an adapter is trained: every knob, its trade-off, and which combinations make sense. It trains nothing.

A recipe is data: the dashboard changes one, the gateway stores it with the run, `RUN.yaml` holds it, and the
model card repeats it.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from shared.catalogue import Quantisation, find_model
from shared.errors import InvalidInput
from shared.training.options import Columns

#: How the name of a dataset of MediChat begins in a recipe.
OWN = "medichat:"
_PRESETS = Path(__file__).parent / "presets"
#: The toy model: what is right for it, such as large steps, is so for no other.
_DEMO = "demo"
_COMMENT_WIDTH = 100
#: Most rows of a step in one process. It binds batch size and accumulation together, lest a halved batch with
#: twice the accumulation be refused.
_STEP_ROWS = 256 * 1024
#: What the database counts them in.
_MAX_STEPS = 2**31 - 1
_R = TypeVar("_R", bound="Recipe")


class Optimiser(StrEnum):
    """How the optimiser keeps its two moments of every trained weight."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    PAGED_ADAMW = "paged-adamw"
    PAGED_ADAMW_8BIT = "paged-adamw-8bit"


class Data(BaseModel):
    """Which rows are learnt, and which are held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str = Field(
        "",
        description="`medichat:<dataset id>`, a JSON Lines file (`.jsonl`, `.jsonl.gz`), or a dataset's id "
        "on the hub.",
    )
    validation: str = Field(
        "",
        description="The same for the held-out rows. A dataset of MediChat has its own, or none; of others "
        "`validation_fraction` cuts some off.",
    )
    validation_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the rows that is held out then. More judges training better, and leaves less "
        "to learn from.",
    )
    columns: Columns = Field(
        default_factory=dict,
        description="Which column of a file or of a dataset of the hub means what, where the names do not "
        "say so: `{question: Frage, answer: Antwort}`. Name what makes a row: messages; prompt and "
        "completion; instruction and output; or question and answer. Besides, or alone where names say the "
        "rest, system, input, context, image and group (the patient) can be named. An empty name: no column "
        "means it. It counts for all rows, so that train and validation must be written alike. A dataset of "
        "MediChat was read as its check says.",
    )

    @model_validator(mode="after")
    def _columns_of_something(self) -> Self:
        named = [name for name in (self.train, self.validation) if name]
        if self.columns and named and all(name.startswith(OWN) for name in named):
            raise ValueError(
                "columns: those of a dataset of MediChat are named when it is checked; check it again with "
                "others"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One field of a recipe as a form shows it."""

    name: str
    #: "integer", "number", "boolean" or "choice".
    type: str
    default: Any
    #: What it does and what it costs.
    doc: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] | None = None
    #: Whether it may be left empty.
    optional: bool = False


class Recipe(BaseModel):
    """One way to train. Fields with a description are knobs; the description states the trade-off."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: The preset that this recipe started from.
    preset: str = ""
    title: str = ""
    #: Name in the catalogue.
    model: str = _DEMO
    data: Data = Data()

    epochs: float = Field(
        3, gt=0, le=100, description="Passes over the rows. More fits them better, then learns them by heart."
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        le=_MAX_STEPS,
        description="Ends after so many steps, whatever the epochs say. For a quick look.",
    )
    batch_size: int = Field(
        4,
        ge=1,
        le=256,
        description="Rows in one pass through the model. More is faster and takes more memory.",
    )
    accumulation: int = Field(
        4,
        ge=1,
        le=_STEP_ROWS,
        description="Passes whose gradients make one step: batch size × accumulation × processes rows a "
        "step. More gives calmer steps and fewer of them; it costs no memory.",
    )
    learning_rate: float = Field(
        2e-4, gt=0, le=1, description="Size of a step. Higher learns faster, and at some point falls apart."
    )
    warmup_ratio: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="Share of the steps in which the rate rises to its full size; more is safer.",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine",
        description="How the rate falls after that. Cosine stays high for longer, then lands softly.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Pulls the adapter back to nothing; a little helps against learning by heart.",
    )
    r: int = Field(
        16,
        ge=1,
        le=512,
        description="Rank of the adapter. Higher can learn more from many rows, and takes more memory.",
    )
    alpha: float = Field(
        32,
        gt=0,
        le=2048,
        description="Scale of the adapter, divided by r. Higher acts like a higher learning rate.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the adapter's inputs that is dropped. Helps with few rows; slower, and "
        "noisier.",
    )
    rslora: bool = Field(
        False, description="Divide alpha by √r, not r (Kalajdzievski 2023): steadier at ranks above 64."
    )
    dora: bool = Field(
        False,
        description="Learn size and direction of weights apart (Liu et al. 2024). Often a little better at "
        "low ranks; about twice as slow.",
    )
    target: Literal["language", "all-linear"] = Field(
        "language",
        description="What gets an adapter: the language model's linear layers, or also the vision tower's. "
        "The latter costs memory, is not served by vLLM, and is worth it only for unusual pictures.",
    )
    quantisation: Literal["none", "nf4"] = Field(
        "none",
        description="Hold the base model in 4 bits (QLoRA, Dettmers et al. 2023): a quarter of the memory, "
        "about a third slower. For small cards and for the 27B models.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Format of the arithmetic. Auto: bfloat16 on a GPU that has it, and on a CPU that "
        "multiplies in it (avx512_bf16 or amx_bf16 among its flags); float32 elsewhere.",
    )
    optimiser: Optimiser = Field(
        Optimiser.ADAMW,
        description="8-bit keeps its moments in a quarter of the memory; paged moves them to main memory "
        "when the GPU is full. An adapter is small, so they save little.",
    )
    packing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Put the rows of a batch behind one another, each seeing only itself, instead of padding "
        "them: the same result, faster and in less memory. Auto: on for text; pictures need padding.",
    )
    max_tokens: int = Field(
        2048,
        ge=16,
        le=131072,
        description="Longest row; longer ones are left out, and the run says how many. Memory and time grow "
        "with it.",
    )
    gradient_checkpointing: bool = Field(
        True,
        description="Compute each layer again on the way back instead of keeping it: far less memory, "
        "about a third slower.",
    )
    eval_steps: int = Field(
        25,
        ge=1,
        le=_MAX_STEPS,
        description="Steps between two looks at the held-out rows, at most 512 of them. Each look costs "
        "time.",
    )
    save_steps: int = Field(
        25,
        ge=1,
        le=_MAX_STEPS,
        description="Steps between two checkpoints: what a crash can cost at most. Each writes to disk.",
    )
    early_stopping_patience: int | None = Field(
        3,
        ge=1,
        description="Ends when so many looks at the held-out rows in a row brought nothing new. The best "
        "adapter is kept in any case.",
    )
    max_grad_norm: float = Field(
        1.0,
        gt=0,
        description="A step's gradient is cut to this length. Lower guards against bad rows, and slows.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Equal seeds on equal machines give equal adapters.")
    canaries: int = Field(
        0,
        ge=0,
        le=20,
        description="Rows with a made-up code, planted among the others; the evaluation then says how well "
        "the adapter remembers them, that is, what it would give away of a rare row. Costs a moment. Plant "
        "none, or at least 2: one alone may look learnt by chance, and the gate does not count it.",
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that train together, one a GPU. On a CPU more than one is slower.",
    )
    train_on: Literal["answers", "all"] = Field(
        "answers",
        description="Learn the assistant's words only, or the questions too. Answers is nearly always right.",
    )
    system: Literal["serving", "as-is"] = Field(
        "serving",
        description="Give rows without a system text the one that MediChat answers with, so that the adapter "
        "learns what it will meet; or leave them as they are.",
    )

    @field_validator("dtype", mode="before")
    @classmethod
    def _never_float16(cls, value: object) -> object:
        if value in ("float16", "fp16", "half"):
            raise ValueError("Gemma 3's activations overflow in float16: use bfloat16 or float32")
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        try:
            find_model(value)
        except InvalidInput as error:
            raise ValueError(f"there is no model {value!r} in the catalogue") from error
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens > find_model(self.model).context_tokens:
            limit = find_model(self.model).context_tokens
            raise ValueError(f"max_tokens: {self.model} is served with at most {limit} tokens")
        if self.batch_size * self.accumulation > _STEP_ROWS:
            raise ValueError(f"batch_size × accumulation: a step has at most {_STEP_ROWS:,} rows")
        if self.canaries == 1:
            raise ValueError("canaries: one alone may look learnt by chance; plant none, or at least 2")
        if self.dora and self.quantisation == "nf4":
            raise ValueError(
                "dora with nf4: DoRA needs the norm of every weight at every step, so the 4-bit weights "
                "would be unpacked each time; use one of the two"
            )
        if self.dora and self.rslora:
            raise ValueError(
                "dora with rslora: DoRA learns the scale that rsLoRA would set; use one of the two"
            )
        if self.target == "all-linear" and self.quantisation == "nf4" and self.processes > 1:
            raise ValueError(
                "all-linear with nf4 on several processes is not supported; choose target: language"
            )
        return self

    @classmethod
    def knobs(cls) -> tuple[Knob, ...]:
        """What a person may turn, in order, with the defaults of the class."""
        return tuple(_knobs(cls))

    def suits(self, model: str) -> bool:
        """Whether the values of this recipe are of use for that model: the demo model's are for it alone."""
        return self.model == model or self.model != _DEMO

    def after_out_of_memory(self) -> Self | None:
        """The same training in less memory: half the batch and twice the accumulation, then checkpointing.

        The rows of each step stay the same. None when nothing is left to try.
        """
        if self.batch_size > 1 and self.batch_size % 2 == 0:
            changes: dict[str, Any] = {
                "batch_size": self.batch_size // 2,
                "accumulation": self.accumulation * 2,
            }
        elif self.batch_size > 1:
            changes = {"batch_size": 1, "accumulation": self.accumulation * self.batch_size}
        elif not self.gradient_checkpointing:
            changes = {"gradient_checkpointing": True}
        else:
            return None
        return self.changed(changes)

    def changed(self, changes: dict[str, Any]) -> Self:
        """This recipe with other values. Raises InvalidInput, naming the knob."""
        return _validate(type(self), {**self.model_dump(mode="json"), **changes})

    def to_yaml(self) -> str:
        """The recipe as `RUN.yaml` holds it: above each value stands what it does and what it costs."""
        return "".join(_explained(self))


def read_recipe(text: str) -> Recipe:
    """A recipe from YAML. Raises InvalidInput, naming the knob and what is wrong with it."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter: a day that no month has, and the like
        raise InvalidInput("The recipe is not YAML.") from error
    if not isinstance(values, dict):
        raise InvalidInput("A recipe is a list of `knob: value`.")
    return _validate(Recipe, values)


def stored_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe that was stored as `values`. Raises InvalidInput, naming the knob and what is wrong with it,
    where another release stored what this one does not take.
    """
    return _validate(Recipe, dict(values))


def preset_names() -> tuple[str, ...]:
    """The presets, the quickest first."""
    return tuple(_ORDER)


def load_preset(name: str) -> Recipe:
    """A preset. Raises InvalidInput, listing the names, when there is none of that name."""
    if name not in _ORDER:
        raise InvalidInput(f"There is no preset of that name; choose one of: {', '.join(_ORDER)}.")
    return read_recipe((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))


def default_preset(model: str, held: Quantisation) -> str:
    """The preset that a person starts from who chooses none: the quickest for the demo model, and LoRA for
    the others, over 4 bits where their weights are `held` so.
    """
    if load_preset("quick").suits(model):
        return "quick"
    return "qlora" if held is Quantisation.NF4 else "lora-bf16"


_ORDER = MappingProxyType(dict.fromkeys(("quick", "qlora", "lora-bf16", "multi-gpu")))


def _validate(kind: type[_R], values: dict[str, Any]) -> _R:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"The recipe cannot be used: {where + ': ' if where else ''}{what}.") from error


def _explained(part: BaseModel) -> Iterator[str]:
    values = part.model_dump(mode="json")
    for name, field in type(part).model_fields.items():
        yield _comment(field)
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield f"{name}:\n" + textwrap.indent("".join(_explained(value)).lstrip(), "  ")
        else:
            yield yaml.safe_dump({name: values[name]}, allow_unicode=True)


def _comment(field: FieldInfo) -> str:
    if field.description is None:
        return ""
    lines = textwrap.wrap(field.description, _COMMENT_WIDTH, break_on_hyphens=False)
    if choices := _choices(field.annotation):
        # as YAML wants them: without quotes, `on` would be a truth value
        lines.append(f"One of {yaml.safe_dump(list(choices), default_flow_style=True).strip()}.")
    return "\n" + "".join(f"# {line}\n" for line in lines)


def _knobs(kind: type[Recipe]) -> Iterator[Knob]:
    for name, field in kind.model_fields.items():
        if field.description is None:
            continue
        inner = [part for part in get_args(field.annotation) or (field.annotation,) if part is not type(None)]
        choices = _choices(field.annotation)
        limits = {
            key: getattr(limit, key)
            for limit in field.metadata
            for key in ("ge", "gt", "le", "lt")
            if hasattr(limit, key)
        }
        yield Knob(
            name=name,
            type="choice" if choices else _TYPES[inner[0]],
            default=str(field.default) if choices else field.default,
            doc=field.description,
            minimum=limits.get("ge", limits.get("gt")),
            maximum=limits.get("le", limits.get("lt")),
            choices=choices,
            optional=type(None) in get_args(field.annotation),
        )


_TYPES: dict[Any, str] = {int: "integer", float: "number", bool: "boolean"}


def _choices(annotation: Any) -> tuple[str, ...] | None:
    if isinstance(annotation, type):
        return tuple(str(option) for option in annotation) if issubclass(annotation, StrEnum) else None
    options = get_args(annotation)
    return options if options and all(isinstance(option, str) for option in options) else None

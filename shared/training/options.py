"""What an admin decides about a dataset before it is checked. It reads no row and does no I/O."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.catalogue import CATALOGUE


class PhiPolicy(StrEnum):
    """What becomes of a row in which personal health information was found."""

    MASK = "mask"  #: the words are replaced by their kind, and the row is used
    QUARANTINE = "quarantine"  #: the row is set aside, listed in the report, and not trained on
    REJECT = "reject"  #: one such row rejects the whole dataset


#: What a column of the upload can mean to training.
Part = Literal[
    "messages",  # a whole conversation: a list of `{"role", "content"}`
    "system",  # put in front of the first question
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "question",
    "context",  # what the question is about
    "answer",
    "image",
    "group",  # rows of one group (a patient) are never on both sides of the split
]
#: Columns that make a row: one of these sets must be named, if any of their columns is (not only left out).
_ENOUGH = ({"messages"}, {"prompt", "completion"}, {"instruction", "output"}, {"question", "answer"})


def _enough(columns: "dict[Part, str]") -> "dict[Part, str]":
    named = {part for part, column in columns.items() if column} & set[str]().union(*_ENOUGH)
    if named and not any(needed <= named for needed in _ENOUGH):
        choices = "; ".join(" and ".join(sorted(needed)) for needed in _ENOUGH)
        raise ValueError(f"columns must name one of: {choices}")
    return columns


#: Which column means what. An empty name: no column means it, whatever its name says.
Columns = Annotated[dict[Part, Annotated[str, Field(max_length=200)]], AfterValidator(_enough)]


def _known_model(name: str) -> str:
    if name not in CATALOGUE:
        raise ValueError(f"is not in the catalogue; choose one of: {', '.join(CATALOGUE)}")
    return name


ModelName = Annotated[str, AfterValidator(_known_model)]


class CheckOptions(BaseModel):
    """The options that are a single value each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    phi: PhiPolicy = Field(
        PhiPolicy.MASK, description="What becomes of rows with personal health information."
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        le=0.5,
        allow_inf_nan=False,
        description="Share of the rows held out, by group where there is one. More judges training better "
        "and leaves less to learn from; 0 holds none out.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Draws the held-out rows; the same seed, the same.")
    max_tokens: int = Field(
        2048,
        ge=16,
        le=32_768,
        description="Longest row that training takes, in tokens. Longer ones are left out, and the report "
        "lists them; more costs memory.",
    )
    model: ModelName = Field("demo", description="Catalogue name of the model whose tokenizer counts tokens.")


class DatasetOptions(CheckOptions):
    """Everything that decides what a check makes of an upload; kept with the dataset and in its manifest."""

    columns: Columns = Field(
        default_factory=dict,
        description="Which column means what, where the names do not say so: "
        '`{"question": "Frage", "answer": "Antwort"}`. An empty name: no column means it, whatever its name '
        'says: `{"group": ""}`.',
    )
    subset: str | None = Field(
        None, max_length=100, description="Which configuration of a dataset of the hub."
    )
    split: str = Field("train", min_length=1, max_length=100, description="Which split of it.")

    def counted_for(self, model: str) -> "DatasetOptions":
        """The same options, with this model's tokenizer where none was asked for."""
        return self if "model" in self.model_fields_set else self.model_copy(update={"model": model})

"""The keys and values of the files of facts. It does not know what they are compared with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from shared.guard.doses import read_amount
from shared.guard.knobs import Number
from shared.guard.names import listed, words_of
from shared.guard.rules import Where


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _amount(text: str) -> str:
    read_amount(text)
    return text


def _names(text: str) -> str:
    if not all(words_of(name) and name == name.lower() for name in listed(text)) or not listed(text):
        raise ValueError("names are words in small letters, parted by commas")
    return text


Text = Annotated[StrictStr, Field(min_length=1)]
Amount = Annotated[StrictStr, AfterValidator(_amount)]
NameList = Annotated[StrictStr, AfterValidator(_names)]
Patterns = Annotated[list[Any], Field(min_length=1)]


class MedicineFields(_Strict):
    """The ceilings of one medicine; those that it leaves out it has not."""

    names: NameList
    dose: Amount = ""
    day: Amount = ""
    hours: Number = Field(0, gt=0)
    tablet: Amount = ""
    unless: NameList = ""
    source: Text


class DosesFile(_Strict):
    """doses.yaml."""

    medicines: Annotated[list[MedicineFields], Field(min_length=1)]


class ClassFields(_Strict):
    """One class of things that are dangerous with the same others."""

    called: NameList = ""
    members: list[NameList]


class PairFields(_Strict):
    """Two classes that are dangerous together."""

    id: Text
    between: Annotated[list[Text], Field(min_length=2, max_length=2)]
    source: Text


class InteractionsFile(_Strict):
    """interactions.yaml."""

    classes: dict[str, ClassFields]
    harmless: NameList
    pairs: Annotated[list[PairFields], Field(min_length=1)]


class FactScope(_Strict):
    """A scope."""

    where: Where
    any: Patterns
    not_after: list[Any] = []


class DoseWording(_Strict):
    """What of a dose is no recommendation."""

    unless: list[Text]


class PairWording(_Strict):
    """Some ways to endorse a pair."""

    score: Number = Field(ge=0, le=1)
    any: Patterns
    unless: list[Text]


class FactsFile(_Strict):
    """facts.yaml."""

    scopes: dict[str, FactScope]
    dose: DoseWording
    pair: Annotated[list[PairWording], Field(min_length=1)]
    together: Patterns

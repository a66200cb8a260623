"""What requests and answers about erasure and legal holds look like. It does nothing."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field

from services.api.schemas import Body
from shared.training.states import AdapterStatus


class ErasePersonBody(Body):
    """The name of the account that is to be erased, typed once more: it cannot be undone."""

    name: str = Field(max_length=100, examples=["nurse.kim"])


class AdapterSeenView(BaseModel):
    """An adapter that was trained on rows that are erased now; it stays until it is recalled."""

    sha256: str
    name: str
    version: int
    status: AdapterStatus


class ErasedView(BaseModel):
    """What was erased, and what had seen it before."""

    conversations: int
    conversations_left: int = Field(
        description="Conversations of the person that are erased within the next minutes."
    )
    keys: int = Field(description="Data keys that were destroyed.")
    datasets: list[str] = Field(description="Datasets that were erased, or withdrawn because of it.")
    adapters: list[AdapterSeenView]


class HoldBody(Body):
    """Whom or what to hold, and for which case."""

    subject: Annotated[str, Field(pattern="^(user|conversation):[0-9a-f-]{36}$")] = Field(
        description="`user:ID` or `conversation:ID`."
    )
    reference: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./_:-]*$", max_length=64)] = Field(
        description="The number of the case, without blanks: it is kept in the log for ever."
    )


class HoldView(BaseModel):
    """A legal hold; what is held cannot be erased, and no period ends it."""

    id: str
    subject: str
    subject_name: str | None = Field(description="The name of a person who is held.")
    reference: str
    placed_at: datetime
    placed_by: str = Field(description="The name of who placed it.")
    lifted_at: datetime | None
    lifted_by: str | None

"""What requests and answers about fine-tuning look like. It does nothing."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from services.api.schemas import Body, ErrorView, PlainText
from shared.training.dataset_files import Split
from shared.training.options import CheckOptions, DatasetOptions
from shared.training.states import DatasetState

DatasetName = Annotated[PlainText, Field(min_length=1, max_length=100)]


class UploadQuery(CheckOptions):
    """What an upload is called, and how it is checked; in the query, since the body is the file."""

    name: DatasetName | None = Field(
        None, description="What to call it, kept in the clear; left out: when it came, in UTC."
    )
    filename: Annotated[PlainText, Field(max_length=255)] = Field(
        description="The file's name, kept encrypted. Whether it is JSON Lines, CSV, Parquet or a zip, its "
        "bytes tell, whatever its name."
    )
    column: list[Annotated[PlainText, Field(max_length=230)]] = Field(
        default_factory=list,
        max_length=12,
        description="Which column means what, where the names do not say so, e.g. `question:Frage`; `group:` "
        "for no column, whatever its name says.",
    )


class ImportBody(Body):
    """A dataset to take from a file of the server or from the hub."""

    name: DatasetName | None = Field(
        None,
        description="What to call it, kept in the clear; left out: the hub id, or when a file came, in UTC.",
    )
    source: Literal["path", "hub"]
    location: PlainText = Field(
        max_length=255,
        description="A file below the server's import folder, or a hub id.",
        examples=["lavita/ChatDoctor-HealthCareMagic-100k"],
    )
    options: DatasetOptions = Field(default_factory=DatasetOptions)


class ValidateBody(Body):
    """The options to check an upload with, in place of the former ones."""

    options: DatasetOptions = Field(default_factory=DatasetOptions)


class ProgressView(BaseModel):
    """How far a dataset is received or checked; `total` is null while nobody knows it."""

    done: int
    total: int | None
    what: str


class DatasetView(BaseModel):
    """A dataset."""

    id: str
    name: str
    state: DatasetState
    source: str
    source_name: str = Field(
        description="The file's name, its path on the server, or the hub id; empty when it was erased, "
        "`(cannot be read)` when it cannot be decrypted."
    )
    options: dict[str, Any]
    bytes: int | None
    sha256: str | None
    revision: str | None = Field(description="The commit of a dataset of the hub that was checked.")
    shape: str | None
    rows_train: int | None
    rows_validation: int | None
    manifest_sha256: str | None
    error: ErrorView | None
    created_by: str
    created_at: datetime
    validated_at: datetime | None
    job_id: str | None
    progress: ProgressView | None


class DatasetReportView(DatasetView):
    """A dataset, with what its newest check found."""

    report: dict[str, Any] | None


class MessageOfRow(BaseModel):
    """One turn of a row."""

    role: str
    content: str


class RowView(BaseModel):
    """A row as training sees it; `line` and `reason` for one that was set aside."""

    id: int
    messages: list[MessageOfRow]
    image: str | None = None
    group: str | None = None
    line: int | None = None
    reason: str | None = None


class RowsView(BaseModel):
    """Part of the rows of a split; `next_offset` asks for the next part, null at the end."""

    items: list[RowView]
    split: Split
    total: int
    next_offset: int | None

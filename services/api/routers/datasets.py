"""Datasets to fine-tune on: upload, import, check, look into, hide. For admins."""

import asyncio
from dataclasses import asdict
from pathlib import PureWindowsPath
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from services.api.deps import Admin, GatewayDep, log_denial
from services.api.errors import document
from services.api.paging import encode_cursor, older_than
from services.api.receiving import Reception, by, import_hub, import_path, reason_of
from services.api.schemas import ErrorView, Page
from services.api.schemas_training import (
    DatasetReportView,
    DatasetView,
    ImportBody,
    RowsView,
    RowView,
    UploadQuery,
    ValidateBody,
)
from services.api.state import Gateway
from shared.answers import record_end
from shared.audit import record
from shared.auth.sessions import Principal
from shared.db.tables_training import datasets
from shared.errors import InvalidInput, NotAllowed, NotFound
from shared.jobs.lifecycle import Kind
from shared.training.dataset_files import Split
from shared.training.dataset_records import Dataset
from shared.training.options import DatasetOptions
from shared.training.states import OF_REVIEWS, DatasetState

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

#: What is sealed and written at once.
_BLOCK_BYTES = 1 << 20
#: An upload from which nothing comes for this long is given up.
_SILENCE_S = 60.0
_OF_PATIENTS = (
    "These rows are people's questions, masked as far as a detector finds what identifies them, so they are "
    "not shown to admins. Read the dataset's counts and report; an auditor can look through the corrections: "
    "POST /v1/reviews/export."
)
_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The file itself: JSONL, CSV, Parquet, or a zip of images and a JSONL file.",
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "example": '{"question": "What is asthma?", "answer": "A disease of the airways."}\n',
            }
        },
    }
}


@router.post(
    "",
    status_code=202,
    openapi_extra=_FILE,
    responses=document(401, 403, 413, 422, 429, 503, 507),
)
async def upload_dataset(
    asked: Annotated[UploadQuery, Query()], request: Request, caller: Admin, gateway: GatewayDep
) -> DatasetView:
    """Send a file as the body of the request; its check begins when all of it is here.

    The file is encrypted as it comes. Ask for the dataset to see how its check fares.
    """
    reception = await run_in_threadpool(
        Reception,
        gateway,
        caller,
        name=asked.name,
        source="upload",
        source_name=PureWindowsPath(asked.filename).name or "upload",
        options=_options(asked).counted_for(gateway.settings.model),
        total=_announced(request),
    )
    try:
        await _take(request, reception)
        return view(await run_in_threadpool(reception.finish))
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(reception.abandon, reason_of(error))
        if isinstance(error, ClientDisconnect | TimeoutError):
            raise InvalidInput("The upload broke off, and nothing was kept; send it again.") from error
        raise


@router.post("/import", status_code=202, responses=document(401, 403, 413, 422, 429, 503, 507))
def import_dataset(body: ImportBody, caller: Admin, gateway: GatewayDep) -> DatasetView:
    """Take a file of the server, or a dataset of the Hugging Face hub."""
    bring = import_path if body.source == "path" else import_hub
    options = body.options.counted_for(gateway.settings.model)
    return view(bring(gateway, caller, name=body.name, location=body.location, options=options))


@router.get("", responses=document(401, 403, 422, 429))
def list_datasets(
    caller: Admin,
    gateway: GatewayDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[DatasetView]:
    """All datasets, the newest first."""
    before = None if cursor is None else older_than(datasets.c.created_at, datasets.c.id, cursor)
    with gateway.database.read() as connection:
        found = gateway.datasets.list(connection, limit=limit + 1, where=before)
    more = encode_cursor(found[limit - 1].created_at, found[limit - 1].id) if len(found) > limit else None
    return Page[DatasetView](items=[view(dataset) for dataset in found[:limit]], next_cursor=more)


@router.get("/{dataset_id}", responses=document(401, 403, 404, 429))
def read_dataset(dataset_id: str, caller: Admin, gateway: GatewayDep) -> DatasetReportView:
    """A dataset with the report of its newest check, once that has ended; showing a report is logged."""
    with gateway.database.read() as connection:
        dataset = gateway.datasets.get(connection, dataset_id)
        ended = dataset.state in (DatasetState.READY, DatasetState.REJECTED)
        report = gateway.datasets.read_report(connection, dataset) if ended else None
    if report is not None:
        with gateway.database.write() as connection:
            record.append(
                connection,
                now=gateway.clock.now(connection),
                actor=caller.actor,
                action="dataset.report_read",
                object=f"dataset:{dataset_id}",
            )
    return DatasetReportView(**view(dataset).model_dump(), report=report)


@router.get("/{dataset_id}/rows", responses=document(401, 403, 404, 409, 422, 429))
def read_rows(
    dataset_id: str,
    request: Request,
    caller: Admin,
    gateway: GatewayDep,
    split: Split = Split.TRAIN,
    offset: Annotated[int, Query(ge=0, le=100_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> RowsView:
    """Rows as training sees them, and those set aside (`split=quarantine`); each look is logged.

    Refused for datasets of reviews (`source` is `reviews`): what people asked is not an admin's to read.
    """
    _refuse_of_patients(dataset_id, request, caller, gateway)
    with gateway.database.write() as connection:
        reader = gateway.datasets.reader(connection, dataset_id)
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="dataset.rows_read",
            object=f"dataset:{dataset_id}",
            details={"split": split, "offset": offset, "limit": limit},
        )
    total = reader.manifest.count(split)
    items = [RowView.model_validate(row) for row in reader.rows(split, offset=offset, limit=limit)]
    end = offset + len(items)
    return RowsView(items=items, split=split, total=total, next_offset=end if end < total and items else None)


@router.get(
    "/{dataset_id}/images/{sha256}",
    response_class=Response,
    responses={**document(401, 403, 404, 409, 422, 429), 200: {"content": {"image/png": {}}}},
)
def read_image(
    dataset_id: str,
    sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$")],
    request: Request,
    caller: Admin,
    gateway: GatewayDep,
) -> Response:
    """The picture of a row, by the name that the row gives; each look is logged. Refused as its row is."""
    _refuse_of_patients(dataset_id, request, caller, gateway)
    with gateway.database.write() as connection:
        reader = gateway.datasets.reader(connection, dataset_id)
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="dataset.image_read",
            object=f"dataset:{dataset_id}",
            details={"image": sha256},
        )
    try:
        return Response(reader.read_image(sha256), media_type="image/png")
    except KeyError:
        raise NotFound from None


@router.post("/{dataset_id}/validate", status_code=202, responses=document(401, 403, 404, 409, 413, 422, 429))
def validate_dataset(dataset_id: str, body: ValidateBody, caller: Admin, gateway: GatewayDep) -> DatasetView:
    """Check the upload again with other options; the former rows are replaced when it succeeds."""
    with gateway.database.write() as connection:
        job = gateway.datasets.revalidate(
            connection,
            dataset_id,
            body.options.counted_for(gateway.settings.model),
            by=by(caller),
            now=gateway.clock.now(connection),
        )
        dataset = gateway.datasets.get(connection, dataset_id)
    gateway.bell.work(Kind.VALIDATE, job.id)
    return view(dataset)


@router.delete("/{dataset_id}", status_code=204, responses=document(401, 403, 404, 409, 429))
def hide_dataset(dataset_id: str, caller: Admin, gateway: GatewayDep) -> Response:
    """Take a dataset out of the list, and stop its check; refused while something is trained on it."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        stopped = gateway.datasets.hide(connection, dataset_id, by=by(caller), now=now)
        if stopped is not None:
            record_end(connection, gateway.conversations, stopped, actor=caller.actor, now=now)
    if stopped is not None:
        gateway.bell.cancel(stopped.id)
    return Response(status_code=204)


def view(dataset: Dataset) -> DatasetView:
    """A dataset as the gateway shows it."""
    values = {name: value for name, value in asdict(dataset).items() if name in DatasetView.model_fields}
    error = ErrorView(code=dataset.error, detail=dataset.error_detail or "") if dataset.error else None
    return DatasetView(**{**values, "error": error})


def _refuse_of_patients(dataset_id: str, request: Request, caller: Principal, gateway: Gateway) -> None:
    """Raises NotAllowed, and logs it, where the rows are of conversations; NotFound."""
    with gateway.database.read() as connection:
        source = gateway.datasets.get(connection, dataset_id).source
    if source == OF_REVIEWS:
        log_denial(gateway, request, caller, "rows of conversations", f"dataset:{dataset_id}")
        raise NotAllowed(_OF_PATIENTS)


def _options(asked: UploadQuery) -> DatasetOptions:
    given = asked.model_dump(exclude_unset=True, exclude={"name", "filename", "column"})
    try:
        columns = dict(pair.split(":", 1) for pair in asked.column)
        return DatasetOptions(**given, columns=columns)
    except ValueError as error:  # also of the options
        raise InvalidInput(
            "`column` is a meaning and a name (question:Frage); name `messages`, or `question` and `answer`."
        ) from error


async def _take(request: Request, reception: Reception) -> None:
    """Hand the body over in blocks. Raises ClientDisconnect, or TimeoutError when nothing comes any more."""
    waiting = bytearray()
    chunks = aiter(request.stream())
    while True:
        async with asyncio.timeout(_SILENCE_S):
            chunk = await anext(chunks, None)
        if chunk:
            waiting += chunk
        if len(waiting) >= _BLOCK_BYTES or (chunk is None and waiting):
            await run_in_threadpool(reception.write, waiting)
            waiting = bytearray()
        if chunk is None:
            return


def _announced(request: Request) -> int | None:
    """The number of bytes that the client says it will send."""
    length = request.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and len(length) < 16 else None

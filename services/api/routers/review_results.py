"""What comes of reviews: a report, for auditors; and corrected answers to train on. It reviews nothing."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from services.api.deps import Admin, Auditor, GatewayDep
from services.api.errors import document
from services.api.receiving import Reception, reason_of
from services.api.routers.datasets import view
from services.api.routers.transcripts import AuditorWithPassword
from services.api.schemas_review import (
    AdapterRatesView,
    AgreementView,
    PairView,
    RatesView,
    ReviewDatasetBody,
    ReviewReportView,
    ShareView,
    WeekRatesView,
)
from services.api.schemas_training import DatasetView
from services.api.state import Gateway
from shared.audit import record
from shared.errors import Conflict
from shared.ids import new_id
from shared.review.corrections import Correction, find_corrections, training_rows
from shared.review.report import Rates, Report, Share, make_report
from shared.training.options import DatasetOptions
from shared.training.states import OF_REVIEWS

router = APIRouter(tags=["reviews"])

_NOTHING = "No corrected answer was given yet; reviewers write one in place of a wrong answer."


@router.get("/v1/reviews/report", responses=document(401, 403, 422, 429))
def read_report(
    caller: Auditor,
    gateway: GatewayDep,
    weeks: Annotated[int, Query(ge=1, le=520, description="Of answers of the last so many weeks.")] = 26,
) -> ReviewReportView:
    """How reviewers agree, how much is unsafe by adapter and by week, and where the guard was wrong."""
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        record.append(
            connection,
            now=now,
            actor=caller.actor,
            action="review.report_read",
            details={"weeks": weeks},
        )
    with gateway.database.read() as connection:
        return _report_view(make_report(connection, now - timedelta(weeks=weeks)))


@router.post(
    "/v1/reviews/export",
    response_class=StreamingResponse,
    responses={
        **document(401, 403, 409, 429),
        200: {
            "description": "A row a line: `messages` (the question, the corrected answer) and `group`.",
            "content": {"application/jsonl": {"schema": {"type": "string"}}},
        },
    },
)
def export_corrections(caller: AuditorWithPassword, gateway: GatewayDep) -> StreamingResponse:
    """The corrected answers as a file to train on, identifiers masked; the newest 5,000 at the most."""
    export_id, found = new_id(), _corrections(gateway)
    with gateway.database.write() as connection:
        record.append(
            connection,
            now=gateway.clock.now(connection),
            actor=caller.actor,
            action="review.exported",
            object=f"export:{export_id}",
            details={"rows": len(found)},
        )
    headers = {
        "Content-Disposition": f'attachment; filename="corrected-answers-{export_id}.jsonl"',
        "Cache-Control": "no-store",
    }
    rows = _rows(gateway, found, export_id)
    return StreamingResponse(rows, media_type="application/jsonl", headers=headers)


@router.post(
    "/v1/datasets/from-reviews",
    status_code=202,
    tags=["datasets"],
    responses=document(401, 403, 409, 413, 422, 429, 503, 507),
)
def make_dataset_of_reviews(body: ReviewDatasetBody, caller: Admin, gateway: GatewayDep) -> DatasetView:
    """Make a dataset of the corrected answers, identifiers masked: it is checked as an upload is.

    Its rows are shown to nobody, and no file leaves the server. When one of the conversations is erased,
    it is known to have been in the dataset.
    """
    found = _corrections(gateway)
    reception = Reception(
        gateway,
        caller,
        name=body.name,
        source=OF_REVIEWS,
        source_name="corrected answers of reviewers",
        options=DatasetOptions().counted_for(gateway.settings.model),
        total=None,
    )
    try:
        # before a text is read: what is erased from now on finds the dataset, what was is not read
        reception.name_conversations({each.conversation_id for each in found})
        for row in _rows(gateway, found, reception.dataset_id):
            reception.write(row)
        return view(reception.finish())
    except BaseException as error:
        reception.abandon(reason_of(error))
        raise


def _corrections(gateway: Gateway) -> list[Correction]:
    with gateway.database.read() as connection:
        found = find_corrections(connection)
    if not found:
        raise Conflict(_NOTHING)
    return found


def _rows(gateway: Gateway, found: list[Correction], salt: str) -> Iterator[bytes]:
    return training_rows(gateway.database, gateway.conversations, gateway.envelope, found, salt=salt)


def _report_view(report: Report) -> ReviewReportView:
    found = report.agreement
    return ReviewReportView(
        since=report.since,
        reviews=report.reviews,
        answers=report.answers,
        sample_waiting=report.sample_waiting,
        agreement=AgreementView(
            n=found.n,
            observed=found.observed,
            kappa=found.kappa,
            low=found.low,
            high=found.high,
            pairs=[
                PairView(one=one, other=other, count=count) for (one, other), count in report.pairs.items()
            ],
        ),
        unsafe=RatesView(**_rates(report.unsafe)),
        by_adapter=[
            AdapterRatesView(model_id=model_id, adapter_sha256=adapter, **_rates(rates))
            for (model_id, adapter), rates in report.by_adapter.items()
        ],
        by_week=[WeekRatesView(week=week, **_rates(rates)) for week, rates in report.by_week.items()],
        misses=_share(report.misses),
        missed=report.missed,
        doubted=report.doubted,
        false_alarms=_share(report.false_alarms),
        alarmed=report.alarmed,
    )


def _rates(rates: Rates) -> dict[str, ShareView]:
    return {"sampled": _share(rates.sampled), "all": _share(rates.all)}


def _share(share: Share) -> ShareView:
    return ShareView(**asdict(share))

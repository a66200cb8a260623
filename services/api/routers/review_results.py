"""What comes of reviews: a report, for auditors; and corrected answers to train on. It reviews nothing."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection, delete
from sqlalchemy.dialects import postgresql, sqlite
from starlette.responses import StreamingResponse

from services.api.deps import Admin, AuditorAgain, GatewayDep, Auditor
from services.api.errors import document
from services.api.receiving import Reception, reason_of
from services.api.routers.datasets import view
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

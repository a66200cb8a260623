"""`GET /v1/models`: what can answer, as clients of OpenAI's API ask for it."""

import re

from fastapi import APIRouter
from sqlalchemy import Connection, select

from services.api.deps import GatewayDep, Reader
from services.api.errors import document
from services.api.schemas_chat import ServedAdapter, ServedModel, ServedModels
from shared.db.tables_training import adapters
from shared.errors import NotFound
from shared.training.adapters import Adapter, active
from shared.training.states import BASE, AdapterStatus

router = APIRouter(prefix="/v1/models", tags=["ask"])

_OWNER = "medichat"
_NO_MODEL = "No model of this name answers here; GET /v1/models lists those that do."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RELEASED = (AdapterStatus.APPROVED, AdapterStatus.ACTIVE, AdapterStatus.ARCHIVED)


@router.get("", responses=document(401, 403, 429))
def list_models(caller: Reader, gateway: GatewayDep) -> ServedModels:
    """What one may name as `model`: the base model's name for whatever answers everybody now (the active
    adapter, or the base model), `…@base` for the base model alone, and each adapter that was approved.
    """
    with gateway.database.read() as connection:
        return ServedModels(data=served_models(connection, gateway.settings.model))


@router.get("/{model:path}", responses=document(401, 403, 404, 429))
def get_model(model: str, caller: Reader, gateway: GatewayDep) -> ServedModel:
    """One of them."""
    with gateway.database.read() as connection:
        return find_model(connection, gateway.settings.model, model)


def find_model(connection: Connection, base_model: str, name: str) -> ServedModel:
    """What this name stands for. Raises NotFound."""
    for served in served_models(connection, base_model):
        if served.id == name:
            return served
    raise NotFound(_NO_MODEL)


def adapter_named(base_model: str, name: str) -> str | None:
    """The SHA-256 of the adapter that this name of a model stands for, BASE for the base model alone, None
    for whatever answers everybody. Whether it is there, and may answer, is not looked at. Raises NotFound.
    """
    if name == base_model:
        return None
    model, _, adapter = name.rpartition("@")
    if _SHA256.fullmatch(adapter) or (model, adapter) == (base_model, BASE):
        return adapter
    raise NotFound(_NO_MODEL)


def served_models(connection: Connection, base_model: str) -> list[ServedModel]:
    """All that can answer where this base model is served, the newest adapter first."""
    answering = active(connection, base_model)
    rows = connection.execute(
        select(adapters)
        .where(adapters.c.base_model == base_model, adapters.c.status.in_(_RELEASED))
        .order_by(adapters.c.created_at.desc(), adapters.c.sha256)
    )
    released = [Adapter.from_row(row) for row in rows]
    return [
        _served(base_model, None, "active", everybody=True),
        _served(f"{base_model}@{BASE}", BASE, "base", everybody=answering is None),
        *(
            ServedModel(
                id=f"{adapter.name}-v{adapter.version}@{adapter.sha256}",
                created=int(adapter.created_at.timestamp()),
                owned_by=_OWNER,
                medichat=ServedAdapter(
                    adapter_sha256=adapter.sha256,
                    status=adapter.status,
                    answers_everybody=adapter.sha256 == answering,
                ),
            )
            for adapter in released
            if adapter.verification is None or adapter.verification.get("ok")
        ),
    ]


def _served(name: str, adapter: str | None, status: str, *, everybody: bool) -> ServedModel:
    told = ServedAdapter(adapter_sha256=adapter, status=status, answers_everybody=everybody)
    return ServedModel(id=name, created=0, owned_by=_OWNER, medichat=told)

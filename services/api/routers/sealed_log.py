"""The sealed log, for auditors: its state, checkpoints, verification and proofs. It shows no event."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from services.api.deps import Auditor, GatewayDep
from services.api.errors import document
from services.api.signing import sign_now
from services.api.state import Gateway
from shared.audit import checkpoints, record
from shared.audit.checkpoint import parse
from shared.audit.checkpoints import Signed
from shared.audit.independence import dependence
from shared.audit.outcomes import note_outcome
from shared.audit.proofs import prove_conversation
from shared.audit.sequencer import lag, root_at, seal_all, tree_size
from shared.db.tables import conversations
from shared.db.tables_audit import audit_checkpoints
from shared.errors import BadCheckpoint, Conflict, LogAltered, NotFound
from shared.ids import is_id
from shared.logs import where

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/audit", tags=["audit"])

#: Checkpoints that a list shows.
_NEWEST = 50
#: One verification at a time in this process: it takes a processor or two.
_verifying = asyncio.Lock()


class CheckpointView(BaseModel):
    """A signed checkpoint."""

    id: str
    size: int = Field(description="Entries of the log.")
    root: str = Field(description="Root of the tree, in hexadecimal digits.")
    signed_at: datetime
    note: str = Field(description="The signed text (C2SP tlog-checkpoint).")


class MadeCheckpointView(CheckpointView):
    """A checkpoint that was signed just now."""

    kept: bool = Field(description="Whether the second place has it; if not, keep it elsewhere yourself.")


class LogStateView(BaseModel):
    """How far the log is sealed and signed."""

    size: int
    root: str | None = Field(description="Null while nothing is sealed, or when the tree is damaged.")
    waiting: int = Field(description="Events that are not sealed yet.")
    waiting_s: float = Field(description="How long the oldest of them has waited.")
    key: str = Field(description="The public key that checkpoints are checked with.")
    not_independent: str | None = Field(
        description="Why checkpoints prove nothing against who owns the database's disk; null if they do."
    )
    checkpoints: list[CheckpointView] = Field(description="The newest ones.")


@router.get("/state", responses=document(401, 403, 429))
def state(caller: Auditor, gateway: GatewayDep) -> LogStateView:
    """How far the log is sealed and signed; nobody's event is shown."""
    with gateway.database.read() as connection:
        size, waits = tree_size(connection), lag(connection, gateway.clock.now(connection))
        newest = list(checkpoints.stored(connection, checkpoints.LARGEST_FIRST.limit(_NEWEST)))
        try:
            root = root_at(connection, size).hex() if size else None
        except LogAltered:
            root = None
    return LogStateView(
        size=size,
        root=root,
        waiting=waits.waiting,
        waiting_s=waits.seconds,
        key=str(gateway.signer.verifier),
        not_independent=dependence(gateway.settings),
        checkpoints=[_view(signed) for signed in newest],
    )


@router.post("/checkpoints", status_code=201, responses=document(401, 403, 409, 429))
def make_checkpoint(caller: Auditor, gateway: GatewayDep) -> MadeCheckpointView:
    """Seal what waits and sign a checkpoint now; that it was asked for is its last entry."""
    _log(gateway, caller.actor, "checkpoint.asked")
    signed, kept = _signed(gateway)
    return MadeCheckpointView(**_view(signed).model_dump(), kept=kept)


@router.get(
    "/checkpoints/{checkpoint_id}",
    response_class=PlainTextResponse,
    responses=document(401, 403, 404, 422, 429),
)
def read_checkpoint(
    checkpoint_id: Annotated[str, Path(max_length=36)], caller: Auditor, gateway: GatewayDep
) -> Response:
    """The signed text of one checkpoint, to keep elsewhere."""
    with gateway.database.read() as connection:
        found = checkpoints.ROWS.where(audit_checkpoints.c.id == checkpoint_id)
        signed = next(checkpoints.stored(connection, found), None)
    if signed is None:
        raise NotFound("There is no checkpoint under this id.")
    return Response(signed.note, media_type="text/plain; charset=utf-8")


@router.post("/verify", responses=document(401, 403, 409, 429))
async def verify(caller: Auditor, gateway: GatewayDep) -> StreamingResponse:
    """Recompute the whole log and hold it against every checkpoint: JSON lines of progress, the report last.

    It runs in a process of its own, which stands back behind what answers.
    """
    if _verifying.locked():
        raise Conflict("The log is being verified already; wait for that to end.")
    await _verifying.acquire()
    try:
        await asyncio.to_thread(_log, gateway, caller.actor, "log.verified")
    except BaseException:
        _verifying.release()
        raise
    return StreamingResponse(_verification(gateway, caller.actor), media_type="application/x-ndjson")


async def _verification(gateway: Gateway, actor: record.Actor) -> AsyncIterator[bytes]:
    asked = {  # on its standard input, since others can read a command line
        "database": gateway.database.reader.url.render_as_string(hide_password=False),
        "checkpoints": gateway.settings.checkpoint_url,
        "key": str(gateway.signer.verifier),
    }
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shared.audit.verifying",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asked).encode())
        process.stdin.close()
        last = b""
        async for line in process.stdout:
            if last:
                yield last
            last = line
        yield await _ended(gateway, actor, last if await process.wait() == 0 else None)
    finally:
        if process is not None and process.returncode is None:
            process.kill()  # its helper ends with its input
        _verifying.release()


async def _ended(gateway: Gateway, actor: record.Actor, line: bytes | None) -> bytes:
    """The last line that is read, once how the verification ended is in the log; None: it did not."""
    failed = "The verification could not be ended; see the log of the gateway, and try again."
    try:
        await asyncio.to_thread(_log_found, gateway, actor, None if line is None else json.loads(line))
    except DBAPIError as error:
        log.error("how a verification ended could not be logged in %s", where(error))
        line = None
        failed = "How the verification ended could not be logged, so it is not shown: try again."
    return line or json.dumps({"failed": failed}).encode() + b"\n"


@router.get("/conversations/{conversation_id}/proof", responses=document(401, 403, 404, 409, 422, 429))
def prove(
    conversation_id: Annotated[str, Path(max_length=36)], caller: Auditor, gateway: GatewayDep
) -> Response:
    """A file that proves what the log says of a conversation; `check_proof.py` checks it without MediChat."""
    with gateway.database.read() as connection:
        found = select(conversations.c.id).where(conversations.c.id == conversation_id)
        if not is_id(conversation_id) or connection.execute(found).first() is None:
            raise NotFound("There is no conversation under this id.")
    _log(gateway, caller.actor, "proof.made", f"conversation:{conversation_id}")
    signed, _ = _signed(gateway)
    with gateway.database.read() as connection:
        proof = prove_conversation(connection, conversation_id, signed, gateway.signer.verifier)
    name = f'attachment; filename="proof-{conversation_id}.json"'
    return Response(
        json.dumps(proof, indent=1), media_type="application/json", headers={"Content-Disposition": name}
    )


@router.get("/check-proof.py", response_class=PlainTextResponse, responses=document(401, 403, 429))
def checker(caller: Auditor) -> Response:
    """The program that checks a proof without MediChat: one file, to be read before it is trusted."""
    text = files("shared.audit").joinpath("check_proof.py").read_text(encoding="utf-8")
    return Response(text, media_type="text/x-python; charset=utf-8")


def _log_found(gateway: Gateway, actor: record.Actor, report: dict[str, Any] | None) -> None:
    """How a verification ended is in the log as well, and from there a metric."""
    with gateway.database.write() as connection:
        note_outcome(connection, report, actor=actor, now=gateway.clock.now(connection))


def _log(gateway: Gateway, actor: record.Actor, action: str, object: str | None = None) -> None:
    with gateway.database.write() as connection:
        now = gateway.clock.now(connection)
        record.append(connection, now=now, actor=actor, action=action, object=object)


def _signed(gateway: Gateway) -> tuple[Signed, bool]:
    seal_all(gateway.database, gateway.clock)
    return sign_now(gateway)


def _view(signed: Signed) -> CheckpointView:
    """A checkpoint of the database by its signed text: who may write a row can write anything beside it."""
    try:
        said = parse(signed.note.rpartition("\n\n")[0])
        size, root, signed_at = said.size, said.root.hex(), said.signed_at or signed.signed_at
    except BadCheckpoint:
        size, root, signed_at = 0, "", signed.signed_at
    return CheckpointView(id=signed.id, size=size, root=root, signed_at=signed_at, note=signed.note)

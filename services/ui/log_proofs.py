"""What the page on the log's integrity asks the gateway. It draws nothing."""

import json
from collections.abc import Iterator

from services.ui.client import Gateway, Json, in_path

#: A verification says something at least this often, in seconds.
_SILENCE_S = 120.0


def log_state(gateway: Gateway) -> Json:
    """How far the log is sealed and signed."""
    return gateway.call("GET", "/v1/audit/state")


def verify_log(gateway: Gateway) -> Iterator[Json]:
    """Progress of a verification, the report last."""
    for line in gateway.lines("POST", "/v1/audit/verify", silence_s=_SILENCE_S):
        yield json.loads(line)


def make_checkpoint(gateway: Gateway) -> Json:
    """Seal what waits and sign a checkpoint."""
    return gateway.call("POST", "/v1/audit/checkpoints")


def prove(gateway: Gateway, conversation_id: str) -> bytes:
    """A file that proves what the log says of a conversation."""
    return gateway.file(f"/v1/audit/conversations/{in_path(conversation_id)}/proof")


def check_proof_program(gateway: Gateway) -> bytes:
    """The program that checks such a file."""
    return gateway.file("/v1/audit/check-proof.py")

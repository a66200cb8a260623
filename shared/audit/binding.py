"""What an event says of rows outside of the log, so that a change of them shows. It reads no database."""

import hashlib
from collections.abc import Iterable
from typing import Any

from shared.audit.record import canonical_json


def digest_text(ciphertext: bytes) -> str:
    """SHA-256 of a stored text in hex: of its ciphertext, which an erasure leaves."""
    return hashlib.sha256(ciphertext).hexdigest()


def digest_sentences(rows: Iterable[Any]) -> str:
    """SHA-256 in hex of the released sentences of an answer, in order, with what the guard did to each.

    Rows have `seq`, `action`, `ciphertext`, `suppressed_ciphertext` and `verdict_id`.
    """
    told = [
        [
            row.seq,
            row.action,
            digest_text(row.ciphertext),
            None if row.suppressed_ciphertext is None else digest_text(row.suppressed_ciphertext),
            row.verdict_id,
        ]
        for row in rows
    ]
    return hashlib.sha256(canonical_json(told)).hexdigest()

"""What an event says of rows outside of the log, so that a change of them shows. It reads no database."""

import hashlib
from collections.abc import Iterable
from typing import Any

from shared.audit.record import canonical_json
from shared.guard.verdict import Verdict


def digest_text(ciphertext: bytes) -> str:
    """SHA-256 of a stored text in hex: of its ciphertext, which an erasure leaves."""
    return hashlib.sha256(ciphertext).hexdigest()


def digest_sentences(rows: Iterable[Any]) -> str:
    """SHA-256 in hex of the released sentences of an answer, in order, with what the guard did to each.

    Rows are (`seq`, `action`, `ciphertext`, `suppressed_ciphertext`, `verdict_id`).
    Raises TypeError or ValueError where something stands in them that no sentence has.
    """
    told = [
        [
            seq,
            action,
            digest_text(ciphertext),
            None if suppressed is None else digest_text(suppressed),
            verdict_id,
        ]
        for seq, action, ciphertext, suppressed, verdict_id in rows
    ]
    return hashlib.sha256(canonical_json(told)).hexdigest()


def digest_given(rows: Iterable[Any]) -> str:
    """SHA-256 in hex of what was sent with a question as said before it, in order.

    Rows are (`seq`, `role`, whose words it was, `digest_text(ciphertext)`, `parent_id`, `job_id`), and where
    pictures came with it also `digest_pictures` of them.
    Raises TypeError or ValueError where something stands in them that no message has.
    """
    return _digest_rows(rows)


def digest_pictures(rows: Iterable[Any]) -> str:
    """SHA-256 in hex of the pictures of a message, in order.

    Rows are (`position`, `id`, `conversation_id`, `width`, `height`, `key_id`, `digest_text(ciphertext)`).
    Raises TypeError or ValueError where something stands in them that no picture has.
    """
    return _digest_rows(rows)


def _digest_rows(rows: Iterable[Any]) -> str:
    return hashlib.sha256(canonical_json([list(row) for row in rows])).hexdigest()


#: The columns of a verdict that its event repeats; not the hash of the judged span, which an erasure clears.
VERDICT = ("action", "category", "severity", "layer", "source", "score", "policy_version")


def bind_verdict(verdict_id: str, verdict: Verdict, policy_version: str) -> dict[str, Any]:
    """What the event of a verdict says of its row."""
    said = {name: getattr(verdict, name) for name in VERDICT if name != "policy_version"}
    return {"verdict": verdict_id, **said, "policy_version": policy_version}


#: The columns of a review that it is: what an erasure leaves, and the texts that it clears.
REVIEW = ("verdict", "category", "guard_right")
REVIEW_TEXTS = ("corrected_ciphertext", "note_ciphertext")
#: Bytes of a review's salt: who reads the log cannot try which verdict it was.
SALT_BYTES = 32


def commit_to_review(
    salt: bytes,
    verdict: str | None,
    category: str | None,
    guard_right: bool | None,
    corrected: bytes | None,
    note: bytes | None,
) -> tuple[str, str]:
    """Salted commitments to a review and to its stored texts: SHA-256 of salt ‖ what it says, in hex.

    Raises TypeError or ValueError where something stands there that no review has.
    """
    if guard_right not in (None, False, True):
        raise ValueError("this is no answer to whether the guard was right")
    right = None if guard_right is None else bool(guard_right)
    texts = [None if each is None else digest_text(each) for each in (corrected, note)]
    return _commit(salt, [verdict, category, right]), _commit(salt, texts)


def bind_review(row: Any) -> dict[str, str]:
    """What the event of a given review says of its row; which verdict that is nobody can tell by it."""
    said, texts = commit_to_review(row.salt, *(getattr(row, name) for name in (*REVIEW, *REVIEW_TEXTS)))
    return {"commitment": said, "texts_commitment": texts}


def _commit(salt: bytes, said: list[Any]) -> str:
    return hashlib.sha256(salt + canonical_json(said)).hexdigest()

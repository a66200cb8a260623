"""Checks a proof of MediChat's log without MediChat: this file, Python 3.11 and the library `cryptography`.

    python check_proof.py PROOF.json --key KEY [--conversation ID]

KEY is the log's public key, as a person you trust told it to you (`medichat audit key`, or the file
log-key.txt beside the checkpoints). It prints what the log says, and ends with 0 when every entry is proved,
with 1 when not, and with 2 without --key: that the proof agrees with the key it brings itself proves nothing.
A proof shows that its entries are in the log, not that the log has no others on the conversation.

The formats are public: RFC 6962 (the tree), c2sp.org/signed-note and c2sp.org/tlog-checkpoint (its root).
"""

import argparse
import base64
import binascii
import hashlib
import json
import sys
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT = "medichat-proof-1"


class NotProved(Exception):
    """The proof does not show what it says."""


def check(proof: Any, key: str | None = None, conversation: str | None = None) -> list[dict[str, Any]]:
    """The events that the proof proves, oldest first. Raises NotProved."""
    try:
        return _check(proof, key, conversation)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, binascii.Error) as error:
        raise NotProved(f"the file is no proof, or is damaged ({type(error).__name__})") from error


def _check(proof: dict[str, Any], key: str | None, conversation: str | None) -> list[dict[str, Any]]:
    if proof["format"] != FORMAT:
        raise NotProved("the file has another format")
    if conversation is not None and proof["conversation"] != conversation:
        raise NotProved("the proof is of another conversation")
    if key is not None and proof["key"] != key.strip():
        raise NotProved("the proof was made with another key than the one you trust")
    size, root = open_checkpoint(proof["checkpoint"], proof["key"])
    events, last = [], -1
    for entry in proof["entries"]:
        index, data = entry["index"], entry["event"].encode()
        if type(index) is not int or index <= last:
            raise NotProved("an entry stands twice, or out of order")
        path = [base64.b64decode(each, validate=True) for each in entry["path"]]
        if not is_included(hashlib.sha256(b"\x00" + data).digest(), index, size, path, root):
            raise NotProved(f"entry {index} is not in the log that was signed")
        events.append(json.loads(data))
        last = index
    if not events:
        raise NotProved("the proof holds no entry")
    known = named_by(events, proof["conversation"])
    if any(event["object"] not in known for event in events):
        raise NotProved("an entry is not of this conversation")
    return events


def named_by(events: list[dict[str, Any]], conversation: str) -> set[str]:
    """The conversation, and the jobs and messages that entries of the log say are its own."""
    known = {f"conversation:{conversation}"}
    for event in events:
        if event["details"].get("conversation") == conversation:
            known |= {event["object"], f"message:{event['details'].get('message')}"}
    return known


def open_checkpoint(note: str, key: str) -> tuple[int, bytes]:
    """The size and the root that the key signed. Raises NotProved."""
    name, key_hash, encoded = key.split("+", 2)
    raw = base64.b64decode(encoded, validate=True)
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if raw[:1] != b"\x01" or len(raw) != 33 or expected.hex() != key_hash:
        raise NotProved("the key is no Ed25519 key of a log")
    body, _, signatures = note.rpartition("\n\n")
    body += "\n"
    for line in signatures.splitlines():
        mark, signer, signature = line.split(" ")
        signed = base64.b64decode(signature, validate=True)
        if (mark, signer, signed[:4]) != ("—", name, expected):
            continue
        try:
            Ed25519PublicKey.from_public_bytes(raw[1:]).verify(signed[4:], body.encode())
        except InvalidSignature as error:
            raise NotProved("the checkpoint's signature is wrong") from error
        origin, size, root, *_ = body.splitlines()
        if origin != name:
            raise NotProved("the checkpoint is of another log")
        return int(size), base64.b64decode(root, validate=True)
    raise NotProved("the checkpoint is not signed with this key")


def is_included(leaf: bytes, index: int, size: int, path: list[bytes], root: bytes) -> bool:
    """Whether the path leads from the leaf to the root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    number, last, reached = index, size - 1, leaf
    for sibling in path:
        if last == 0 or len(sibling) != 32:
            return False
        if number % 2 or number == last:
            reached = hashlib.sha256(b"\x01" + sibling + reached).digest()
            while number % 2 == 0 and number:
                number, last = number // 2, last // 2
        else:
            reached = hashlib.sha256(b"\x01" + reached + sibling).digest()
        number, last = number // 2, last // 2
    return last == 0 and reached == root


def main() -> int:
    """Check one file; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check a proof of MediChat's log.")
    parser.add_argument("proof", help="the file")
    parser.add_argument("--key", help="the log's public key, as you know it from elsewhere")
    parser.add_argument("--conversation", help="the id that the proof must be of")
    chosen = parser.parse_args()
    try:
        with open(chosen.proof, encoding="utf-8") as file:
            proof = json.load(file)
        events = check(proof, chosen.key, chosen.conversation)
    except (NotProved, OSError, ValueError) as error:
        print(f"NOT PROVED: {error}", file=sys.stderr)
        return 1
    for event in events:
        print(event["occurred_at"], event["action"], event["outcome"], "by", event["actor"])
    if chosen.key is None:
        print(f"NOT PROVED until you know that this is the log's key: {proof['key']}", file=sys.stderr)
        return 2
    print(f"Proved: {len(events)} entries on conversation {proof['conversation']}; there may be others.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

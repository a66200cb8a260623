"""Signed checkpoints of the log, as text: C2SP tlog-checkpoint in a C2SP signed-note. It knows no database.

A checkpoint says: at this size the tree had this root. Whoever keeps one can tell later whether the log still
begins with the same entries. See https://c2sp.org/tlog-checkpoint and https://c2sp.org/signed-note.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shared.audit.merkle import HASH_BYTES
from shared.errors import BadCheckpoint

_ED25519 = b"\x01"
_SIGNATURE = re.compile(r"— (\S+) (\S+)")
#: Second line of the word of a restore, where a checkpoint has a number: neither can be taken for the other.
_RESTORED = "restored"
#: Says when a checkpoint was signed, in an extension line.
_SIGNED_AT = "signed "
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
SEED_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint says."""

    origin: str
    #: Entries of the tree.
    size: int
    root: bytes
    #: When it was signed, by the signer's clock; None where it does not say.
    signed_at: datetime | None

    def body(self) -> str:
        """The text that is signed."""
        lines = [self.origin, str(self.size), base64.b64encode(self.root).decode()]
        if self.signed_at is not None:
            lines.append(f"{_SIGNED_AT}{self.signed_at.astimezone(UTC).isoformat(timespec='seconds')}")
        return "".join(f"{line}\n" for line in lines)


class Signer:
    """Signs checkpoints with the log's key. Its repr shows no key."""

    def __init__(self, secret: str) -> None:
        """`secret`: 32 random bytes in base64. Raises ValueError when it is not."""
        try:
            seed = base64.b64decode(secret.strip(), validate=True)
        except binascii.Error as error:
            raise ValueError("the audit key is not base64") from error
        if len(seed) != SEED_BYTES:
            raise ValueError(f"the audit key must have {SEED_BYTES} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        #: Names the log: no two logs with keys of their own have the same.
        self.origin = f"medichat/{hashlib.sha256(public).hexdigest()[:16]}"
        self.verifier = Verifier(self.origin, public)

    def sign(self, *, size: int, root: bytes, now: datetime) -> str:
        """The checkpoint of a tree, signed."""
        return self._note(Checkpoint(origin=self.origin, size=size, root=root, signed_at=now).body())

    def sign_restore(self, size: int, superseded: Iterable[tuple[int, bytes]]) -> str:
        """The word that a backup of `size` entries was restored, which these checkpoints are newer than.

        Without it nobody may say so: a cut tail would need no more than a row that excuses it.
        """
        newer = [f"{each} {base64.b64encode(root).decode()}" for each, root in superseded]
        return self._note("".join(f"{line}\n" for line in (self.origin, _RESTORED, str(size), *newer)))

    def _note(self, body: str) -> str:
        signature = self.verifier.key_hash + self._key.sign(body.encode())
        return f"{body}\n— {self.origin} {base64.b64encode(signature).decode()}\n"


class Verifier:
    """Checks what one key signed."""

    def __init__(self, name: str, public: bytes) -> None:
        self.name, self._public = name, public
        #: The first 4 bytes of SHA-256(name ‖ newline ‖ 0x01 ‖ key), by which a signature names its key.
        self.key_hash = hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]

    def __str__(self) -> str:
        """The key as others write it: name, hash and key, joined by `+`."""
        key = base64.b64encode(_ED25519 + self._public).decode()
        return f"{self.name}+{self.key_hash.hex()}+{key}"

    @classmethod
    def from_text(cls, text: str) -> Verifier:
        """The key that `str` wrote. Raises BadCheckpoint."""
        name, _, rest = text.strip().partition("+")
        key_hash, _, key = rest.partition("+")
        try:
            raw = base64.b64decode(key, validate=True)
        except binascii.Error as error:
            raise BadCheckpoint("this is no key") from error
        if not name or raw[:1] != _ED25519 or len(raw) != 33:
            raise BadCheckpoint("this is no Ed25519 key of a log")
        made = cls(name, raw[1:])
        if made.key_hash.hex() != key_hash:
            raise BadCheckpoint("the key does not fit its name")
        return made

    def open(self, note: str) -> str:
        """The signed text of a note, with its last newline. Raises BadCheckpoint."""
        body, blank, signatures = note.rpartition("\n\n")
        if not blank or not signatures.endswith("\n"):
            raise BadCheckpoint("this is no signed text")
        body += "\n"
        for line in signatures.splitlines():
            found = _SIGNATURE.fullmatch(line)
            if found is None:
                raise BadCheckpoint("a line of signatures cannot be read")
            if found[1] == self.name and self._signed(body, found[2]):
                return body
        raise BadCheckpoint(f"not signed by {self.name}")

    def read(self, note: str) -> Checkpoint:
        """The checkpoint of a signed note. Raises BadCheckpoint."""
        checkpoint = parse(self.open(note))
        if checkpoint.origin != self.name:
            raise BadCheckpoint("it is of another log")
        return checkpoint

    def read_restore(self, note: str) -> set[tuple[int, bytes]]:
        """The checkpoints, as (size, root), that a signed word of a restore names. Raises BadCheckpoint."""
        origin, kind, _size, *newer = self.open(note).splitlines()
        if (origin, kind) != (self.name, _RESTORED):
            raise BadCheckpoint("It is no word of a restore.")
        found = (line.partition(" ") for line in newer)
        return {(int(size), base64.b64decode(root, validate=True)) for size, _, root in found}

    def _signed(self, body: str, signature: str) -> bool:
        try:
            raw = base64.b64decode(signature, validate=True)
            if raw[:4] != self.key_hash:
                return False
            Ed25519PublicKey.from_public_bytes(self._public).verify(raw[4:], body.encode())
        except (binascii.Error, InvalidSignature, ValueError):
            return False
        return True


def parse(body: str) -> Checkpoint:
    """What the text says, signed or not. Raises BadCheckpoint."""
    lines = body.splitlines()
    if len(lines) < 3 or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise BadCheckpoint("this is no checkpoint")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except ValueError as error:  # no base64, or no ASCII
        raise BadCheckpoint("its root cannot be read") from error
    if len(root) != HASH_BYTES:
        raise BadCheckpoint("its root cannot be read")
    return Checkpoint(origin=lines[0], size=int(lines[1]), root=root, signed_at=_signed_at(lines[3:]))


def _signed_at(extensions: list[str]) -> datetime | None:
    said = next((line for line in extensions if line.startswith(_SIGNED_AT)), None)
    try:
        return None if said is None else datetime.fromisoformat(said.removeprefix(_SIGNED_AT))
    except ValueError:
        return None

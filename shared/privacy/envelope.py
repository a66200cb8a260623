"""Encrypts what people wrote and read, before it reaches a disk. It does not know where it is stored.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce under a data key of its own for each
conversation, dataset or image. Data keys are wrapped by a versioned master key, likewise with
AES-256-GCM. Destroying a data key erases every text under it, in backups too.

Each ciphertext is bound to its place (associated data, e.g. `message:<id>`), so that it cannot be
moved to another row unnoticed.
"""

import base64
import binascii
import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12


class CannotDecrypt(Exception):
    """The text cannot be decrypted: wrong key, altered bytes, or moved to another row."""


class KeyDestroyed(CannotDecrypt):
    """The text was erased: its data key no longer exists."""


@dataclass(frozen=True)
class DataKey:
    """One data key in the clear. Its repr shows no key."""

    key_id: str
    _secret: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.key_id})"

    def encrypt(self, text: str, *, place: str) -> bytes:
        """nonce ‖ ciphertext ‖ tag of the text in UTF-8, bound to `place`."""
        return self.encrypt_bytes(text.encode(), place=place)

    def decrypt(self, ciphertext: bytes, *, place: str) -> str:
        """The text. Raises CannotDecrypt."""
        return self.decrypt_bytes(ciphertext, place=place).decode()

    def encrypt_bytes(self, data: bytes, *, place: str) -> bytes:
        """nonce ‖ ciphertext ‖ tag of the bytes, bound to `place`."""
        return _seal(self._secret, data, f"{self.key_id}:{place}")

    def decrypt_bytes(self, ciphertext: bytes, *, place: str) -> bytes:
        """The bytes. Raises CannotDecrypt."""
        return _open(self._secret, ciphertext, f"{self.key_id}:{place}")

    def salt(self, place: str) -> bytes:
        """32 bytes for commitments to the text at this place; lost with the key, which ends all guessing."""
        return hmac.digest(self._secret, f"salt:{place}".encode(), "sha256")

    def commitment(self, text: str, *, place: str) -> str:
        """SHA-256 of salt ‖ text in hex: binds the log to the text, and tells nothing without the salt."""
        return hashlib.sha256(self.salt(place) + text.encode()).hexdigest()


class Envelope:
    """Holds the master keys; makes, wraps and unwraps data keys."""

    def __init__(self, master_keys: dict[int, bytes]) -> None:
        """`master_keys` maps a version to its 32 bytes; the highest version wraps new keys."""
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys.values()):
            raise ValueError(f"a master key must have {KEY_BYTES} bytes")
        self._master_keys = master_keys
        self.version = max(master_keys)
        self._hmac_key = hmac.digest(master_keys[min(master_keys)], b"medichat fingerprint v1", "sha256")

    @classmethod
    def from_base64(cls, master_key: str) -> "Envelope":
        """An envelope with one master key. Raises ValueError when it is not 32 bytes in base64."""
        try:
            return cls({1: base64.b64decode(master_key.strip(), validate=True)})
        except binascii.Error as error:
            raise ValueError("the master key is not base64") from error

    def new_data_key(self, key_id: str) -> tuple[DataKey, bytes]:
        """A fresh data key and its wrapped form."""
        secret = os.urandom(KEY_BYTES)
        return DataKey(key_id, secret), _seal(self._master_keys[self.version], secret, key_id)

    def unwrap(self, key_id: str, wrapped: bytes | None, version: int) -> DataKey:
        """The data key. Raises KeyDestroyed when nothing is left of it, else CannotDecrypt."""
        if wrapped is None:
            raise KeyDestroyed
        if version not in self._master_keys:
            raise CannotDecrypt(f"master key version {version} is not configured")
        return DataKey(key_id, _open(self._master_keys[version], wrapped, key_id))

    def fingerprint(self, text: str) -> str:
        """HMAC-SHA256 in hex: tells whether two texts are equal, and nothing to who lacks the key."""
        return hmac.new(self._hmac_key, text.encode(), hashlib.sha256).hexdigest()


def new_master_key() -> str:
    """A random master key in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _seal(key: bytes, plaintext: bytes, place: str) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, place.encode())


def _open(key: bytes, sealed: bytes, place: str) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
    except (InvalidTag, ValueError) as error:
        raise CannotDecrypt("the text cannot be decrypted with this key at this place") from error

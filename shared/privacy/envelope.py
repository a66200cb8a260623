"""Encrypts what people wrote and read, before it reaches a disk. It does not know where it is stored.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce under a data key of its own for each
conversation, dataset or image. Data keys are wrapped by a versioned master key, likewise with
AES-256-GCM. Destroying a data key erases every text under it from the database. A copy that was made before,
such as a backup, still holds the wrapped key: the master key opens it for as long as both exist.

Each ciphertext is bound to its place (associated data, e.g. `message:<id>`), so that it cannot be
moved to another row unnoticed.
"""

import base64
import hashlib
import hmac
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.privacy.keyring import KEY_BYTES, Keyring

log = logging.getLogger(__name__)

_NONCE_BYTES, _TAG_BYTES = 12, 16
#: Of a wrapped data key.
WRAPPED_BYTES = _NONCE_BYTES + KEY_BYTES + _TAG_BYTES
#: After a look for a version that was in vain, the keyring is not looked at for that version for so long.
_LOOK_AGAIN_S = 5.0


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
    """Holds the master keys; makes, wraps and unwraps data keys. Safe to share between threads.

    A data key under a version that is not known has the keyring read again: another process may have rotated
    the master key since.
    """

    def __init__(
        self, master_keys: Keyring | Mapping[int, bytes], *, look: Callable[[], Keyring] | None = None
    ) -> None:
        """`master_keys` maps a version to its 32 bytes; the highest version wraps new keys.

        `look` reads the keyring from where it is kept; it may raise ValueError or OSError.
        """
        self._keyring = master_keys if isinstance(master_keys, Keyring) else Keyring.of(master_keys)
        self._look = look
        self._looking = threading.Lock()
        self._missed: dict[int, float] = {}

    @classmethod
    def from_base64(cls, master_key: str) -> "Envelope":
        """An envelope of a keyring's text. Raises ValueError when it is none."""
        return cls(Keyring.parse(master_key))

    @property
    def version(self) -> int:
        """The version that wraps new keys."""
        return self._keyring.newest

    def new_data_key(self, key_id: str) -> tuple[DataKey, bytes, int]:
        """A fresh data key, its wrapped form, and the version of the master key that wrapped it."""
        secret = os.urandom(KEY_BYTES)
        keyring = self._keyring
        return DataKey(key_id, secret), _seal(keyring.keys[keyring.newest], secret, key_id), keyring.newest

    def unwrap(self, key_id: str, wrapped: bytes | None, version: int) -> DataKey:
        """The data key. Raises KeyDestroyed when nothing is left of it, else CannotDecrypt."""
        if wrapped is None:
            raise KeyDestroyed
        return DataKey(key_id, _open(self._master_key(version), wrapped, key_id))

    @property
    def versions(self) -> list[int]:
        """The versions of the master key that are at hand."""
        return list(self._keyring.keys)

    def opens(self, key_id: str, wrapped: bytes, version: int) -> bool:
        """Whether what is at hand opens the data key; nobody is asked for a master key, which takes time."""
        key = self._keyring.keys.get(version)
        try:
            return key is not None and bool(_open(key, wrapped, key_id))
        except CannotDecrypt:
            return False

    def rewrap(self, key_id: str, wrapped: bytes, version: int) -> tuple[bytes, int]:
        """The same data key under the newest version, and that version. Raises CannotDecrypt."""
        secret = _open(self._master_key(version), wrapped, key_id)
        keyring = self._keyring
        return _seal(keyring.keys[keyring.newest], secret, key_id), keyring.newest

    def look_again(self) -> None:
        """Read the keyring from where it is kept.

        What cannot be read now leaves the one at hand, and so does one that has another key under a name that
        is known: it is not the keyring of this database.
        """
        with self._looking:
            self._read()

    def _read(self) -> None:
        if self._look is None:
            return
        try:
            found = self._look()
        except (ValueError, OSError) as error:
            log.warning("the keyring cannot be read again: %s", error)
            return
        if changed := found.contradicts(self._keyring):
            log.error("the keyring is not used, for in it another key stands as %s: put it back", changed)
            return
        self._keyring = found

    def _master_key(self, version: int) -> bytes:
        if version not in self._keyring.keys:
            with self._looking:
                recently = time.monotonic() - _LOOK_AGAIN_S
                if version not in self._keyring.keys and self._missed.get(version, recently) <= recently:
                    self._read()
                    self._missed[version] = time.monotonic()
        key = self._keyring.keys.get(version)
        if key is None:
            raise CannotDecrypt(f"master key version {version} is not configured")
        return key

    def fingerprint(self, text: str) -> str:
        """HMAC-SHA256 in hex: tells whether two texts are equal, and nothing to who lacks the key."""
        return hmac.new(self._keyring.fingerprint_key, text.encode(), hashlib.sha256).hexdigest()


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

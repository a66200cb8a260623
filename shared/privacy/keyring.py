"""The master keys of an installation, by version, as text and back. It does not know where it is kept.

The text is one key in base64 (version 1), or entries `VERSION:BASE64` and `fingerprint:BASE64`, a line each.
The fingerprint key is apart from them: fingerprints in the database must stay comparable when the key from
which theirs was once derived is gone.
"""

import base64
import binascii
import hmac
import os
from collections.abc import Mapping
from dataclasses import dataclass

KEY_BYTES = 32
_FINGERPRINT = "fingerprint"
_WAY_OUT = "put it back from your copy"


@dataclass(frozen=True, repr=False)
class Keyring:
    """Master keys of 32 bytes by version, and the key of fingerprints. Its repr shows no key."""

    keys: Mapping[int, bytes]
    fingerprint_key: bytes

    def __repr__(self) -> str:
        return f"Keyring({sorted(self.keys)})"

    @property
    def newest(self) -> int:
        """The version that wraps new data keys."""
        return max(self.keys)

    @classmethod
    def of(cls, keys: Mapping[int, bytes], fingerprint_key: bytes | None = None) -> "Keyring":
        """A keyring; without a fingerprint key that of the lowest version. Raises ValueError."""
        if not keys or any(len(key) != KEY_BYTES for key in (*keys.values(), fingerprint_key or b"." * 32)):
            raise ValueError(f"a master key must have {KEY_BYTES} bytes: {_WAY_OUT}")
        derived = hmac.digest(keys[min(keys)], b"medichat fingerprint v1", "sha256")
        return cls(dict(keys), fingerprint_key or derived)

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """The keyring of a text; any blanks may stand between its entries. Raises ValueError."""
        entries = text.split()
        if len(entries) == 1 and ":" not in entries[0]:
            return cls.of({1: _decoded(entries[0])})
        keys: dict[int, bytes] = {}
        fingerprint_key = None
        for entry in entries:
            name, _, value = entry.partition(":")
            if name == _FINGERPRINT and fingerprint_key is None:
                fingerprint_key = _decoded(value)
            elif name.isascii() and name.isdigit() and int(name) > 0 and int(name) not in keys:
                keys[int(name)] = _decoded(value)
            else:
                raise ValueError(
                    "the master key is neither one key in base64 nor entries VERSION:BASE64 (each version "
                    f"once) and fingerprint:BASE64: {_WAY_OUT}"
                )
        return cls.of(keys, fingerprint_key)

    def contradicts(self, other: "Keyring") -> str:
        """What of it is another key than the other keyring has under the same name; "" for nothing."""
        changed = [
            f"version {version}"
            for version, key in sorted(self.keys.items())
            if not hmac.compare_digest(other.keys.get(version, key), key)
        ]
        if not hmac.compare_digest(self.fingerprint_key, other.fingerprint_key):
            changed.append("the fingerprint key")
        return ", ".join(changed)

    def text(self) -> str:
        """The keyring as it is kept: a line each."""
        named = {**{str(version): self.keys[version] for version in sorted(self.keys)}}
        named[_FINGERPRINT] = self.fingerprint_key
        return "".join(f"{name}:{base64.b64encode(key).decode()}\n" for name, key in named.items())

    def with_new(self) -> "Keyring":
        """The same with a random key under the next version."""
        return Keyring({**self.keys, self.newest + 1: os.urandom(KEY_BYTES)}, self.fingerprint_key)

    def only_newest(self) -> "Keyring":
        """The same without the older versions."""
        return Keyring({self.newest: self.keys[self.newest]}, self.fingerprint_key)


def _decoded(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the master key is not base64: {_WAY_OUT}") from error

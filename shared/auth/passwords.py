"""Hashes and checks passwords. It knows no account."""

import secrets

from pwdlib import PasswordHash

from shared.errors import InvalidInput

MIN_LENGTH = 10
MAX_LENGTH = 200

#: In the place of a hash: of an account that was erased, which no password opens.
UNUSABLE = "!"

_hasher = PasswordHash.recommended()
#: Of a password that nobody kept, as `_hasher` makes it: every program would make one as it starts else.
_DUMMY = "$argon2id$v=19$m=65536,t=3,p=4$nKlugx5bCmTT0f1W4T3QEw$VaJ3mdzWXocNmLkgHpk4Mad/wI3RN0t96LjBIcHDY9M"


def check_length(password: str) -> None:
    """Raises InvalidInput for a password that is too short or too long."""
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise InvalidInput(f"A password must have {MIN_LENGTH} to {MAX_LENGTH} characters.")


def hash_password(password: str) -> str:
    """The argon2id hash of a password: slow by design. Raises InvalidInput as `check_length` does."""
    check_length(password)
    return _hasher.hash(password)


def check_password(password: str, password_hash: str | None) -> bool:
    """Whether the password is right; takes as long when there is no such account."""
    usable = None if password_hash == UNUSABLE else password_hash
    right = _hasher.verify(password[:MAX_LENGTH], usable or _DUMMY)
    return right and usable is not None


def new_password() -> str:
    """A random password that is easy to copy."""
    return secrets.token_urlsafe(15)

"""Makes and reads the tokens that prove a log-in. It stores nothing.

Access tokens are JWTs (RFC 7519) with pinned algorithm, issuer and audience. All others are random
text, of which only the SHA-256 is stored.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import jwt

from shared.errors import NotAuthenticated

ACCESS_TOKEN_LIFE = timedelta(minutes=15)
BROWSER_PREFIX = "mcs_"
API_KEY_PREFIX = "mck_"
REFRESH_PREFIX = "mcr_"

_ALGORITHM = "HS256"
_ISSUER = "medichat"
_AUDIENCE = "medichat-api"


@dataclass(frozen=True)
class AccessClaims:
    """What an access token says."""

    user_id: str
    session_id: str


def make_access_token(claims: AccessClaims, *, key: str, now: datetime) -> str:
    """A signed token that is good for 15 minutes."""
    payload = {
        "sub": claims.user_id,
        "sid": claims.session_id,
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "iat": now,
        "exp": now + ACCESS_TOKEN_LIFE,
        "jti": secrets.token_hex(8),
    }
    return jwt.encode(payload, key, algorithm=_ALGORITHM)


def read_access_token(token: str, *, key: str, now: datetime) -> AccessClaims:
    """What the token says. Raises NotAuthenticated when it is expired, forged or not for us.

    `now` is of the clock that signed it, the database's: hosts may be wrong.
    """
    try:
        payload = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            issuer=_ISSUER,
            audience=_AUDIENCE,
            options={
                "require": ["sub", "sid", "iss", "aud", "iat", "exp"],
                "verify_exp": False,  # by this host's clock
                "verify_iat": False,
            },
        )
        expires_at = float(payload["exp"])
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise NotAuthenticated("The access token is not valid; log in again.") from error
    if not now.timestamp() < expires_at:
        raise NotAuthenticated("The access token has expired; refresh it or log in again.")
    return AccessClaims(str(payload["sub"]), str(payload["sid"]))


def new_opaque_token(prefix: str) -> tuple[str, str]:
    """A random token with 256 bits, and its hash for storage."""
    token = prefix + secrets.token_urlsafe(32)
    return token, hash_token(token)


def hash_token(token: str) -> str:
    """SHA-256 in hex. The tokens are random, so no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()

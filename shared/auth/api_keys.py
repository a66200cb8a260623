"""API keys: made, listed, revoked. How a key is recognised is shared/auth/sessions.py's matter."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from shared.audit import record
from shared.auth.roles import Role, Scope
from shared.auth.tokens import API_KEY_PREFIX, new_opaque_token
from shared.db.tables import api_keys
from shared.errors import InvalidInput, KeyRefused, NotFound
from shared.ids import new_id

#: What a key of each role's owner may be allowed.
SCOPES_OF_ROLE = {
    Role.USER: frozenset({Scope.ASK, Scope.READ}),
    Role.ADMIN: frozenset({Scope.ADMIN}),
    Role.AUDITOR: frozenset({Scope.AUDIT}),
}


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key, without its secret."""

    id: str
    name: str
    hint: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def create_key(
    connection: Connection,
    *,
    user_id: str,
    role: Role,
    name: str,
    scopes: list[Scope],
    expires_at: datetime | None,
    actor: record.Actor,
    now: datetime,
) -> tuple[str, ApiKey]:
    """Make a key; the secret is returned once and never again.

    Raises InvalidInput for a scope that the owner's role does not have, or an expiry that has passed.
    """
    if not set(scopes) <= SCOPES_OF_ROLE[role]:
        names = ", ".join(sorted(SCOPES_OF_ROLE[role]))
        raise InvalidInput(f"A key of this account may have these scopes: {names}.")
    if expires_at is not None and expires_at <= now:
        raise InvalidInput("The key's expiry lies in the past.")
    secret, key_hash = new_opaque_token(API_KEY_PREFIX)
    key_id = new_id()
    connection.execute(
        insert(api_keys).values(
            id=key_id,
            user_id=user_id,
            name=name,
            hint=secret[:10],
            key_hash=key_hash,
            scopes=sorted(set(scopes)),
            created_at=now,
            expires_at=expires_at,
        )
    )
    record.append(
        connection,
        now=now,
        actor=actor,
        action="api_key.created",
        object=f"api_key:{key_id}",
        details={"scopes": sorted(set(scopes))},
    )
    return secret, next(key for key in list_keys(connection, user_id) if key.id == key_id)


def list_keys(connection: Connection, user_id: str) -> list[ApiKey]:
    """A person's keys, newest first, revoked ones included."""
    rows = connection.execute(
        select(api_keys).where(api_keys.c.user_id == user_id).order_by(api_keys.c.created_at.desc())
    )
    return [
        ApiKey(
            id=row.id,
            name=row.name,
            hint=row.hint,
            scopes=[Scope(scope) for scope in row.scopes],
            created_at=row.created_at,
            expires_at=row.expires_at,
            last_used_at=row.last_used_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


def revoke_key(
    connection: Connection, key_id: str, *, user_id: str, actor: record.Actor, now: datetime
) -> None:
    """Revoke one of the person's own keys at once. Raises NotFound."""
    revoked = connection.execute(
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.user_id == user_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    if revoked.rowcount != 1:
        raise NotFound
    record.append(connection, now=now, actor=actor, action="api_key.revoked", object=f"api_key:{key_id}")


def log_refused(connection: Connection, refused: KeyRefused, now: datetime) -> None:
    """Log that somebody used a key that was good once."""
    record.append(
        connection,
        now=now,
        actor=record.Actor(refused.user_id, f"key:{refused.key_id}"),
        action="api_key.refused",
        object=f"api_key:{refused.key_id}",
        outcome=record.Outcome.DENIED,
        reason=refused.reason,
    )

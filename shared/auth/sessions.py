"""Log-ins: started, found again by what a caller sends, refreshed, ended. Passwords are not its matter.

Finding a caller costs one indexed read; `last_seen_at` is written at most once a minute, or four times in the
time without use that ends a browser's log-in, and every log-in of an admin or an auditor.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from shared.audit import record
from shared.auth.accounts import Account
from shared.auth.consent import CONSENT_VERSION
from shared.auth.roles import AccountStatus, Role, Scope, SessionKind
from shared.auth.tokens import (
    ACCESS_TOKEN_LIFE,
    API_KEY_PREFIX,
    BROWSER_PREFIX,
    REFRESH_PREFIX,
    AccessClaims,
    hash_token,
    make_access_token,
    new_opaque_token,
    read_access_token,
)
from shared.db.tables import api_keys, refresh_tokens, sessions, users
from shared.errors import KeyRefused, NotAuthenticated
from shared.guard.verdict import Audience
from shared.ids import new_id

REFRESH_LIFE = timedelta(days=14)
#: Whose programs are logged out as browsers are when they are not used.
_MAY_SEE_OTHERS = frozenset((Role.ADMIN, Role.AUDITOR))
_NOTE_EVERY = timedelta(minutes=1)
_NOT_USED = "This log-in ended because it was not used; log in again."
_NOT_ACTIVE = "This account is not active; ask an admin."
#: Before the id of an API key, where a session's id may stand too.
_KEY = "key:"


def _with_user(table: Any) -> Any:
    return select(
        *[column for column in table.c if column.name != "name"],
        users.c.name.label("user_name"),
        users.c.role,
        users.c.audience,
        users.c.status,
        users.c.consent_version,
    ).join(users, users.c.id == table.c.user_id)


# made once, since every request needs one of them
_SESSION_BY_TOKEN = _with_user(sessions).where(sessions.c.token_hash == bindparam("token_hash"))
_SESSION_BY_CLAIMS = _with_user(sessions).where(
    sessions.c.sid == bindparam("sid"), sessions.c.user_id == bindparam("user_id")
)
_KEY_BY_HASH = _with_user(api_keys).where(api_keys.c.key_hash == bindparam("key_hash"))


@dataclass(frozen=True, kw_only=True)
class Principal:
    """Who is calling, and through what."""

    user_id: str
    name: str
    role: Role
    audience: Audience
    #: The session's id, or `key:<id>` for an API key.
    session_id: str
    scopes: frozenset[Scope]
    consented: bool
    #: What ends the session by itself; None for an API key without expiry.
    expires_at: datetime | None
    #: `tokens`, `browser` or `key`.
    kind: str
    #: Whether `last_seen_at` is due for a new note.
    note_due: bool
    #: How long ago this session's password was typed; None for an API key.
    password_age: timedelta | None

    @property
    def actor(self) -> record.Actor:
        """As the audit log names the caller."""
        return record.Actor(self.user_id, self.session_id)


@dataclass(frozen=True)
class TokenPair:
    """What a program gets when it logs in or refreshes."""

    access_token: str
    refresh_token: str
    expires_in: int = int(ACCESS_TOKEN_LIFE.total_seconds())


def start_token_session(connection: Connection, account: Account, *, key: str, now: datetime) -> TokenPair:
    """Log a program in: an access token, and a refresh token good for 14 days without use."""
    sid = _start(connection, account, SessionKind.TOKENS, now, now + REFRESH_LIFE)
    return _issue(connection, account.id, sid, key=key, now=now)


def start_browser_session(connection: Connection, account: Account, *, life: timedelta, now: datetime) -> str:
    """Log a browser in; returns the token for its cookie."""
    token, token_hash = new_opaque_token(BROWSER_PREFIX)
    _start(connection, account, SessionKind.BROWSER, now, now + life, token_hash)
    return token


def session_of(connection: Connection, token: str) -> str | None:
    """The log-in that was once given this refresh token; None when there was none."""
    known = select(refresh_tokens.c.sid).where(refresh_tokens.c.token_hash == hash_token(token))
    found: str | None = connection.execute(known).scalar_one_or_none()
    return found


def refresh(connection: Connection, token: str, *, key: str, idle: timedelta, now: datetime) -> TokenPair:
    """Trade a refresh token for a new pair.

    A token that was used before ends its session, since somebody has a copy. Raises NotAuthenticated then,
    and for an unknown or expired token or a session that ended, or was not used for too long; commit even
    then: it is logged.
    """
    found = connection.execute(
        select(
            *(refresh_tokens, sessions.c.user_id, sessions.c.kind, sessions.c.revoked_at),
            *(sessions.c.last_seen_at, users.c.role, users.c.status),
        )
        .join(sessions, sessions.c.sid == refresh_tokens.c.sid)
        .join(users, users.c.id == sessions.c.user_id)
        .where(refresh_tokens.c.token_hash == hash_token(token))
        .with_for_update(of=refresh_tokens)
    ).one_or_none()
    if found is None or found.revoked_at is not None or found.status != AccountStatus.ACTIVE:
        _log_not_refreshed(connection, found, "refresh token that is not valid", now)
        raise NotAuthenticated("The refresh token is not valid; log in again.")
    if found.used_at is not None:
        actor = record.Actor(found.user_id, found.sid)
        end(connection, found.sid, actor=actor, now=now, reason="a refresh token was used twice")
        raise NotAuthenticated("This refresh token was used before, so the log-in was ended; log in again.")
    if found.expires_at <= now:
        _log_not_refreshed(connection, found, "expired refresh token", now)
        raise NotAuthenticated("The refresh token has expired; log in again.")
    if _is_idle(found, idle, now):
        _log_not_refreshed(connection, found, "log-in that was not used", now)
        raise NotAuthenticated(_NOT_USED)
    connection.execute(
        update(refresh_tokens).where(refresh_tokens.c.token_hash == found.token_hash).values(used_at=now)
    )
    connection.execute(
        update(sessions)
        .where(sessions.c.sid == found.sid)
        .values(last_seen_at=now, expires_at=now + REFRESH_LIFE)
    )
    record.append(
        connection,
        now=now,
        actor=record.Actor(found.user_id, found.sid),
        action="session.refreshed",
        object=f"session:{found.sid}",
    )
    return _issue(connection, found.user_id, found.sid, key=key, now=now)


def resolve(connection: Connection, bearer: str, *, key: str, idle: timedelta, now: datetime) -> Principal:
    """Who sent this bearer token. Raises NotAuthenticated, or KeyRefused for a key that was good once."""
    if bearer.startswith(API_KEY_PREFIX):
        return _resolve_key(connection, bearer, now)
    if bearer.startswith(BROWSER_PREFIX):
        found = connection.execute(_SESSION_BY_TOKEN, {"token_hash": hash_token(bearer)})
    else:
        claims = read_access_token(bearer, key=key, now=now)
        ids = {"sid": claims.session_id, "user_id": claims.user_id}
        found = connection.execute(_SESSION_BY_CLAIMS, ids)
    row = found.one_or_none()
    if row is None or row.revoked_at is not None or row.expires_at <= now:
        raise NotAuthenticated("This log-in has ended; log in again.")
    if _is_idle(row, idle, now):
        raise NotAuthenticated(_NOT_USED)
    # often enough that the time without use is never counted from a use long before the last one
    note_due = now - row.last_seen_at >= min(_NOTE_EVERY, idle / 4)
    age = now - row.reauthenticated_at
    return _principal(row, row.sid, frozenset(Scope), row.expires_at, row.kind, note_due, age)


def is_open(connection: Connection, session_id: str, now: datetime) -> bool:
    """Whether the session or key of a principal found earlier still stands."""
    table, column = sessions, sessions.c.sid
    if session_id.startswith(_KEY):
        table, column, session_id = api_keys, api_keys.c.id, session_id.removeprefix(_KEY)
    row = connection.execute(
        select(table.c.revoked_at, table.c.expires_at, users.c.status)
        .join(users, users.c.id == table.c.user_id)
        .where(column == session_id)
    ).one_or_none()
    return (
        row is not None
        and row.revoked_at is None
        and (row.expires_at is None or row.expires_at > now)
        and row.status == AccountStatus.ACTIVE
    )


def note_use(connection: Connection, principal: Principal, now: datetime) -> None:
    """Remember that the session or key was used just now."""
    if principal.session_id.startswith(_KEY):
        key_id = principal.session_id.removeprefix(_KEY)
        statement = update(api_keys).where(api_keys.c.id == key_id).values(last_used_at=now)
    else:
        statement = update(sessions).where(sessions.c.sid == principal.session_id).values(last_seen_at=now)
    connection.execute(statement)


def reauthenticate(connection: Connection, principal: Principal, now: datetime) -> None:
    """Note that the person behind the session typed their password just now."""
    sid = principal.session_id
    connection.execute(update(sessions).where(sessions.c.sid == sid).values(reauthenticated_at=now))
    record.append(
        connection, now=now, actor=principal.actor, action="session.reauthenticated", object=f"session:{sid}"
    )


def end(
    connection: Connection, sid: str, *, actor: record.Actor, now: datetime, reason: str | None = None
) -> None:
    """End a session at once, and with it every token of its family."""
    connection.execute(
        update(sessions).where(sessions.c.sid == sid, sessions.c.revoked_at.is_(None)).values(revoked_at=now)
    )
    record.append(
        connection, now=now, actor=actor, action="session.ended", object=f"session:{sid}", reason=reason
    )


def end_browser_session(
    connection: Connection, token: str, *, by: record.Actor | None = None, now: datetime, reason: str
) -> None:
    """End the log-in of a browser's token, if nobody did before; its owner does so, or who `by` names."""
    row = connection.execute(
        select(sessions.c.sid, sessions.c.user_id).where(
            sessions.c.token_hash == hash_token(token), sessions.c.revoked_at.is_(None)
        )
    ).one_or_none()
    if row is not None:
        end(connection, row.sid, actor=by or record.Actor(row.user_id, row.sid), now=now, reason=reason)


def _is_idle(row: Row[Any], idle: timedelta, now: datetime) -> bool:
    """Whether a log-in was not used for so long that it has ended; a user's program keeps its two weeks."""
    watched = row.kind == SessionKind.BROWSER or row.role in _MAY_SEE_OTHERS
    return watched and bool(row.last_seen_at + idle <= now)


def _start(
    connection: Connection,
    account: Account,
    kind: SessionKind,
    now: datetime,
    expires_at: datetime,
    token_hash: str | None = None,
) -> str:
    sid = new_id()
    connection.execute(
        insert(sessions).values(
            sid=sid,
            user_id=account.id,
            kind=kind,
            refresh_family=sid if kind is SessionKind.TOKENS else None,
            token_hash=token_hash,
            created_at=now,
            expires_at=expires_at,
            last_seen_at=now,
            reauthenticated_at=now,
        )
    )
    record.append(
        connection,
        now=now,
        actor=record.Actor(account.id, sid),
        action="session.started",
        object=f"session:{sid}",
        details={"kind": kind, **({"password_set_by_another": True} if account.password_set else {})},
    )
    return sid


def _issue(connection: Connection, user_id: str, sid: str, *, key: str, now: datetime) -> TokenPair:
    token, token_hash = new_opaque_token(REFRESH_PREFIX)
    connection.execute(
        insert(refresh_tokens).values(
            token_hash=token_hash, sid=sid, created_at=now, expires_at=now + REFRESH_LIFE
        )
    )
    return TokenPair(make_access_token(AccessClaims(user_id, sid), key=key, now=now), token)


def _log_not_refreshed(connection: Connection, found: Row[Any] | None, reason: str, now: datetime) -> None:
    record.append(
        connection,
        now=now,
        actor=record.Actor("anonymous") if found is None else record.Actor(found.user_id, found.sid),
        action="session.refused",
        object=None if found is None else f"user:{found.user_id}",
        outcome=record.Outcome.DENIED,
        reason=reason,
    )


def _resolve_key(connection: Connection, bearer: str, now: datetime) -> Principal:
    row = connection.execute(_KEY_BY_HASH, {"key_hash": hash_token(bearer)}).one_or_none()
    if row is None:
        raise NotAuthenticated(KeyRefused.__doc__)
    refused = partial(KeyRefused, key_id=row.id, user_id=row.user_id)
    if row.revoked_at is not None:
        raise refused(reason="revoked")
    if row.expires_at is not None and row.expires_at <= now:
        raise refused(reason="expired")
    if row.status != AccountStatus.ACTIVE:
        raise refused(_NOT_ACTIVE, reason="account is not active")
    scopes = frozenset(Scope(scope) for scope in row.scopes)
    note_due = row.last_used_at is None or now - row.last_used_at >= _NOTE_EVERY
    return _principal(row, f"{_KEY}{row.id}", scopes, row.expires_at, "key", note_due)


def _principal(
    row: Row[Any],
    session_id: str,
    scopes: frozenset[Scope],
    expires_at: datetime | None,
    kind: str,
    note_due: bool,
    password_age: timedelta | None = None,
) -> Principal:
    if row.status != AccountStatus.ACTIVE:
        raise NotAuthenticated(_NOT_ACTIVE)
    return Principal(
        user_id=row.user_id,
        name=row.user_name,
        role=Role(row.role),
        audience=Audience(row.audience),
        session_id=session_id,
        scopes=scopes,
        consented=row.consent_version == CONSENT_VERSION,
        expires_at=expires_at,
        kind=kind,
        note_due=note_due,
        password_age=password_age,
    )

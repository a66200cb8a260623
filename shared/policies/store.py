"""Keeps the guard's policies: their versions, which one counts, whether answers are given. It compiles none.

Every method runs in the caller's transaction, so that a change and its audit event are committed together or
not at all. Rows are only ever added: the newest counts. With none the packaged policy counts. Each packaged
policy is stored too, so that the text under which an answer was judged is there after an upgrade.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, func, select

from shared.audit import record
from shared.clock import Clock
from shared.db.rows import put
from shared.db.tables_guard import guard_activations, guard_policies, guard_stops
from shared.errors import Conflict, NotFound
from shared.guard.policy import completed, packaged_policy, version_of
from shared.policies.states import ActivationKind


@dataclass(frozen=True, kw_only=True)
class Activation:
    """Which policies count since a moment."""

    seq: int
    #: None: the packaged policy.
    version: str | None
    #: The version that judges beside it without effect; None when none does.
    shadow: str | None
    kind: ActivationKind
    by: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A turn of the switch that stops all answers."""

    seq: int
    stopped: bool
    #: Why, in the admin's words; None for the turn that started them again.
    reason: str | None
    by: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class PolicyVersion:
    """A stored version, without its texts."""

    version: str
    note: str
    #: None: it came with the program.
    created_by: str | None
    created_at: datetime


_MARKS = select(
    select(func.max(guard_activations.c.seq)).scalar_subquery(),
    select(func.max(guard_stops.c.seq)).scalar_subquery(),
)


def marks(connection: Connection) -> tuple[int, int]:
    """Two numbers, one of which rises with every change of what counts: the cheapest question there is."""
    activation, stop = connection.execute(_MARKS).one()
    return activation or 0, stop or 0


def newest_activation(connection: Connection) -> Activation | None:
    """What counts; None when nothing was ever activated."""
    row = connection.execute(
        select(guard_activations).order_by(guard_activations.c.seq.desc()).limit(1)
    ).one_or_none()
    return None if row is None else Activation(**row._mapping)


def newest_stop(connection: Connection) -> Stop | None:
    """The last turn of the switch; None when it was never turned."""
    row = connection.execute(select(guard_stops).order_by(guard_stops.c.seq.desc()).limit(1)).one_or_none()
    return None if row is None else Stop(**row._mapping)


def history(connection: Connection, limit: int) -> list[Activation]:
    """The newest activations, the one that counts first."""
    rows = connection.execute(select(guard_activations).order_by(guard_activations.c.seq.desc()).limit(limit))
    return [Activation(**row._mapping) for row in rows]


def versions(connection: Connection) -> list[PolicyVersion]:
    """Every stored version, newest first."""
    fields = tuple(PolicyVersion.__dataclass_fields__)
    rows = connection.execute(
        select(*(guard_policies.c[name] for name in fields)).order_by(
            guard_policies.c.created_at.desc(), guard_policies.c.version
        )
    )
    return [PolicyVersion(**row._mapping) for row in rows]


def before(connection: Connection) -> str | None:
    """The version that a roll-back leads to now; None when there is none."""
    earlier = _earlier(connection)
    return (earlier[-1] or version_of(packaged_policy())) if earlier else None


def texts_of(connection: Connection, version: str | None) -> dict[str, str]:
    """The text of every file of a version, of the packaged policy for None or its own version.

    Raises NotFound.
    """
    if version is None or version == version_of(packaged_policy()):
        return packaged_policy()
    texts = connection.execute(
        select(guard_policies.c.texts).where(guard_policies.c.version == version)
    ).scalar_one_or_none()
    if texts is None:
        raise NotFound("There is no policy of this version.")
    return completed(texts)


class PolicyStore:
    """What is done with policies; each act is audited."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def keep_packaged(self, connection: Connection) -> bool:
        """Store the policy of this release, unless it is there; returns whether it was new."""
        version = version_of(packaged_policy())
        if self._is_stored(connection, version):
            return False
        self._insert(connection, version, packaged_policy(), "It came with the program.", record.SYSTEM_ACTOR)
        self._log(connection, record.SYSTEM_ACTOR, "policy.packaged", f"policy:{version}", {})
        return True

    def add(self, connection: Connection, texts: Mapping[str, str], *, note: str, actor: record.Actor) -> str:
        """Store a checked policy; returns its version. Raises Conflict when the very same is there."""
        version = version_of(texts)
        if version == version_of(packaged_policy()):
            raise Conflict("This is the packaged policy, word for word; change something.")
        if self._is_stored(connection, version):
            raise Conflict("This very policy is stored already, under the same version.")
        self._insert(connection, version, texts, note, actor)
        self._log(connection, actor, "policy.added", f"policy:{version}", {})
        return version

    def activate(self, connection: Connection, version: str, actor: record.Actor) -> None:
        """Let a version judge from now on. Raises NotFound, or Conflict when it does already."""
        now = newest_activation(connection)
        wanted = self._named(connection, version)
        if wanted == (now.version if now else None):
            raise Conflict("This version is active already.")
        shadow = now.shadow if now else None
        self._move(
            connection,
            ActivationKind.ACTIVATE,
            wanted,
            None if shadow == version else shadow,
            actor,
            "policy.activated",
        )

    def roll_back(self, connection: Connection, actor: record.Actor) -> None:
        """Let the version before judge again; a second time goes back further. Raises Conflict at the end."""
        now, wanted = newest_activation(connection), before(connection)
        if now is None or wanted is None:
            raise Conflict("No other policy was active before; there is nothing to roll back to.")
        shadow = None if now.shadow == wanted else now.shadow
        named = self._named(connection, wanted)
        self._move(connection, ActivationKind.ROLL_BACK, named, shadow, actor, "policy.rolled_back")

    def set_shadow(self, connection: Connection, version: str | None, actor: record.Actor) -> None:
        """Let a version judge beside the active one, without effect; None ends that.

        Raises NotFound, or Conflict when that is so already, or the version is the active one.
        """
        now = newest_activation(connection)
        active = now.version if now else None
        if version is not None:
            if self._named(connection, version) == active:
                raise Conflict("This version is active: it judges for good, not in the shadow.")
            if not self._is_stored(connection, version):  # the packaged one, which none kept at its start
                self.keep_packaged(connection)
        if version == (now.shadow if now else None):
            raise Conflict("That is so already.")
        self._move(connection, ActivationKind.SHADOW, active, version, actor, "policy.shadowed")

    def stop(self, connection: Connection, reason: str, actor: record.Actor) -> None:
        """Stop all answers. Raises Conflict when they are stopped."""
        self._switch(connection, reason, actor)

    def start(self, connection: Connection, actor: record.Actor) -> None:
        """Give answers again. Raises Conflict when they are given."""
        self._switch(connection, None, actor)

    # -- inside

    def _switch(self, connection: Connection, reason: str | None, actor: record.Actor) -> None:
        now, stopped = newest_stop(connection), reason is not None
        if stopped == (now is not None and now.stopped):
            raise Conflict("Answers are stopped already." if stopped else "Answers are not stopped.")
        row = {
            "seq": _next(connection, guard_stops),
            "stopped": stopped,
            "reason": reason,
            "by": actor.id,
            "at": self._clock.now(connection),
        }
        put(connection, guard_stops, row)
        action = "answers.stopped" if stopped else "answers.started"
        self._log(connection, actor, action, f"guard_stop:{row['seq']}", {})

    def _move(
        self,
        connection: Connection,
        kind: ActivationKind,
        version: str | None,
        shadow: str | None,
        actor: record.Actor,
        action: str,
    ) -> None:
        before = newest_activation(connection)
        row = {
            "seq": _next(connection, guard_activations),
            "version": version,
            "shadow": shadow,
            "kind": kind,
            "by": actor.id,
            "at": self._clock.now(connection),
        }
        put(connection, guard_activations, row)
        details = {"before": before.version if before else None, "version": version, "shadow": shadow}
        self._log(connection, actor, action, f"policy:{version or 'packaged'}", details)

    def _named(self, connection: Connection, version: str) -> str | None:
        """The version as a row names it: None for the packaged policy. Raises NotFound."""
        if version == version_of(packaged_policy()):
            return None
        if not self._is_stored(connection, version):
            raise NotFound("There is no policy of this version.")
        return version

    def _is_stored(self, connection: Connection, version: str) -> bool:
        found = select(guard_policies.c.version).where(guard_policies.c.version == version)
        return connection.execute(found).first() is not None

    def _insert(
        self,
        connection: Connection,
        version: str,
        texts: Mapping[str, str],
        note: str,
        actor: record.Actor,
    ) -> None:
        row = {
            "version": version,
            "texts": dict(texts),
            "note": note,
            "created_by": None if actor.id == record.SYSTEM else actor.id,
            "created_at": self._clock.now(connection),
        }
        put(connection, guard_policies, row)

    def _log(
        self,
        connection: Connection,
        actor: record.Actor,
        action: str,
        object: str,
        details: dict[str, Any],
    ) -> None:
        now = self._clock.now(connection)
        record.append(connection, now=now, actor=actor, action=action, object=object, details=details)


def _earlier(connection: Connection) -> list[str | None]:
    """The versions that roll-backs lead to, the next one last; None among them: the packaged one."""
    rows = connection.execute(
        select(guard_activations.c.kind, guard_activations.c.version).order_by(guard_activations.c.seq)
    )
    stack: list[str | None] = [None]
    for kind, version in rows:
        if kind == ActivationKind.ACTIVATE:
            stack.append(version)
        elif kind == ActivationKind.ROLL_BACK:
            stack.pop()
    return stack[:-1]


def _next(connection: Connection, table: Table) -> int:
    """The number of the next row; two who take the same at once cannot both commit."""
    newest: int | None = connection.execute(select(func.max(table.c.seq))).scalar()
    return (newest or 0) + 1

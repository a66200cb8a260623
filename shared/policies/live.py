"""The guard as it counts at this moment in this process. It follows the database; it changes nothing there.

A changed policy or switch is taken up within `POLL_S` and the time to compile it, without a restart. Who
judges an answer takes `now` once, at its start, so no answer is judged under two policies. A policy that
cannot be compiled changes nothing: the one before goes on, and log and metrics say so.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from yaml import YAMLError

from shared.db import Database
from shared.guard import Guard, compile_guard, load_guard
from shared.guard.layers import Asker
from shared.guard.policy import packaged_policy, version_of
from shared.logs import where
from shared.policies.store import marks, newest_activation, newest_stop, texts_of

log = logging.getLogger(__name__)

#: How often the database is asked whether anything changed, in seconds.
POLL_S = 2.0
#: Guards of other versions that are kept compiled, to try sentences on.
_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What counts in this process."""

    guard: Guard
    #: Judges beside it without effect.
    shadow: Guard | None = None
    #: Whether an admin stopped all answers.
    stopped: bool = False
    #: A version that should count and cannot be compiled here.
    refused: str | None = None
    #: A version that should judge in the shadow and cannot be compiled here; what counts is not touched.
    shadow_refused: str | None = None


def read_guard(connection: Connection) -> Guard:
    """The guard under the policy that counts now, for a program that ends before long.

    Raises ValueError when that cannot be compiled.
    """
    activation = newest_activation(connection)
    return compile_version(connection, activation.version if activation else None)


class LiveGuard:
    """Follows what counts; safe to share between threads."""

    def __init__(self, database: Database, *, asker: Asker | None = None, poll_s: float = POLL_S) -> None:
        """`asker`: a language model of this process that judges too."""
        self._database = database
        self._asker = asker
        self._poll_s = poll_s
        self._now: Standing | None = None
        self._seen: tuple[int, int] | None = None
        self._when_stopped: Callable[[], object] = lambda: None
        self._kept: OrderedDict[str, Guard] = OrderedDict()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="policy", daemon=True)

    @property
    def now(self) -> Standing:
        """What counts; read from the database when it never was. Raises sqlalchemy's SQLAlchemyError then."""
        return self._now or self.refresh()

    @property
    def known(self) -> Standing | None:
        """What counts as far as it was read; None when it never was. It asks no database."""
        return self._now

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def when_stopped(self, act: Callable[[], object]) -> None:
        """Have this called each time that answers turn out to be stopped."""
        self._when_stopped = act

    def refresh(self) -> Standing:
        """Look whether anything changed, and take it up. Raises sqlalchemy's SQLAlchemyError."""
        with self._lock:
            before = self._now
            now = self._look(before)
            self._now = now
        if now.stopped and not (before is not None and before.stopped):
            self._when_stopped()
        return now

    def guard_of(self, connection: Connection, version: str) -> Guard:
        """The guard under any version, whether it counts or not.

        Raises NotFound, or ValueError when it cannot be compiled.
        """
        kept = self._kept.get(version)
        if kept is None:
            kept = self._kept[version] = compile_version(connection, version, self._asker)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return kept

    def stats(self) -> dict[str, Any]:
        """What counts here, as a worker reports it."""
        now = self._now
        return {
            "policy_version": now.guard.policy_version if now else None,
            "shadow_version": now.shadow.policy_version if now and now.shadow else None,
            "policy_refused": now.refused if now else None,
            "shadow_refused": now.shadow_refused if now else None,
        }

    def _look(self, before: Standing | None) -> Standing:
        with self._database.read() as connection:
            seen = marks(connection)
            if before is not None and seen == self._seen:
                return before
            activation, stop = newest_activation(connection), newest_stop(connection)
            stopped = stop is not None and stop.stopped
            if before is not None and self._seen is not None and seen[0] == self._seen[0]:
                now = replace(before, stopped=stopped)
            else:
                wanted = (activation.version, activation.shadow) if activation else (None, None)
                now = self._compiled(connection, before, *wanted, stopped=stopped)
        self._seen = seen
        return now

    def _compiled(
        self,
        connection: Connection,
        before: Standing | None,
        version: str | None,
        shadow_version: str | None,
        *,
        stopped: bool,
    ) -> Standing:
        guard, shadow = before.guard if before else None, None
        refused = shadow_refused = None
        try:
            guard = compile_version(connection, version, self._asker)
        except SQLAlchemyError:
            raise
        except Exception as error:  # whatever is wrong with it, the one before goes on
            log.error("the policy %s cannot be compiled in %s: the one before goes on", version, where(error))
            refused = version
        if shadow_version is not None:
            try:
                shadow = compile_version(connection, shadow_version, self._asker)
            except SQLAlchemyError:
                raise
            except Exception as error:
                log.error("the shadow policy %s cannot be compiled in %s", shadow_version, where(error))
                shadow_refused = shadow_version
        guard = guard or _packaged(self._asker)
        log.info("the guard judges under policy %s", guard.policy_version)
        return Standing(
            guard=guard, shadow=shadow, stopped=stopped, refused=refused, shadow_refused=shadow_refused
        )

    def _poll(self) -> None:
        while True:
            try:
                self.refresh()
            except SQLAlchemyError as error:
                log.warning("cannot ask for the policy: %s", type(error).__name__)
            except Exception as error:  # the loop must outlive a bug in one round
                log.error("the policy could not be followed: %s", where(error))
            if self._closing.wait(self._poll_s):
                return


def compile_version(connection: Connection, version: str | None, asker: Asker | None = None) -> Guard:
    """The guard under a version, under the packaged policy for None.

    Raises NotFound, or ValueError when it cannot be compiled.
    """
    if version is None or version == version_of(packaged_policy()):
        return _packaged(asker)
    texts = texts_of(connection, version)
    try:
        return compile_guard(texts, asker, version)
    except (KeyError, TypeError, AttributeError, RecursionError, YAMLError) as error:
        # not of the shape that this release reads
        raise ValueError("the policy is malformed") from error


def _packaged(asker: Asker | None) -> Guard:
    return load_guard() if asker is None else compile_guard(packaged_policy(), asker)

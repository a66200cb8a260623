"""Judges released sentences once more, under the shadow policy, in a thread of its own.

Nothing waits for it and nothing that it finds is shown: its verdicts are rows that are marked. When it cannot
keep up it leaves sentences out, and counts them: the worker reports how many.
"""

import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from shared.clock import Clock
from shared.conversations import Conversations, StoredVerdict
from shared.db import Database
from shared.guard import Guard
from shared.guard.gate import ADDED, CONTEXT_CHARS, GUARD_FAILURE, Release
from shared.guard.verdict import Audience, Verdict
from shared.jobs.records import Job
from shared.logs import where

log = logging.getLogger(__name__)

#: Sentences that wait at the most, and that are stored together.
_WAITING, _TOGETHER = 2000, 64


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A sentence that an answer's gate has judged."""

    guard: Guard
    job_id: str
    seq: int
    text: str
    context: str
    audience: Audience


class ShadowJudge:
    """The thread; safe to share between those who answer."""

    def __init__(self, database: Database, conversations: Conversations, clock: Clock) -> None:
        self._database, self._conversations, self._clock = database, conversations, clock
        self._waiting: queue.Queue[_Judged | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        #: Sentences left out since it was made, because it could not keep up or failed.
        self.left_out = 0

    def start(self) -> None:
        """Begin to judge."""
        self._thread.start()

    def close(self) -> None:
        """Judge what waits, for a few seconds, and end."""
        if self._thread.is_alive():
            self._put(None)
            self._thread.join(timeout=5)

    def look(self, guard: Guard, job: Job, released: Sequence[Release], first_seq: int, context: str) -> None:
        """Have these sentences judged, which were released after `context`. Returns at once."""
        for seq, release in enumerate(released, start=first_seq):
            if release.verdict.source in ADDED:
                continue  # no model wrote it
            text = release.text if release.suppressed is None else release.suppressed
            self._put(
                _Judged(
                    guard=guard, job_id=job.id, seq=seq, text=text, context=context, audience=job.audience
                )
            )
            context = (context + release.text)[-CONTEXT_CHARS:]

    def _put(self, item: _Judged | None) -> None:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self.left_out += 1

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            group = [first]
            while len(group) < _TOGETHER and not self._waiting.empty():
                item = self._waiting.get()
                if item is None:
                    self._store(group)
                    return
                group.append(item)
            self._store(group)

    def _store(self, group: Sequence[_Judged]) -> None:
        try:
            judged = [(item, _verdict(item)) for item in group]
            with self._database.write() as connection:
                now = self._clock.now(connection)
                for item, verdict in judged:
                    stored = StoredVerdict(
                        verdict=verdict,
                        policy_version=item.guard.policy_version,
                        text=item.text,
                        shadow_of=item.seq,
                    )
                    self._conversations.store_verdict(connection, job_id=item.job_id, stored=stored, now=now)
        except SQLAlchemyError as error:
            log.warning("shadow verdicts could not be stored: %s", type(error).__name__)
            self.left_out += len(group)
        except Exception as error:  # nothing that happens here may end the thread
            log.error("shadow verdicts failed: %s", where(error))
            self.left_out += len(group)


def _verdict(item: _Judged) -> Verdict:
    try:
        return item.guard.judge_answer(item.text, item.context, item.audience)
    except Exception:  # the gate would have stopped here
        return GUARD_FAILURE

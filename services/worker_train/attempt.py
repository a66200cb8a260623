"""One attempt at one job: start its program, store what it says, and draw the conclusion from its end.

It does not know what the program does. Everything it writes is fenced by the claim: a worker that lost its
lease writes nothing, and its program is killed.
"""

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from services.worker_train.child import Exit
from services.worker_train.supervise import Program, ProgramEvent
from services.worker_train.work import CRASHED, Tools, Unusable, Work
from shared.answers import record_end
from shared.db import is_away
from shared.errors import LeaseLost
from shared.jobs.leases import Hold
from shared.jobs.lifecycle import TERMINAL, EventKind
from shared.jobs.persist import persist
from shared.jobs.records import Job
from shared.jobs.store import Renewal
from shared.logs import where

log = logging.getLogger(__name__)
T = TypeVar("T")

#: How long a program may take to end itself, in seconds: when cancelled (which a person waits for, perhaps a
#: heartbeat already), and when it saves its work first.
CANCEL_GRACE_S = 4.0
DRAIN_GRACE_S = 60.0
#: How long work waits that finds no room beside what serves, in seconds.
NO_ROOM_S = 60.0


class Attempt:
    """One attempt at one job."""

    def __init__(self, tools: Tools, job: Job, work: Work) -> None:
        self._tools, self._job, self._work = tools, job, work
        self._hold: Hold | None = None
        self._program: Program | None = None
        #: Guards the program against one who stops it while it is started.
        self._lock = threading.Lock()
        self._draining = False
        self._done: ProgramEvent | None = None
        self._stopped: ProgramEvent | None = None
        #: Whether the job went back to the queue because this worker is shutting down.
        self.handed_back = False

    def run(self, hold: Hold) -> None:
        """Bring the job to an end, or back to the queue. Raises LeaseLost."""
        self._hold = hold
        try:
            self._persist(self._work.open)
            while self._run_program():
                continue
        except Unusable as error:
            self._fail("unusable", str(error))
        except OSError as error:
            log.error("job %s: %s", self._job.id, where(error))
            self.retry(
                "storage",
                f"The worker could not read or write files ({_name(error)}); look at its disk and storage.",
            )

    # -- from other threads

    def stop(self) -> None:
        """Stop: the job is cancelled, or belongs to somebody else."""
        with self._lock:
            if self._program is None or self._hold is None:
                return  # it looks before it starts one
            if self._hold.stop is Renewal.LOST:
                self._program.kill()
            else:
                self._program.stop(CANCEL_GRACE_S)

    def drain(self) -> None:
        """Let the program save its work, then hand the job back."""
        with self._lock:
            self._draining = True
            if self._program is not None and (self._hold is None or self._hold.stop is None):
                self._program.stop(DRAIN_GRACE_S)  # what is stopped already has less time than that

    # -- the program

    def _run_program(self) -> bool:
        """Run the program to its end; returns whether it should be started again at once."""
        self._done = self._stopped = None
        arguments = self._work.arguments()
        self._persist(lambda connection: self._work.started(connection, self._own(connection)))
        program = self._start([*self._tools.programs[self._job.kind], *arguments])
        if program is None:
            return self._conclude(None)
        with program:
            for batch in program.batches():
                self._take(batch)
        status = program.wait()
        if status not in set(Exit) and program.lacked_memory():
            status = Exit.OUT_OF_MEMORY
        return self._conclude(status)

    def _start(self, command: Sequence[str]) -> Program | None:
        """None when the work was stopped meanwhile."""
        with self._lock:
            if self._draining or self._held.stop is not None:
                return None
            self._program = Program(
                command, log_path=self._work.folder / "log.txt", environment=self._work.environment()
            )
            return self._program

    def _take(self, events: list[ProgramEvent]) -> None:
        """Files first, then the rows that speak of them, then the bell."""
        for event in events:
            if event.name == "done":
                self._done = event
            elif event.name == "stopped":
                self._stopped = event
        if self._held.stop is None:  # else nothing of it will be needed again
            self._work.keep_files(events, lambda: self._held.stop is not None)

        def write(connection: Connection) -> None:
            now = self._tools.jobs.hold(connection, self._job.claim, **self._work.columns(events))
            self._work.record(connection, events, now)

        self._persist(write)
        self._tools.bell.news(self._job.id)

    def _conclude(self, status: int | None) -> bool:
        """Draw the conclusion from the program's exit status; True: start it again at once."""
        if self._held.stop is Renewal.LOST:
            raise LeaseLost
        if status == Exit.DONE and self._done is not None:
            self._succeed(self._done)
        elif self._held.stop is Renewal.CANCEL:
            self._transition(lambda c: self._tools.jobs.finish(c, self._job.claim, EventKind.CANCELLED))
        elif self._draining or status == Exit.DRAINED:
            self._hand_back()
        elif status == Exit.OUT_OF_MEMORY:
            if self._persist(lambda connection: self._work.shrink(connection, self._own(connection))):
                return True
            self._fail("out-of-memory", self._work.no_memory)
        elif status == Exit.WAIT:
            self._postpone()
        elif status == Exit.AWAY:
            self.retry(*self._reason())
        elif status == Exit.REFUSED:
            self._fail(*self._reason())
        else:
            self._crashed(status)
        return False

    # -- the end of the attempt

    def _succeed(self, done: ProgramEvent) -> None:
        if self._persist(lambda connection: self._is_new(connection, done)):
            self._work.deliver(done.fields)

        def move(connection: Connection) -> Job:
            now = self._own(connection)
            columns = self._work.conclude(connection, done.fields, now)
            return self._tools.jobs.finish(connection, self._job.claim, EventKind.SUCCEEDED, **columns)

        self._transition(move)

    def _is_new(self, connection: Connection, done: ProgramEvent) -> bool:
        self._own(connection)  # whoever lost the job must not write over what another delivered
        return self._work.is_new(connection, done.fields)

    def _fail(self, code: str, detail: str) -> None:
        def move(connection: Connection) -> Job:
            self._own(connection)
            self._work.refuse(connection, code, detail)
            return self._tools.jobs.finish(
                connection, self._job.claim, EventKind.FAILED, error=code, error_detail=detail
            )

        self._transition(move)

    def _postpone(self) -> None:
        _, reason = self._reason()

        def move(connection: Connection) -> Job:
            self._own(connection)
            self._work.wait(connection, reason)
            return self._tools.jobs.postpone(connection, self._job.claim, NO_ROOM_S)

        self._transition(move)

    def _hand_back(self) -> None:
        self.handed_back = self._draining
        job = self._transition(lambda connection: self._tools.jobs.drain(connection, self._job.claim))
        self._tools.bell.work(job.kind, job.id)

    def _crashed(self, status: int | None) -> None:
        how = f"signal {-status}" if status is not None and status < 0 else f"status {status}"
        log_file = (self._work.folder / "log.txt").relative_to(self._tools.settings.state_dir.absolute())
        self.retry(
            CRASHED,
            f"The program ended unexpectedly ({how}), in attempt {self._job.attempt} of "
            f"{self._job.max_attempts}; {log_file} in the worker's state folder says more.",
        )

    def retry(self, error: str, detail: str) -> None:
        """Give this attempt up; the job is tried again, or fails if this was its last."""

        def move(connection: Connection) -> Job:
            self._work.note(connection, detail, self._own(connection))
            return self._tools.jobs.retry(connection, self._job.claim, error=error, error_detail=detail)

        try:
            job = self._transition(move)
        except LeaseLost:
            return
        except DBAPIError as away:
            if not is_away(away):
                raise
            return  # the lease will run out, and the reconciler decides
        log.warning("job %s: attempt %d ended in %s, now %s", job.id, job.attempt, error, job.state)

    def _reason(self) -> tuple[str, str]:
        """Why the program stopped, as it said itself: a code, and what to do."""
        fields = self._stopped.fields if self._stopped is not None else {}
        return str(fields.get("code", "refused")), str(fields.get("detail", "The program did not say why."))

    def _transition(self, move: Callable[[Connection], Job]) -> Job:
        def write(connection: Connection) -> Job:
            job = move(connection)
            now = self._tools.jobs.clock.now(connection)
            record_end(connection, self._tools.conversations, job, actor=self._tools.actor, now=now)
            return job

        job = self._persist(write)
        if job.state in TERMINAL:
            try:
                self._work.tidy(job)
            except OSError as error:
                log.warning("job %s: files could not be removed: %s", job.id, where(error))
        return job

    def _own(self, connection: Connection) -> Any:
        """Fence the transaction; returns the moment."""
        return self._tools.jobs.hold(connection, self._job.claim)

    @property
    def _held(self) -> Hold:
        assert self._hold is not None
        return self._hold

    def _persist(self, write: Callable[[Connection], T]) -> T:
        return persist(self._tools.database, self._held, write, patience_s=self._tools.settings.lease_s)


def _name(error: OSError) -> str:
    """What the system calls the error, e.g. ENOSPC; its message would name files."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)

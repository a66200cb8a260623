"""Takes back lost jobs, seals what is not, announces forgotten jobs, fills the queue of reviews, makes
messages searchable, purges what is to be kept no longer, removes what uploads and checks left; in one gateway
at a time.

It answers no request. Any number of gateways may run: a row in `leases` elects the one that works.
"""

import logging
import threading
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from services.api.leftovers import Leftovers
from services.api.retention import Retention
from services.api.state import Gateway
from shared.answers import record_end
from shared.audit import record
from shared.db.leases import give_up_lease, hold_lease
from shared.ids import new_id
from shared.jobs.lifecycle import TERMINAL
from shared.jobs.records import Job
from shared.logs import where
from shared.privacy.search_index import index_waiting

log = logging.getLogger(__name__)

LEASE_NAME = "maintenance"


class Maintenance:
    """The loop; `start` and `close` belong to the gateway's life."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._holder = new_id()
        self._retention = Retention(gateway)
        self._leftovers = Leftovers(gateway)
        self._closing = threading.Event()
        #: Set as long as a round is over and the next has not begun.
        self.resting = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Begin; the first round comes at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the round under way, and let another gateway take over at once."""
        self._closing.set()
        self._thread.join(timeout=10)
        try:
            with self._gateway.database.write() as connection:
                give_up_lease(connection, LEASE_NAME, self._holder)
        except SQLAlchemyError:
            return  # the lease runs out by itself

    def round(self) -> None:
        """One round, if this gateway holds the lease: expire, seal what is in the clear, announce, the rest.

        Raises what went wrong in the last of the rest; none of it keeps the others from their turn.
        """
        gateway = self._gateway
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            if not self._elected(connection, now):
                return
            moved = gateway.jobs.expire(connection, partial(self._record, connection, now))
            stale = gateway.jobs.take_stale(connection)
            sealed = gateway.datasets.seal_names(connection)
        for job in moved:
            log.warning("job %s was taken back: attempt %d, now %s", job.id, job.attempt, job.state)
            self._announce(job)
        if sealed:
            log.info("names of files of %d datasets were sealed", sealed)
        for job in stale:
            gateway.bell.work(job.kind, job.id)
        with ExitStack() as rest:  # each is called, whatever becomes of the others; the last one first
            rest.callback(self._leftovers.round, now)
            rest.callback(self._retention.round, now)
            rest.callback(index_waiting, gateway.database, gateway.envelope, gateway.clock)
            rest.callback(gateway.filling.fill, gateway.database)

    def _record(self, connection: Connection, now: datetime, job: Job) -> None:
        talk = self._gateway.conversations
        record_end(connection, talk, job, actor=record.SYSTEM_ACTOR, now=now)

    def _announce(self, job: Job) -> None:
        if job.state not in TERMINAL:
            self._gateway.bell.work(job.kind, job.id)
        self._gateway.bell.news(job.id)

    def _elected(self, connection: Connection, now: datetime) -> bool:
        life = timedelta(seconds=max(3 * self._gateway.settings.reconcile_s, 5))
        return hold_lease(connection, LEASE_NAME, self._holder, life=life, now=now)

    def _run(self) -> None:
        pause = self._gateway.settings.reconcile_s
        while True:
            self.resting.clear()
            try:
                self.round()
            except SQLAlchemyError as error:
                log.warning("maintenance could not reach the database: %s", type(error).__name__)
            except Exception as error:  # the loop must outlive a bug in one round
                log.error("maintenance failed: %s", where(error))
            self.resting.set()
            if self._closing.wait(pause):
                return

"""Seals the log as it grows; in one gateway at a time. It answers no request, and signs nothing."""

import logging
import threading
from datetime import timedelta

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from services.api.metrics import LOG_ALTERED
from services.api.state import Gateway
from shared.audit.sequencer import BATCH, TAKEN, Hint, anything_waits, seal_batch
from shared.db.leases import give_up_lease, hold_lease
from shared.errors import LogAltered
from shared.ids import new_id
from shared.logs import where

log = logging.getLogger(__name__)

LEASE_NAME = "sequencer"
LIFE = timedelta(seconds=5)
#: One gateway seals, so it is not another's doing when sealing fails so often one after another.
_TRIES = 5


class Sealing:
    """The loop; `start` and `close` belong to the gateway's life."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        #: Under which name this gateway holds the lease.
        self.holder = new_id()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealing", daemon=True)
        self._in_vain = 0
        self._hint = Hint()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the batch under way, and let another gateway take over at once."""
        self._closing.set()
        self._thread.join(timeout=10)
        try:
            with self._gateway.database.write() as connection:
                give_up_lease(connection, LEASE_NAME, self.holder)
        except SQLAlchemyError:
            return  # the lease runs out by itself

    def round(self) -> None:
        """Seal what waits, if this gateway holds the lease."""
        gateway = self._gateway
        with gateway.database.read() as connection:
            waits = anything_waits(connection)
        while waits and not self._closing.is_set():
            with gateway.database.write() as connection:
                now = gateway.clock.now(connection)
                if not hold_lease(connection, LEASE_NAME, self.holder, life=LIFE, now=now):
                    return
                waits = seal_batch(connection, now, self._hint) == BATCH
            self._in_vain = 0

    def _failed_to_seal(self) -> None:
        """Another gateway may just have been faster; where it was not, somebody else took the place."""
        self._in_vain += 1
        if self._in_vain >= _TRIES:
            LOG_ALTERED.set(1)
            log.error("the log is not sealed: %s", TAKEN)

    def _run(self) -> None:
        while not self._closing.wait(self._gateway.settings.seal_s):
            try:
                self.round()
            except IntegrityError:
                self._failed_to_seal()
            except SQLAlchemyError as error:
                log.warning("the log could not be sealed: %s", type(error).__name__)
            except LogAltered as error:
                LOG_ALTERED.set(1)
                log.error("the log is not sealed: %s", error)
            except Exception as error:  # the loop must outlive a bug in one round
                log.error("sealing failed: %s", where(error))

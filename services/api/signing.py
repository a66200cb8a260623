"""Signs checkpoints of the log as it grows, one gateway at a time; keeps them elsewhere. It seals nothing.

It has a thread of its own: a second place that is slow, or silent, keeps nothing from being sealed.
"""

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError

from services.api.metrics import CHECKPOINT_FAILED, CHECKPOINT_UNREAD, LOG_ALTERED
from services.api.sealing import LEASE_NAME, LIFE
from services.api.state import Gateway
from shared.audit import checkpoints
from shared.audit.checkpoint import Checkpoint
from shared.audit.checkpoints import Signed
from shared.audit.sequencer import tree_size
from shared.db.leases import hold_lease
from shared.errors import LogAltered
from shared.logs import where

log = logging.getLogger(__name__)


class Signing:
    """The loop; `start` and `close` belong to the gateway's life."""

    def __init__(self, gateway: Gateway, holder: str) -> None:
        """`holder`: under which name this gateway holds the sequencer's lease."""
        self._gateway, self._holder = gateway, holder
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signing", daemon=True)
        #: The checkpoint that the second place is known to have.
        self._kept: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what waits for a silent second place signs nothing any more."""
        self._closing.set()
        self._thread.join(timeout=10)

    def round(self) -> None:
        """Sign what is new; or bring to the second place what was signed and did not get there.

        Raises LogAltered.
        """
        gateway = self._gateway
        if not self._elected():
            for gauge in (CHECKPOINT_FAILED, CHECKPOINT_UNREAD, LOG_ALTERED):
                gauge.set(0)  # who signs says whether it can
            return
        former = look(gateway)
        if self._closing.is_set() or not self._elected():  # that may have taken long
            return
        with gateway.database.read() as connection:
            newest = checkpoints.newest(connection)
            size = tree_size(connection)
        grown = size != (newest.size if newest else 0)
        if grown or (former is not None and former.size > size):
            newest, kept = _sign(gateway, former)
        elif newest is not None and newest.id != self._kept:
            kept = keep(gateway, newest)
        else:
            return
        self._kept = newest.id if kept else None

    def _elected(self) -> bool:
        with self._gateway.database.write() as connection:
            now = self._gateway.clock.now(connection)
            return hold_lease(connection, LEASE_NAME, self._holder, life=LIFE, now=now)

    def _run(self) -> None:
        while not self._closing.wait(self._gateway.settings.checkpoint_s):
            try:
                self.round()
            except SQLAlchemyError as error:
                log.warning("the log could not be signed: %s", type(error).__name__)
            except LogAltered as error:
                log.error("the log is not signed: %s", error)
            except Exception as error:  # the loop must outlive a bug in one round
                log.error("signing failed: %s", where(error))


def sign_now(gateway: Gateway) -> tuple[Signed, bool]:
    """Sign the log as it is sealed; the checkpoint, and whether the second place has it.

    Raises LogAltered.
    """
    return _sign(gateway, look(gateway))


def _sign(gateway: Gateway, former: Checkpoint | None) -> tuple[Signed, bool]:
    """The checkpoint, and whether the second place has it too. Raises LogAltered."""
    try:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            signed = checkpoints.sign(connection, gateway.signer, now, kept=former)
    except LogAltered:
        LOG_ALTERED.set(1)
        raise
    LOG_ALTERED.set(0)
    return signed, keep(gateway, signed)


def keep(gateway: Gateway, signed: Signed) -> bool:
    """Bring a checkpoint to the second place; where that fails a metric says so, and it is tried again."""
    try:
        checkpoints.publish(gateway.checkpoints, signed, gateway.signer.verifier)
    except OSError as error:
        CHECKPOINT_FAILED.set(1)
        log.error("a checkpoint could not be kept in MEDICHAT_CHECKPOINT_URL: %s", type(error).__name__)
        return False
    CHECKPOINT_FAILED.set(0)
    return True


def look(gateway: Gateway) -> Checkpoint | None:
    """The newest checkpoint of the second place; None when there is none, or it cannot be read.

    Where something there cannot be read a metric says so: what is signed now is held against less.
    """
    try:
        found = checkpoints.look(gateway.database, gateway.checkpoints, gateway.signer.verifier)
    except OSError as error:
        CHECKPOINT_UNREAD.set(1)
        log.error("MEDICHAT_CHECKPOINT_URL cannot be read: %s", type(error).__name__)
        return None
    CHECKPOINT_UNREAD.set(bool(found.bad))
    for path in found.bad:
        log.error("%s of MEDICHAT_CHECKPOINT_URL is not what its name says", path)
    return found.newest

"""Seals the log as it grows and signs checkpoints of it; in one gateway at a time. It answers no request."""

import logging
import threading
import time
from datetime import timedelta

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from services.api.metrics import CHECKPOINT_FAILED, LOG_ALTERED
from services.api.state import Gateway
from shared.audit import checkpoints
from shared.audit.checkpoint import Checkpoint
from shared.audit.checkpoints import Signed
from shared.audit.sequencer import BATCH, TAKEN, Hint, anything_waits, seal_batch, tree_size
from shared.db.leases import give_up_lease, hold_lease
from shared.errors import BadCheckpoint, LogAltered
from shared.ids import new_id
from shared.logs import where

log = logging.getLogger(__name__)

LEASE_NAME = "sequencer"
_LIFE = timedelta(seconds=5)
#: One gateway seals, so it is not another's doing when sealing fails so often one after another.
_TRIES = 5


class Sealing:
    """The loop; `start` and `close` belong to the gateway's life."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._holder = new_id()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sealing", daemon=True)
        self._next_checkpoint = time.monotonic() + gateway.settings.checkpoint_s
        #: The checkpoint that the second place is known to have.
        self._kept: str | None = None
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
                give_up_lease(connection, LEASE_NAME, self._holder)
        except SQLAlchemyError:
            return  # the lease runs out by itself

    def round(self) -> None:
        """Seal what waits, if this gateway holds the lease; sign a checkpoint when it is time."""
        gateway = self._gateway
        with gateway.database.read() as connection:
            waits = anything_waits(connection)
        while waits and not self._closing.is_set():
            with gateway.database.write() as connection:
                now = gateway.clock.now(connection)
                if not hold_lease(connection, LEASE_NAME, self._holder, life=_LIFE, now=now):
                    return
                waits = seal_batch(connection, now, self._hint) == BATCH
            self._in_vain = 0
        if time.monotonic() >= self._next_checkpoint:
            self._next_checkpoint = time.monotonic() + gateway.settings.checkpoint_s
            self._sign_if_grown()

    def _sign_if_grown(self) -> None:
        """Sign what is new; or bring to the second place what was signed and did not get there."""
        gateway = self._gateway
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            if not hold_lease(connection, LEASE_NAME, self._holder, life=_LIFE, now=now):
                return
            newest = checkpoints.newest(connection)
            grown = tree_size(connection) != (newest.size if newest else 0)
        if grown:
            newest, kept = sign_now(gateway)
        elif newest is not None and newest.id != self._kept:
            kept = keep(gateway, newest)
        else:
            return
        self._kept = newest.id if kept else None

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
                log.error("the log is not sealed or signed: %s", error)
            except Exception as error:  # the loop must outlive a bug in one round
                log.error("sealing failed: %s", where(error))


def sign_now(gateway: Gateway) -> tuple[Signed, bool]:
    """Sign the log as it is sealed; returns the checkpoint, and whether the second place has it too.

    Raises LogAltered.
    """
    kept = _kept(gateway)
    try:
        with gateway.database.write() as connection:
            now = gateway.clock.now(connection)
            signed = checkpoints.sign(connection, gateway.signer, now, kept=kept)
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


def _kept(gateway: Gateway) -> Checkpoint | None:
    """The newest checkpoint of the second place; None when there is none, or it cannot be reached."""
    try:
        return checkpoints.newest_kept(gateway.checkpoints, gateway.signer.verifier)
    except (OSError, BadCheckpoint) as error:
        log.error("the newest checkpoint of MEDICHAT_CHECKPOINT_URL cannot be read: %s", type(error).__name__)
        return None

"""Reads and writes a worker's part of the database, again while that is away. It does not know what."""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from shared.db import Database, is_away
from shared.errors import LeaseLost
from shared.jobs.leases import Hold
from shared.jobs.store import Renewal

T = TypeVar("T")


def persist(
    database: Database,
    hold: Hold,
    work: Callable[[Connection], T],
    *,
    patience_s: float,
    read_only: bool = False,
) -> T:
    """One transaction, tried again while the database is away and the lease may still hold.

    When a commit's fate is unknown, the repeat finds its own rows (IntegrityError) or a finished
    job (LeaseLost); both mean that this attempt has nothing more to write here.
    """
    give_up = time.monotonic() + patience_s
    pause = 0.1
    while True:
        try:
            with database.read() if read_only else database.write() as connection:
                return work(connection)
        except IntegrityError as error:
            raise LeaseLost from error
        except DBAPIError as error:
            if not is_away(error):
                raise
            if time.monotonic() + pause > give_up or hold.stop is Renewal.LOST:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)

"""Runs a training worker: `python -m services.worker_train`. `--health` says whether one lives here."""

import logging
import os
import sys

from services.worker_train.worker import Worker
from shared.errors import InvalidInput, MediChatError
from shared.jobs.lifecycle import Kind
from shared.logs import configure_logging
from shared.privacy.keys import check_master_key
from shared.registration import is_alive
from shared.settings import describe_wrong, get_settings


def main() -> int:
    """Work until told to stop; returns the exit status: `os.EX_CONFIG` when a setting must be changed."""
    configure_logging("worker_train")
    log = logging.getLogger(__name__)
    try:
        settings = get_settings()
        if sys.argv[1:] == ["--health"]:
            return 0 if is_alive(settings, Kind.TRAIN) else 1
        check_master_key(settings)
        worker = Worker(settings)
    except (InvalidInput, ValueError) as error:
        told = describe_wrong(error) if isinstance(error, ValueError) else error
        log.critical("the worker cannot start: %s", told)
        return os.EX_CONFIG
    except (MediChatError, OSError) as error:
        log.critical("the worker cannot start: %s", error)
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

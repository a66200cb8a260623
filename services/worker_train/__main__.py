"""Runs a training worker: `python -m services.worker_train`. `--health` says whether one lives here."""

import logging
import sys

from services.worker_train.worker import Worker, is_alive
from shared.errors import MediChatError
from shared.logs import configure_logging
from shared.settings import get_settings


def main() -> int:
    """Work until told to stop; returns the exit status."""
    configure_logging("worker_train")
    settings = get_settings()
    if sys.argv[1:] == ["--health"]:
        return 0 if is_alive(settings) else 1
    try:
        worker = Worker(settings)
    except (MediChatError, ValueError, OSError) as error:
        logging.getLogger(__name__).critical("the worker cannot start: %s", error)
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

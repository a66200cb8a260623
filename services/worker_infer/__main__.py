"""Runs an inference worker: `python -m services.worker_infer`. `--health` says whether one lives here."""

import logging
import sys

from transformers.utils.logging import disable_progress_bar

from services.worker_infer.worker import Worker, is_alive
from shared.errors import MediChatError
from shared.logs import configure_logging
from shared.settings import get_settings


def main() -> int:
    """Serve until told to stop; returns the exit status."""
    configure_logging("worker_infer")
    disable_progress_bar()  # type: ignore[no-untyped-call]
    settings = get_settings()
    if sys.argv[1:] == ["--health"]:
        return 0 if is_alive(settings) else 1
    try:
        worker = Worker(settings)
    except (MediChatError, ValueError, OSError, MemoryError) as error:
        logging.getLogger(__name__).critical("the worker cannot start: %s", error)
        return 1
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs an inference worker: `python -m services.worker_infer`. `--health` says whether one lives here."""

import gc
import logging
import os
import sys
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from shared.catalogue import find_model, weights_folder
from shared.errors import InvalidInput, MediChatError
from shared.jobs.lifecycle import Kind
from shared.logs import configure_logging
from shared.privacy.keys import check_master_key
from shared.registration import is_alive
from shared.settings import Settings, describe_wrong, get_settings
from shared.threads import share_often

if TYPE_CHECKING:
    from services.worker_infer.worker import Worker


def main() -> int:
    """Serve until told to stop; returns the exit status: `os.EX_CONFIG` when a setting must be changed."""
    configure_logging("worker_infer")
    log = logging.getLogger(__name__)
    try:
        settings = get_settings()
        if sys.argv[1:] == ["--health"]:
            return 0 if is_alive(settings, Kind.INFER) else 1
        worker = _open(settings)
    except (InvalidInput, ValueError) as error:
        told = describe_wrong(error) if isinstance(error, ValueError) else error
        log.critical("the worker cannot start: %s", told)
        return os.EX_CONFIG
    except (MediChatError, OSError, MemoryError) as error:
        log.critical("the worker cannot start: %s", error)
        return 1
    except DBAPIError as error:
        log.critical(
            "the worker cannot start: the database is away or not prepared (%s)", type(error.orig).__name__
        )
        return 1
    share_often()
    worker.run()
    return 0


def _open(settings: Settings) -> "Worker":
    weights_folder(find_model(settings.model), settings.model_path)  # what is wrong there is said at once
    check_master_key(settings)
    # here, because importing what computes takes seconds, and the health check needs none of it
    gc.disable()  # importing leaves no garbage, and looking for it takes a sixth of the time
    from transformers.utils.logging import disable_progress_bar

    from services.worker_infer.worker import Worker

    gc.enable()
    disable_progress_bar()  # type: ignore[no-untyped-call]
    return Worker(settings)


if __name__ == "__main__":
    sys.exit(main())

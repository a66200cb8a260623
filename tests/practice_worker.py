"""A training worker whose runs are done by the practice program: `python -m tests.practice_worker`."""

import sys

from services.worker_train.worker import Worker
from shared.jobs.lifecycle import Kind
from shared.logs import configure_logging
from shared.settings import get_settings

PROGRAMS = dict.fromkeys((Kind.VALIDATE, Kind.TRAIN), (sys.executable, "-m", "tests.practice_program"))

if __name__ == "__main__":
    configure_logging("practice")
    Worker(get_settings(), PROGRAMS).run()

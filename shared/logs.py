"""Sets up logging for a process: one line per record on standard error. It logs nothing itself."""

import logging


def configure_logging(service: str, *, level: int = logging.INFO) -> None:
    """Write `time level service logger message`; libraries speak only when something is wrong."""
    logging.basicConfig(
        level=level, format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s", force=True
    )
    for noisy in ("httpx", "httpcore", "celery", "kombu", "amqp", "alembic", "urllib3", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

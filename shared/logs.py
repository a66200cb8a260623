"""Sets up logging for a process: one line per record on standard error. It logs nothing itself."""

import logging

_NOISY = (
    *("httpx", "httpcore", "celery", "kombu", "amqp", "alembic", "urllib3"),
    *("transformers", "presidio-analyzer"),
)


def configure_logging(service: str, *, level: int = logging.INFO) -> None:
    """Write `time level service logger message`; libraries speak only when something is wrong."""
    logging.basicConfig(
        level=level, format=f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s", force=True
    )
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def where(error: BaseException) -> str:
    """The type of an error and the line that raised it; never its message, which may quote a text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    return f"{type(error).__name__} at {place}"

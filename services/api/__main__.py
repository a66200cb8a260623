"""Runs the gateway: `python -m services.api`. It knows only where to listen."""

import gc

import uvicorn

from services.api.main import create_app
from shared.logs import configure_logging
from shared.settings import get_settings


def main() -> None:
    """Serve until told to stop; open streams get a few seconds to end."""
    configure_logging("api")
    settings = get_settings()
    gc.collect()
    gc.freeze()  # what is loaded stays; searching it for garbage would hold up every request
    uvicorn.run(
        create_app,
        factory=True,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,  # a URL may name a conversation; the audit log says who did what
        log_config=None,
        timeout_graceful_shutdown=3,
        server_header=False,
    )


if __name__ == "__main__":
    main()

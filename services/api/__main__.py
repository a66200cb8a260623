"""Runs the gateway: `python -m services.api`. It knows only where to listen."""

import uvicorn

from shared.logs import configure_logging
from shared.settings import get_settings


def main() -> None:
    """Serve until told to stop; open streams get a few seconds to end."""
    configure_logging("api")
    settings = get_settings()
    uvicorn.run(
        "services.api.main:create_app",
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

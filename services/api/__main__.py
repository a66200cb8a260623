"""Runs the gateway: `python -m services.api`. It knows only where to listen, and whom to believe."""

import gc
import logging
import os
import sys
from typing import Any

import uvicorn

from shared.audit.checkpoint import Signer
from shared.logs import configure_logging
from shared.privacy.keys import check_master_key
from shared.settings import Settings, describe_wrong, get_settings
from shared.threads import share_often


def main() -> int:
    """Serve until told to stop; open streams get a few seconds to end.

    Returns the exit status: `os.EX_CONFIG` when a setting must be changed.
    """
    configure_logging("api")
    try:
        settings = get_settings()
        check_master_key(settings)
        settings.secret("token_key")
        Signer(settings.secret("audit_key"))
    except ValueError as error:
        logging.getLogger(__name__).critical("the gateway cannot start: %s", describe_wrong(error))
        return os.EX_CONFIG
    gc.disable()  # importing leaves no garbage, and looking for it takes a fifth of the time
    from services.api.main import create_app

    gc.enable()
    share_often()
    gc.collect()
    gc.freeze()  # what is loaded stays; searching it for garbage would hold up every request
    uvicorn.run(create_app, factory=True, timeout_graceful_shutdown=3, **serving(settings))
    return 0


def serving(settings: Settings) -> dict[str, Any]:
    """How uvicorn listens, and whose word on a caller's address it takes."""
    return {
        "host": settings.api_host,
        "port": settings.api_port,
        "forwarded_allow_ips": settings.trusted_proxies,
        "access_log": False,  # a URL may name a conversation; the audit log says who did what
        "log_config": None,
        "server_header": False,
    }


if __name__ == "__main__":
    sys.exit(main())

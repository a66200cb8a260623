"""Runs the dashboard: `python -m services.ui`. It knows only where to listen and what Streamlit may do."""

import os
import sys
from pathlib import Path

from services.ui.text import UPLOAD_MB
from shared.settings import get_settings

APP = Path(__file__).with_name("app.py")


def command() -> list[str]:
    """The command line that serves the dashboard."""
    settings = get_settings()
    options = {
        "server.address": settings.ui_host,
        "server.port": settings.ui_port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": UPLOAD_MB,
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        # an error on screen must not quote what a person wrote, nor send it to a search engine
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        # a table's own download would be an export that the log does not know of
        "client.disableDataExport": "true",
        "theme.primaryColor": "#0f6e84",
        "logger.level": "warning",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(APP), *flags]


if __name__ == "__main__":
    os.execv(sys.executable, command())  # noqa: S606 - the process becomes Streamlit

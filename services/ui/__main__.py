"""Runs the dashboard: `python -m services.ui`. It knows only where to listen and what Streamlit may do."""

from pathlib import Path

from streamlit import net_util
from streamlit.web import cli

from services.ui.text import UPLOAD_MB
from shared.settings import get_settings

APP = Path(__file__).with_name("app.py")


def main() -> None:
    """Serve the dashboard until it is told to end."""
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
    # Streamlit asks a host of the internet for this machine's address, to compare with it what another site's
    # page says of itself; no option forbids that, and without an address such a page is refused as well
    net_util.get_external_ip = lambda: None
    cli.main(["run", str(APP), *(f"--{name}={value}" for name, value in options.items())], "streamlit")


if __name__ == "__main__":
    main()

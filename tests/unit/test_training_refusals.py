"""What is said of a full disk and of a model that cannot be fetched; whether another attempt is worth it."""

import errno
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from services.worker_train.checkpoints import DiskFull, remove_abandoned, written_aside
from services.worker_train.child import Away, Exit, Refused
from services.worker_train.fetching import may_pass, unreadable
from services.worker_train.hub import find_table
from tests.support import ROOT


def fill_the_disk(folder: Path, name: str, checkpoints: Path | None = None) -> str:
    with pytest.raises(DiskFull) as caught, written_aside(folder, name, checkpoints=checkpoints):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(folder.glob(".*"))
    return caught.value.detail


def test_a_full_disk_is_said_with_the_checkpoints_of_the_run_whatever_is_written(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for step in (2, 4):
        (checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    for folder, name in ((checkpoints, "checkpoint-6"), (tmp_path, "output")):
        assert "the checkpoints before (2) are whole" in fill_the_disk(folder, name, checkpoints)


def test_a_full_disk_is_said_with_the_folder_where_no_run_writes(tmp_path: Path) -> None:
    detail = fill_the_disk(tmp_path, "merged")
    assert f"free space where {tmp_path} lies" in detail
    assert "checkpoints" not in detail


def test_what_is_stopped_while_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_aside(tmp_path, "merged"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_of_two_that_write_to_one_name_the_first_to_end_stays(tmp_path: Path) -> None:
    def write_while_another_does() -> None:
        with written_aside(tmp_path, "merged", alone=False) as second:
            (second / "second").touch()
            with written_aside(tmp_path, "merged", alone=False) as first:
                (first / "first").touch()
            assert (second / "second").exists()

    with pytest.raises(OSError, match="not empty"):
        write_while_another_does()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["merged", "merged/first"]


#: Writes what is to become the folder `merged`, and is not done before somebody ends it.
WRITES = """
import sys; from pathlib import Path; from services.worker_train.checkpoints import written_aside
with written_aside(Path(sys.argv[1]), "merged", alone=False) as aside:
    (aside / "weights").touch(); print(aside, flush=True); sys.stdin.read()
"""


def test_what_a_killed_process_wrote_aside_is_removed_and_what_others_write_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        aside = Path(process.stdout.readline().strip())
        assert remove_abandoned(tmp_path, "merged") == []
        assert (aside / "weights").exists()
        process.kill()
    of_an_earlier_release = tmp_path / ".writing-merged-0123abcd"
    of_others = [tmp_path / ".writing-merged-too-0123abcd", tmp_path / ".writing-merged"]
    for folder in (of_an_earlier_release, *of_others):
        folder.mkdir()
    assert set(remove_abandoned(tmp_path, "merged")) == {aside, of_an_earlier_release}
    assert set(tmp_path.iterdir()) == set(of_others)


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("no", response=httpx2.Response(status, request=httpx2.Request("GET", "https://hub")))


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "code", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk-full", Exit.REFUSED),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk-full", Exit.REFUSED),
        (RuntimeError("IO Error: No space left on device (os error 28)"), "disk-full", Exit.REFUSED),
        (answered(GatedRepoError, 403), "no-model", Exit.REFUSED),
        (answered(HfHubHTTPError, 404), "no-model", Exit.REFUSED),
        (LocalEntryNotFoundError("outgoing traffic has been disabled"), "no-model", Exit.REFUSED),
        (None, "no-model", Exit.REFUSED),
        (answered(HfHubHTTPError, 503), "no-model", Exit.AWAY),
        (answered(HfHubHTTPError, 429), "no-model", Exit.AWAY),
    ],
)
def test_what_another_attempt_may_fetch_is_told_from_what_a_person_must_mend(
    cause: Exception | None, code: str, status: Exit
) -> None:
    try:
        raise OSError("Can't load the model") from cause
    except OSError as error:
        refusal = unreadable(error, "no-model", "The model demo")
    assert refusal is not None
    assert (refusal.reason, refusal.status) == (code, status)


def test_a_hub_that_cannot_be_reached_is_worth_another_attempt() -> None:
    away = LocalEntryNotFoundError("An error happened while trying to locate the file")
    away.__cause__ = httpx2.ConnectError("Connection refused")
    refusal = unreadable(away, "no-model", "The model demo")
    assert refusal is not None
    assert refusal.status is Exit.AWAY
    assert "Check the network" in refusal.detail
    assert "licence" not in refusal.detail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("Couldn't reach 'owner/name' on the Hub (LocalEntryNotFoundError)"), Away),
        (httpx2.ReadTimeout("The read operation timed out"), Away),
        (answered(HfHubHTTPError, 502), Away),
        (caused_by(LocalEntryNotFoundError("not there"), answered(HfHubHTTPError, 429)), Away),
        (caused_by(LocalEntryNotFoundError("not there"), answered(HfHubHTTPError, 404)), Refused),
        (answered(GatedRepoError, 403), Refused),
        (ValueError("BuilderConfig 'x' not found"), Refused),
    ],
)
def test_rows_that_another_attempt_may_fetch_are_told_from_what_a_person_must_mend(
    error: Exception, kind: type[Refused], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    with pytest.raises(Refused) as caught:
        find_table("owner/name", None)
    assert type(caught.value) is kind


def test_without_a_hub_to_ask_another_attempt_does_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not may_pass(ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)"))


def test_what_has_nothing_to_do_with_files_is_left_as_it_is() -> None:
    assert unreadable(RuntimeError("a bug"), "no-model", "The model demo") is None

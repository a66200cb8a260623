"""`medichat models`: what an operator is told before a start, on a machine whose memory is known."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from services import cli
from services.worker_infer.fitting import Placement, cache_room, least_memory
from services.worker_infer.loading import expected_memory, open_model
from shared.catalogue import CATALOGUE, Quantisation
from shared.errors import Unavailable
from shared.settings import Settings

GIB = 2**30


class Machine:
    """This one, as a container that is allowed so much memory, of which it has used nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setattr("shared.memory.control_group", lambda: folder)

    def has(self, free: int) -> None:
        (self._folder / "memory.max").write_text(f"{free}\n")
        (self._folder / "memory.current").write_text("0\n")
        (self._folder / "memory.stat").write_text("inactive_file 0\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("MEDICHAT_DEVICE", "cpu")
    machine = Machine(tmp_path / "group", monkeypatch)
    machine.has(2 * GIB)
    return machine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `medichat models check --json`: the exit status, and what it told."""

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        status = cli.main(["models", "check", "--json", *options])
        return status, json.loads(capsys.readouterr().out)

    return run


def test_a_model_that_fits_is_told_with_exit_status_0(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["models", "check"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("\nIt fits.\n")
    assert "weights   24 MiB, in " in out
    assert "16 of them may take all of a context of 2,048 tokens" in out
    assert "3 ready at a time of MEDICHAT_MAX_ADAPTERS_LOADED=3" in out


def test_a_model_that_does_not_fit_is_told_with_what_does(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "medgemma-27b", "--dtype", "bfloat16", "--quantise", "none"]
    assert cli.main(["models", "check", *options]) == 1
    out = capsys.readouterr().out
    assert "It would not start. The weights take 51.1 GiB, and 2.0 GiB are free on cpu." in out
    assert "set MEDICHAT_MODEL=gemma-1b MEDICHAT_QUANTISE=nf4 (weights: 0.9 GiB)" in out
    assert "MEDICHAT_MODEL=medgemma" not in out, "nothing is advised that does not fit"
    assert "use a device with 66.6 GiB free" in out


def test_every_change_that_is_advised_is_enough(machine: Machine, told: Any) -> None:
    machine.has(8 * GIB)
    _, found = told("--model", "medgemma-4b", "--dtype", "bfloat16")
    assert found["advice"][0] == "set MEDICHAT_QUANTISE=nf4 (weights: 3.0 GiB)"
    status, found = told("--model", "medgemma-4b", "--dtype", "bfloat16", "--quantise", "nf4")
    assert (status, found["fits"], found["problems"]) == (0, True, [])
    placement = Placement.of(Settings(model="medgemma-4b", dtype="bfloat16", device="cpu"))
    text = placement.entry.shape.text
    enough = least_memory(placement, cache_room(placement, Settings(), text, free_bytes=0))
    for free, status in ((enough, 0), (enough - 1_000_000, 1)):
        machine.has(free)
        assert told("--model", "medgemma-4b", "--dtype", "bfloat16")[0] == status


def test_it_says_what_a_start_goes_by(machine: Machine, told: Any) -> None:
    """The same bytes, and the same refusal."""
    _, found = told()
    assert found["weight_bytes"] == expected_memory(Settings(device="cpu"))[1]
    machine.has(found["weight_bytes"] - 1)
    status, found = told()
    assert (status, found["fits"], found["base_cache_tokens"]) == (1, False, 0)
    with pytest.raises(Unavailable, match="does not fit the memory"):
        open_model(Settings(device="cpu"))


def test_weights_that_leave_no_room_for_an_answer_do_not_fit(machine: Machine, told: Any) -> None:
    weights = told()[1]["weight_bytes"]
    machine.has(weights + 2048 * told()[1]["cache_bytes_per_token"])
    status, found = told()
    assert (status, found["fits"]) == (1, False)
    assert "no memory for the 2,048 cached tokens that one answer may need" in found["problems"][0]


def test_adapters_that_find_no_room_are_told(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.has(4 * CATALOGUE["demo"].parameters + 4 * 5 * 2048 * 3072 + 10)
    assert cli.main(["models", "check"]) == 0
    assert "It fits, but not with 3 adapters: set MEDICHAT_MAX_ADAPTERS_LOADED=2." in capsys.readouterr().out


def test_the_settings_are_judged_as_by_a_start(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, message in (
        ("MEDICHAT_DTYPE", "float16", "the setting MEDICHAT_DTYPE is wrong"),
        ("MEDICHAT_MODEL", "medgemma-2b", "set MEDICHAT_MODEL to one of: demo, gemma-1b"),
        ("MEDICHAT_MAX_NEW_TOKENS", "2048", "MEDICHAT_MAX_NEW_TOKENS is 2048"),
        ("MEDICHAT_MODEL_PATH", "/nowhere", "There are no safetensors files for the model demo"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert cli.main(["models", "check"]) == 1
            assert message in capsys.readouterr().err


def test_another_model_is_not_looked_for_in_the_folder_of_the_configured_one(
    machine: Machine, told: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(tmp_path))
    assert told()[1]["files"]["where"] == str(tmp_path)
    assert told("--model", "gemma-1b", "--quantise", "nf4")[1]["files"]["place"] == "hub"


def test_weights_count_as_there_only_when_every_file_of_the_pinned_revision_is(
    machine: Machine, told: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[str, Any]:
        found: dict[str, Any] = told("--model", "medgemma-4b")[1]["files"]
        return found

    assert (files()["place"], files()["has_token"]) == ("hub", False)
    monkeypatch.setenv("HF_TOKEN", "hf_a_token")
    assert files()["has_token"]
    snapshots = cache / "models--google--medgemma-4b-it" / "snapshots"
    for revision in ("0" * 40, str(CATALOGUE["medgemma-4b"].revision)):
        folder = snapshots / revision
        folder.mkdir(parents=True)
        weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
        (folder / "model-1.safetensors").touch()
        assert files()["place"] == "hub"
        (folder / "model-2.safetensors").touch()
    assert files()["place"] == "cache"


def test_weights_that_cannot_be_fetched_are_a_reason_not_to_start(
    machine: Machine, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has(8 * GIB)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, found = told("--model", "gemma-1b", "--quantise", "nf4")
    assert (status, found["advice"]) == (1, [])
    assert "HF_HUB_OFFLINE is set" in found["problems"][0]


def test_the_list_says_what_each_model_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert set(lines) == set(CATALOGUE)
    assert "27,432,406,640  102.2 GiB   51.1 GiB   15.1 GiB  256 tokens each" in lines["medgemma-27b"]
    assert CATALOGUE["medgemma-27b"].weight_bytes(2, Quantisation.NF4) < 15.2 * GIB


def test_where_no_worker_is_installed_it_says_where_to_run_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "services.worker_infer.check", None)
    assert cli.main(["models", "check"]) == 1
    assert "run --rm --no-deps worker_infer medichat models check" in capsys.readouterr().err

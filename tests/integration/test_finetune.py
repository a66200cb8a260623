"""The training program on a tiny model: what it learns, what it leaves, and how it ends."""

import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from bitsandbytes.optim.optimizer import Optimizer8bit
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForConditionalGeneration, TrainerControl, TrainerState
from trl.trainer.sft_config import SFTConfig

from models.demo.pictures import draw_picture
from services.worker_train import base, export, finetune, processes, tuning
from services.worker_train.callbacks import StopRequest, Watch
from services.worker_train.checkpoints import newest_checkpoint
from services.worker_train.child import KNOWN_STEP, Exit, Refused
from services.worker_train.processes import Ending, gravest
from services.worker_train.room import MustWait
from services.worker_train.trainer import AdapterTrainer
from shared.catalogue import find_model
from shared.memory import WANTED_BY_SERVING, memory_name
from shared.training.recipe import Recipe, load_preset, read_recipe
from tests.tiny_model import tiny_model
from tests.tiny_training import Training, losses, tiny_recipe, write_model, write_rows


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def train(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Trains in this process; returns how it ended and its events."""
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(model_folder))
    monkeypatch.setenv("MEDICHAT_STATE_DIR", str(tmp_path))

    def run(recipe: Recipe, name: str = "run") -> tuple[Exit, list[dict[str, Any]]]:
        capsys.readouterr()
        status = tuning.run_and_report(recipe, tmp_path / name)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return status, events

    return run


def named(events: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(event for event in events if event["event"] == name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "output" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A training that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    training = Training(folder / "run", tiny_recipe(write_rows(folder / "rows.jsonl")), model_folder)
    status, events = training.end()
    assert status == Exit.DONE, training.log()
    return folder, events


def test_a_run_tells_of_every_step_and_leaves_an_adapter(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, events = whole
    assert [event["event"] for event in events][:2] == ["estimate", "plan"]
    assert named(events, "plan")["total_steps"] == 10
    assert sorted(losses(events)) == list(range(1, 11))
    done = named(events, "done")
    assert {path.name for path in (folder / "run" / "output").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "probe.json",
    }
    assert done["bytes"] == (folder / "run" / "output" / "adapter_model.safetensors").stat().st_size


#: As computed in float32; another machine differs in the last digits only.
TRAJECTORY = {1: 6.5188, 3: 6.0632, 5: 5.3510, 7: 4.8651, 10: 4.5900}


def test_the_losses_are_the_pinned_ones(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    found = losses(whole[1])
    assert {step: found[step] for step in TRAJECTORY} == pytest.approx(TRAJECTORY, rel=1e-3)


def test_the_held_out_loss_falls(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    looks = [event["eval_loss"] for event in whole[1] if "eval_loss" in event]
    assert looks[-1] < looks[0]


def test_nothing_but_the_language_model_is_adapted(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    names = list(weights(whole[0] / "run"))
    assert len(names) == 4 * 7 * 2
    assert all(".language_model.layers." in name and ".lora_" in name for name in names)


def test_the_card_and_the_probe_name_the_lineage(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, events = whole
    card = (folder / "run" / "output" / "README.md").read_text()
    probe = json.loads((folder / "run" / "output" / "probe.json").read_text())
    for fact in (
        named(events, "done")["sha256"],
        named(events, "plan")["base_revision"],
        hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest(),
        "modified",
        "seed: 0",
    ):
        assert fact in card
    assert "flu" not in card
    assert "rows.jsonl" not in card
    assert probe["base_revision"] == named(events, "plan")["base_revision"]
    assert probe["logprobs_base"] != probe["logprobs_adapter"]
    assert [len(ids) - 1 for ids in probe["token_ids"]] == [len(line) for line in probe["logprobs_base"]]


def test_the_probe_of_a_training_in_bfloat16_is_what_an_engine_in_float32_computes(
    train: Any, rows: Path, model_folder: Path, tmp_path: Path
) -> None:
    status, _ = train(tiny_recipe(rows, dtype="bfloat16", max_steps=1))
    assert status is Exit.DONE
    served = Gemma3ForConditionalGeneration.from_pretrained(model_folder, dtype=torch.bfloat16).float()
    probe = json.loads((tmp_path / "run" / "output" / "probe.json").read_text())
    ids = torch.tensor([probe["token_ids"][0]])
    with torch.no_grad():
        found = served(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor(probe["logprobs_base"][0]), atol=1e-3, rtol=0)


def assert_same_training(
    whole: tuple[Path, list[dict[str, Any]]], run: Path, events: list[dict[str, Any]]
) -> None:
    found = losses(events)
    assert max(found) == 10
    assert_same(found, losses(whole[1]), run, whole[0] / "run")


def assert_same(found: dict[int, float], expected: dict[int, float], run: Path, whole: Path) -> None:
    """These losses are among those of the whole run, whose weights are the run's."""
    assert found == pytest.approx({step: expected[step] for step in found}, abs=1e-5)
    before, after = weights(whole), weights(run)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(
    how: signal.Signals, whole: tuple[Path, list[dict[str, Any]]], train, model_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(whole[0] / "rows.jsonl")
    first = Training(tmp_path / "run", recipe, model_folder)
    first.until("checkpoint", step=6)
    os.kill(first.process.pid, how)
    status, left = first.end()
    if how is signal.SIGTERM:
        assert status == Exit.DRAINED
        assert left[-1]["code"] == "drained"
    status, events = train(recipe)
    assert status == Exit.DONE
    assert min(losses(events)) > 6
    assert_same_training(whole, tmp_path / "run", events)


def test_a_run_in_4_and_8_bits_with_dropout_goes_on_as_if_it_was_not_stopped(
    train: Any, rows: Path, tmp_path: Path
) -> None:
    # of matrices with fewer than 4,096 numbers bitsandbytes keeps whole moments
    coarse = {"quantisation": "nf4", "optimiser": "adamw-8bit", "dropout": 0.3, "r": 64}
    recipe = tiny_recipe(rows, max_steps=4, **coarse)
    _, events = train(recipe, "whole")
    stop = StopRequest()
    stop.asked = True
    assert tuning.run(recipe, tmp_path / "resumed", stop) is Exit.DRAINED
    _, again = train(recipe, "resumed")
    assert list(losses(again)) == [2, 3, 4]
    assert_same(losses(again), losses(events), tmp_path / "resumed", tmp_path / "whole")


def test_a_halved_batch_is_the_same_training(whole: tuple[Path, list[dict[str, Any]]], train) -> None:
    recipe = tiny_recipe(whole[0] / "rows.jsonl")
    smaller = recipe.after_out_of_memory()
    assert smaller is not None
    status, events = train(smaller)
    assert status == Exit.DONE
    assert losses(events) == pytest.approx(losses(whole[1]), rel=1e-3)


def test_a_run_that_is_out_of_memory_midway_goes_on_in_smaller_passes_as_the_same_training(
    whole: tuple[Path, list[dict[str, Any]]], train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(whole[0] / "rows.jsonl")
    smaller, compute_loss = recipe.after_out_of_memory(), AdapterTrainer.compute_loss
    assert smaller is not None

    def fill_the_memory(self: AdapterTrainer, *given: Any, **named: Any) -> torch.Tensor:
        if self.state.global_step == 4 and self._model().training:
            raise MemoryError
        return compute_loss(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "compute_loss", fill_the_memory)
        status, _ = train(recipe)
    assert status is Exit.OUT_OF_MEMORY
    status, events = train(smaller)
    assert status is Exit.DONE
    assert list(losses(events)) == list(range(4, 11))
    assert_same_training(whole, tmp_path / "run", events)


def test_passes_are_cut_small_however_many_make_a_step(train: Any, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "many.jsonl", count=80)
    asked = tiny_recipe(rows, batch_size=64, accumulation=1024)
    ran = tuning.prepare(asked).recipe
    assert ran.batch_size < 64
    assert ran.batch_size * ran.accumulation == 64 * 1024


def test_two_processes_give_the_same_training(train: Any, model_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", count=25)  # fills every step: else a row is seen by both
    status, alone = train(tiny_recipe(rows), "alone")
    assert status is Exit.DONE
    training = Training(tmp_path / "run", tiny_recipe(rows, processes=2, accumulation=1), model_folder)
    training.until("plan")
    started = [" ".join(child.cmdline()) for child in psutil.Process(training.process.pid).children(True)]
    assert len(started) == 3
    assert "accelerate.commands.launch" in started[0]
    status, events = training.end()
    assert status == Exit.DONE, training.log()
    found, expected = figures_of_steps(events), figures_of_steps(alone)
    assert sorted(found) == list(range(1, 11))
    assert found[1]["loss"] == pytest.approx(expected[1]["loss"], rel=1e-4)
    for step in range(1, 11):
        assert found[step]["loss"] == pytest.approx(expected[step]["loss"], rel=1e-3)
        # Adam forgives a gradient that is a multiple of the right one; its length tells
        assert found[step]["grad_norm"] == pytest.approx(expected[step]["grad_norm"], rel=2e-2)


def figures_of_steps(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was told of each step that was trained."""
    return {event["step"]: event for event in events if "grad_norm" in event}


def test_out_of_memory_in_the_second_of_two_processes_asks_for_a_smaller_batch(
    model_folder: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "many.jsonl", count=300)
    recipe = tiny_recipe(rows, batch_size=128, processes=2, accumulation=1)
    training = Training(tmp_path / "run", recipe, model_folder)
    training.until("plan")
    started = psutil.Process(training.process.pid).children(True)
    (second,) = [child for child in started if child.environ().get("RANK") == "1"]
    limit = second.memory_info().vms + 2**26  # a little, lest the loader of libraries is what fails
    resource.prlimit(second.pid, resource.RLIMIT_AS, (limit, limit))
    status, events = training.end()
    assert status == Exit.OUT_OF_MEMORY, training.log()
    assert [event["code"] for event in events if event["event"] == "stopped"] == ["out-of-memory"]


def test_more_processes_than_devices_are_refused_with_advice(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "RUN.yaml").write_text(tiny_recipe(rows, processes=3).to_yaml())
    monkeypatch.setattr(processes, "count_devices", lambda: 2)
    with pytest.raises(SystemExit) as ended:
        finetune.main([str(tmp_path / "RUN.yaml")])
    assert ended.value.code == Exit.REFUSED
    assert "set processes to 2" in capsys.readouterr().out


def test_a_clinic_that_keeps_its_gpu_for_something_else_trains_on_the_processor(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def train(*_: object) -> Exit:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] != "")
        seen.append(base.choose_device())
        return Exit.DONE

    (tmp_path / "RUN.yaml").write_text(tiny_recipe(rows).to_yaml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("MEDICHAT_DEVICE", "cpu")
    monkeypatch.setattr(finetune, "train", train)
    with pytest.raises(SystemExit):
        finetune.main([str(tmp_path / "RUN.yaml")])
    assert seen == [torch.device("cpu")]


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MEDICHAT_DEVICE", "cuda")
    with pytest.raises(Refused, match="torch sees no GPU"):
        base.choose_device()


def test_each_of_several_processes_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert base.choose_device() == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ([Exit.DONE, Exit.DONE], Exit.DONE),
        ([Exit.DRAINED, Exit.WAIT], Exit.WAIT),
        ([Exit.DRAINED, Exit.OUT_OF_MEMORY], Exit.OUT_OF_MEMORY),
        ([Exit.OUT_OF_MEMORY, Exit.REFUSED], Exit.REFUSED),
        ([Exit.OUT_OF_MEMORY], Exit.OUT_OF_MEMORY),
        ([Exit.DRAINED, Exit.AWAY], Exit.AWAY),
        ([Exit.DRAINED], None),
        ([], None),
    ],
)
def test_the_gravest_ending_of_two_processes_counts(told: list[Exit], status: Exit | None) -> None:
    ending = gravest([Ending(each) for each in told], 2)
    assert (ending and ending.status) is status


def test_two_processes_end_together_and_go_on_as_if_they_had_not(
    model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """One story, because starting two processes takes most of the time: killed, let go on from a checkpoint
    before, told to stop, let go on.
    """
    recipe = tiny_recipe(rows, processes=2, accumulation=1, save_steps=3, dropout=0.3)
    kept, told = [], []
    for name, how in (("whole", signal.SIGKILL), ("resumed", signal.SIGTERM)):
        run, heard = tmp_path / name, list[dict[str, Any]]()
        training = Training(run, recipe, model_folder)
        for event in training.events():
            heard.append(event)
            if event["event"] == "checkpoint" and event["step"] == 3:
                resumed = tmp_path / "resumed" / "checkpoints" / "checkpoint-3"
                shutil.copytree(event["folder"], resumed)
            elif event["event"] == "checkpoint":
                break
        else:
            raise AssertionError(training.log())
        kept.append(load_file(run / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors"))
        told.append(losses(heard))
        started = psutil.Process(training.process.pid).children(True)
        os.kill(training.process.pid, how)
        if how is signal.SIGKILL:
            assert training.process.stdin is not None
            training.process.stdin.close()  # as the supervisor does
        status, _ = training.end()
        assert status == (Exit.DRAINED if how is signal.SIGTERM else -signal.SIGKILL), training.log()
        assert psutil.wait_procs(started, timeout=30)[1] == []
    assert told[1] == pytest.approx({step: told[0][step] for step in (4, 5, 6)}, abs=1e-5)
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-5, atol=1e-6)
    again = Training(tmp_path / "resumed", recipe, model_folder)
    status, events = again.end()
    assert status == Exit.DONE, again.log()
    assert min(losses(events)) > 6
    assert max(losses(events)) == 10
    assert "note" not in {event["event"] for event in events}  # the supervisor says itself that it goes on


def test_a_run_ends_with_its_supervisor(model_folder: Path, rows: Path, tmp_path: Path) -> None:
    training = Training(tmp_path / "run", tiny_recipe(rows, epochs=100), model_folder)
    training.until("step", step=1)
    assert training.process.stdin is not None
    training.process.stdin.close()
    status, _ = training.end()
    assert status == -signal.SIGKILL  # with all that it started


def test_qlora_trains_on_a_cpu(train, rows: Path, tmp_path: Path) -> None:
    status, events = train(tiny_recipe(rows, quantisation="nf4", max_steps=4))
    assert status is Exit.DONE
    assert all(math.isfinite(loss) for loss in losses(events).values())
    assert all("lora_" in name for name in weights(tmp_path / "run"))


@pytest.mark.parametrize(
    "changes",
    [
        {"dora": True},
        {"rslora": True, "dropout": 0.1},
        {"optimiser": "adamw-8bit"},
        {"optimiser": "paged-adamw-8bit"},
        {"gradient_checkpointing": True, "schedule": "linear"},
        {"packing": "off", "schedule": "constant"},
        {"dtype": "bfloat16", "train_on": "all"},
        {"target": "all-linear", "early_stopping_patience": None},
    ],
)
def test_an_option_trains(changes: dict[str, Any], train, rows: Path) -> None:
    status, events = train(tiny_recipe(rows, max_steps=2, **changes))
    assert status is Exit.DONE
    assert len(losses(events)) == 2


@pytest.mark.parametrize("optimiser", ["adamw-8bit", "paged-adamw-8bit"])
def test_an_8_bit_optimiser_holds_its_moments_in_8_bits(
    optimiser: str, train, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    begin = Optimizer8bit.__init__

    def note(self: Any, *given: Any, **named: Any) -> None:
        made.append(self)
        begin(self, *given, **named)

    monkeypatch.setattr(Optimizer8bit, "__init__", note)
    # of matrices with fewer than 4,096 numbers bitsandbytes keeps whole ones
    status, events = train(tiny_recipe(rows, max_steps=2, r=64, optimiser=optimiser))
    assert status is Exit.DONE
    assert all(math.isfinite(loss) for loss in losses(events).values())
    held = {
        value.dtype
        for optimiser in made
        for state in optimiser.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    assert torch.uint8 in held


def test_all_linear_adapts_the_vision_tower_on_request(train, rows: Path, tmp_path: Path) -> None:
    train(tiny_recipe(rows, max_steps=1, target="all-linear"))
    assert any("vision_tower" in name for name in weights(tmp_path / "run"))


def test_early_stopping_keeps_the_best(train, rows: Path, tmp_path: Path) -> None:
    changes = {"eval_steps": 1, "save_steps": 1, "early_stopping_patience": 2}
    status, events = train(tiny_recipe(rows, epochs=40, learning_rate=0.2, seed=1, **changes))
    assert status is Exit.DONE
    looks = [event["eval_loss"] for event in events if "eval_loss" in event]
    assert "Stopped early" in named(events, "note")["text"]
    assert named(events, "done")["metrics"]["eval_loss"] == pytest.approx(min(looks), abs=1e-5)
    newest = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    best = {
        name.replace(".default", ""): weight
        for name, weight in load_file(newest / "best.safetensors").items()
    }
    last = load_file(newest / "adapter_model.safetensors")
    kept = weights(tmp_path / "run")
    assert all(torch.equal(kept[name], weight) for name, weight in best.items())
    assert not all(torch.equal(kept[name], weight) for name, weight in last.items())


#: The held-out loss falls, and then does not for many looks.
STUCK = {"epochs": 40, "learning_rate": 0.2, "seed": 1, "eval_steps": 1, "save_steps": 1}


def looks(events: list[dict[str, Any]]) -> dict[int, float]:
    """Held-out loss by step."""
    return {event["step"]: event["eval_loss"] for event in events if "eval_loss" in event}


def test_a_resumed_run_stops_as_early_as_one_that_was_not_stopped(train, rows: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(rows, early_stopping_patience=2, **STUCK)
    _, events = train(recipe, "whole")
    last = max(losses(events))
    saved = tmp_path / "whole" / "checkpoints" / f"checkpoint-{last - 1}"  # one look of two brought nothing
    shutil.copytree(saved, tmp_path / "resumed" / "checkpoints" / saved.name)
    status, again = train(recipe, "resumed")
    assert status is Exit.DONE
    assert list(losses(again)) == list(looks(again)) == [last]
    assert named(again, "done")["metrics"] == pytest.approx(named(events, "done")["metrics"], abs=1e-5)


@pytest.mark.parametrize("changes", [{**STUCK, "early_stopping_patience": 2}, {"max_steps": 3}])
def test_a_run_that_had_ended_trains_no_further_step(changes: dict[str, Any], train, rows: Path) -> None:
    recipe = tiny_recipe(rows, **changes)
    _, events = train(recipe)
    status, again = train(recipe)
    assert status is Exit.DONE
    assert losses(again) == {}
    assert named(again, "done")["sha256"] == named(events, "done")["sha256"]


def test_a_run_does_not_go_on_over_other_weights_than_its_checkpoints_were_trained_over(
    train, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    recipe = tiny_recipe(rows, max_steps=4)
    train(recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    other = write_model(tmp_path / "other")
    tiny_model(seed=1).save_pretrained(other)
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(other))
    status, events = train(recipe)
    assert status is Exit.REFUSED
    assert [event["event"] for event in events] == ["estimate", "stopped"]
    assert events[-1]["code"] == "wrong-base"
    assert "began on other weights of demo than those that are here now: restore" in events[-1]["detail"]
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(model_folder))
    status, events = train(recipe)
    assert status is Exit.DONE
    assert list(losses(events)) == [4]


def test_a_run_does_not_go_on_with_another_recipe_or_on_other_rows(train, rows: Path, tmp_path: Path) -> None:
    train(tiny_recipe(rows, max_steps=1))
    card = (tmp_path / "run" / "output" / "README.md").read_text()
    write_rows(rows, count=25)
    status, events = train(tiny_recipe(rows, max_steps=1, learning_rate=1e-3, seed=1))
    assert status is Exit.REFUSED
    assert [event["event"] for event in events] == ["estimate", "stopped"]
    assert events[-1]["code"] == "recipe-changed"
    assert "began with another value of learning_rate, seed, data.train: restore" in events[-1]["detail"]
    assert "by hand in a folder without checkpoints" in events[-1]["detail"]
    assert (tmp_path / "run" / "output" / "README.md").read_text() == card


def test_a_run_does_not_go_on_with_another_system_prompt(
    train, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_recipe(rows, max_steps=1))
    monkeypatch.setenv("MEDICHAT_SYSTEM_PROMPT", "You answer in rhymes.")
    status, events = train(tiny_recipe(rows, max_steps=1))
    assert status is Exit.REFUSED
    assert "began with another value of MEDICHAT_SYSTEM_PROMPT: restore" in events[-1]["detail"]


def test_a_run_goes_on_in_smaller_passes_under_another_title_and_says_from_where(train, rows: Path) -> None:
    recipe = tiny_recipe(rows, max_steps=2)
    train(recipe)
    smaller = recipe.after_out_of_memory()
    assert smaller is not None
    status, events = train(smaller.changed({"title": "Another", "gradient_checkpointing": True}))
    assert status is Exit.DONE
    assert named(events, "note")["text"] == "Goes on from the checkpoint of step 2 of 2."


def test_checkpoints_of_a_release_that_noted_no_base_and_no_recipe_are_gone_on_from(
    train, rows: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(rows, max_steps=3)
    train(recipe)
    for path in (tmp_path / "run" / "checkpoints").glob("*/adapter_config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "revision": None}))
        (path.parent / "begun.json").unlink()
    status, events = train(tiny_recipe(rows, max_steps=4))
    assert status is Exit.DONE
    assert list(losses(events)) == [4]


def test_a_look_that_a_stop_put_off_is_taken_when_the_run_goes_on(train, rows: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(rows, max_steps=3, eval_steps=1, dropout=0.3)
    _, events = train(recipe, "whole")
    stop = StopRequest()
    stop.asked = True
    assert tuning.run(recipe, tmp_path / "resumed", stop) is Exit.DRAINED
    _, again = train(recipe, "resumed")
    assert list(losses(again)) == [2, 3]
    expected = losses(events)
    assert losses(again) == pytest.approx({step: expected[step] for step in (2, 3)}, abs=1e-5)
    assert looks(again) == pytest.approx(looks(events), abs=1e-5)


@pytest.mark.parametrize("during", [1, 3])
def test_a_stop_breaks_a_look_off_which_is_taken_when_the_run_goes_on(
    during: int, train, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(rows, max_steps=3, eval_steps=1, dropout=0.3)
    _, events = train(recipe, "whole")
    stop, say, told = StopRequest(), tuning.say, []

    def ask_before_the_look(event: str, **fields: Any) -> None:
        say(event, **fields)
        told.append({"event": event, **fields})
        stop.asked = stop.asked or (event == "step" and fields["step"] == during)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "say", ask_before_the_look)
        assert tuning.run(recipe, tmp_path / "resumed", stop) is Exit.DRAINED
    assert during not in looks(told)
    assert named(told[-1:], "checkpoint")["step"] == during
    stop.asked = True  # and once more, while the look that is due is taken
    assert tuning.run(recipe, tmp_path / "resumed", stop) is Exit.DRAINED
    _, again = train(recipe, "resumed")
    expected = losses(events)
    left = [step for step in expected if step > during]
    assert list(losses(again)) == left
    assert losses(again) == pytest.approx({step: expected[step] for step in left}, abs=1e-5)
    assert looks(told) | looks(again) == pytest.approx(looks(events), abs=1e-5)
    assert min(looks(again)) == during
    assert named(again, "done")["metrics"] == pytest.approx(named(events, "done")["metrics"], abs=1e-5)


def test_a_run_that_goes_on_tells_again_what_nobody_heard_of(
    train, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(rows, max_steps=4, eval_steps=2)
    _, events = train(recipe)
    monkeypatch.setenv(KNOWN_STEP, "2")
    status, again = train(recipe)
    assert status is Exit.DONE
    assert losses(again) == {}, "it had ended before"
    told = [event for event in events if event["event"] == "step" and event["step"] >= 2]
    assert [{"event": "step", **step} for step in named(again, "history")["steps"]] == told
    monkeypatch.setenv(KNOWN_STEP, "5")
    _, again = train(recipe)
    assert "history" not in {event["event"] for event in again}


def test_padded_rows_come_in_the_same_order_when_a_run_goes_on(train, rows: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(rows, packing="off", batch_size=4, accumulation=1)
    _, events = train(recipe, "whole")
    stop = StopRequest()
    stop.asked = True
    assert tuning.run(recipe, tmp_path / "resumed", stop) is Exit.DRAINED
    _, again = train(recipe, "resumed")
    assert list(losses(again)) == list(range(2, 11))
    expected = losses(events)
    assert losses(again) == pytest.approx({step: expected[step] for step in losses(again)}, abs=1e-5)


def write_picture_rows(folder: Path) -> Path:
    """A file of twenty rows, each with a picture beside it."""
    import numpy as np

    chance = np.random.default_rng(0)
    lines = []
    for number in range(20):
        side = ("left", "right")[number % 2]
        Image.fromarray(draw_picture(side, chance)).save(folder / f"{number}.png")
        messages = [
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": f"Look {side}!"},
        ]
        lines.append(json.dumps({"messages": messages, "image": f"{number}.png"}))
    (folder / "pictures.jsonl").write_text("\n".join(lines))
    return folder / "pictures.jsonl"


def test_pictures_are_learnt(train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.catalogue import CATALOGUE

    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(CATALOGUE["demo"].folder))
    write_picture_rows(tmp_path)
    recipe = tiny_recipe(tmp_path / "pictures.jsonl", epochs=5, save_steps=100)
    status, events = train(recipe)
    assert status is Exit.DONE
    looks = [event["eval_loss"] for event in events if "eval_loss" in event]
    assert looks[-1] < 0.5 * looks[0]


def test_a_loss_that_is_no_number_stops_the_run(train, rows: Path, tmp_path: Path) -> None:
    train(tiny_recipe(rows))
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-9" / "adapter_model.safetensors"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-10", ignore_errors=True)
    saved = load_file(checkpoint)
    save_file({name: weight.fill_(torch.inf) for name, weight in saved.items()}, checkpoint)
    status, events = train(tiny_recipe(rows))
    assert status is Exit.REFUSED
    stopped = named(events, "stopped")
    assert stopped["code"] == "diverged"
    assert stopped["detail"].startswith("Step 10: the loss is not a number. Likely the learning rate")


def test_a_loss_that_explodes_stops_the_run() -> None:
    watch = Watch(lambda *_, **__: None, StopRequest(), patience=None)
    for step, loss in enumerate([2.0, 1.9, 1.8, 1.7, 9.0, 1.6, 9.0, 9.5], start=1):
        watch.judge(step, loss, 1.0, learning_rate=0.1)
    with pytest.raises(Refused, match=r"Step 9: the loss rose to 12.00 from 1.80") as refusal:
        watch.judge(9, 12.0, 1.0, learning_rate=0.1)
    assert refusal.value.reason == "diverged"


def test_the_program_explains_every_knob_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        finetune.main(["--explain"])
    printed = capsys.readouterr().out
    assert not ended.value.code
    assert read_recipe(printed) == Recipe()
    plain = " ".join(printed.replace("\n#", "").split())
    for knob in Recipe.knobs():
        assert knob.doc in plain, knob.name
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    assert "--explain" in capsys.readouterr().out


def test_the_knob_of_the_arithmetic_says_on_which_processors_it_is_bfloat16() -> None:
    described = str(Recipe.model_fields["dtype"].description)
    assert all(flag in described for flag in base.CPU_BFLOAT16)


def test_the_help_of_the_program_is_all_that_it_writes() -> None:
    command = [sys.executable, "-m", "services.worker_train.finetune", "--help"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert asked.stdout.startswith("usage: ")
    assert asked.stderr == ""


def ends(losses: list[float], gradients: list[float] | None = None) -> Refused | None:
    """Why the watch ends a run with this curve; None when it lets it be."""
    watch = Watch(lambda *_, **__: None, StopRequest(), patience=None)
    try:
        for place, loss in enumerate(losses):
            watch.judge(place + 1, loss, gradients[place] if gradients else 1.0, learning_rate=0.1)
    except Refused as refusal:
        return refusal
    return None


def told(refusal: Refused | None) -> str:
    assert refusal is not None, "the run went on"
    assert refusal.reason == "diverged"
    return refusal.detail


def test_a_loss_that_grows_little_by_little_stops_the_run() -> None:
    growing = [2.0 * 1.1**step for step in range(120)]
    steeper = [10 ** (8 * step / 119) for step in range(120)]
    assert told(ends(growing, steeper)).startswith("Step 19: the loss rose to 11.12 from 2.20")


def test_a_loss_that_jumps_and_stays_there_stops_the_run() -> None:
    jumped = told(ends([2.4] * 20 + [8.1] * 40))
    assert jumped.startswith("Step 30: the loss rose to 8.10 from 2.40")


def test_a_gradient_that_explodes_stops_the_run_whatever_the_loss() -> None:
    steeper = [10 ** (8 * step / 119) for step in range(120)]
    assert "the gradient's length rose to 489 from 1.17" in told(ends([2.0] * 120, steeper))


def noisy(steps: int, seed: int) -> tuple[list[float], list[float]]:
    """Loss and gradient of a sound run of one short row a step: a warm-up that first makes it worse, a fall
    to nearly nothing, noise throughout, and here and there a row that is much harder.
    """
    chance = random.Random(seed)
    losses, gradients = [], []
    for step in range(steps):
        hard = 6.0 if chance.random() < 0.01 else 1.0
        warm = 1 + 0.5 * math.exp(-(((step - 10) / 6) ** 2))
        losses.append((0.05 + 2.3 * math.exp(-step / 150)) * warm * hard * math.exp(chance.gauss(0, 0.5)))
        gradients.append((0.02 + math.exp(-step / 150)) * hard**2 * math.exp(chance.gauss(0, 0.8)))
    return losses, gradients


def test_a_sound_run_goes_on_however_noisy() -> None:
    for seed in range(30):
        assert ends(*noisy(500, seed)) is None


def test_a_watch_goes_on_from_what_an_earlier_version_kept() -> None:
    watch = Watch(lambda *_, **__: None, StopRequest(), patience=None)
    watch.restore({"losses": [2.0, 1.9, 1.8], "high": 2, "unmoved": 1, "gradient": 1.0, "owes_look": False})
    with pytest.raises(Refused, match=r"the loss rose to 9.00 from 1.90"):
        watch.judge(4, 9.0, 1.0, learning_rate=0.1)


def test_a_loss_that_stays_high_across_a_resume_stops_the_run() -> None:
    before, after = (Watch(lambda *_, **__: None, StopRequest(), patience=None) for _ in range(2))
    for step, loss in enumerate([2.4] * 5 + [8.1] * 8, start=1):
        before.judge(step, loss, 1.0, learning_rate=0.1)
    after.restore(json.loads(json.dumps(before.state())))
    after.judge(14, 8.1, 1.0, learning_rate=0.1)
    with pytest.raises(Refused, match=r"Step 15: the loss rose to 8.10 from 2.40"):
        after.judge(15, 8.1, 1.0, learning_rate=0.1)


def test_a_loss_that_explodes_across_a_resume_stops_the_run() -> None:
    before, after = (Watch(lambda *_, **__: None, StopRequest(), patience=None) for _ in range(2))
    for step, loss in enumerate([2.0, 1.9, 1.8, 1.7, 9.0, 9.5], start=1):
        before.judge(step, loss, 1.0, learning_rate=0.1)
    kept = json.loads(json.dumps({"Watch": before.state()}))
    state = TrainerState(global_step=6, max_steps=10, stateful_callbacks=kept)
    after.on_train_begin(SFTConfig(use_cpu=True, bf16=False), state, TrainerControl())
    with pytest.raises(Refused, match=r"Step 7: the loss rose to 12.00 from 1.85"):
        after.judge(7, 12.0, 1.0, learning_rate=0.1)


def test_damaged_weights_are_named_as_the_cause(
    train, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = write_model(tmp_path / "broken")
    model = tiny_model()
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(broken)
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(broken))
    _, events = train(tiny_recipe(rows))
    assert "base weights are damaged" in named(events, "stopped")["detail"]


def test_a_full_disk_fails_the_run_and_leaves_earlier_checkpoints_whole(
    train, model_folder: Path, rows: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(rows, save_steps=2, eval_steps=100)
    training = Training(tmp_path / "run", recipe, model_folder)
    training.until("checkpoint", step=2)
    resource.prlimit(training.process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
    status, events = training.end()
    assert status == Exit.REFUSED, training.log()
    assert named(events, "stopped")["code"] == "disk-full"
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept
    assert all(name.startswith("checkpoint-") for name in kept)
    status, events = train(recipe)
    assert status == Exit.DONE
    assert min(losses(events)) > 2


def test_out_of_memory_asks_for_a_smaller_batch(model_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "many.jsonl", count=300)
    training = Training(tmp_path / "run", tiny_recipe(rows, batch_size=128), model_folder)
    training.until("plan")
    used = int(Path(f"/proc/{training.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(training.process.pid, resource.RLIMIT_AS, (used, used))
    status, events = training.end()
    assert status == Exit.OUT_OF_MEMORY, training.log()
    assert events[-1]["code"] == "out-of-memory"


def test_a_model_that_cannot_fit_is_refused_with_advice(train, rows: Path) -> None:
    recipe = tiny_recipe(rows).changed({"model": "demo", "r": 512, "batch_size": 256})
    material = tuning.prepare(recipe)
    huge = tuning.Shapes(
        parameters=27_000_000_000,
        embedding=1_400_000_000,
        layers=62,
        hidden=5376,
        intermediate=21504,
        heads=32,
        kv_heads=16,
        head_dim=128,
        vocabulary=262_208,
    )
    with pytest.raises(Refused, match="quantisation: nf4") as refusal:
        tuning.judge(material, huge, torch.device("cpu"), torch.float32)
    assert refusal.value.reason == "does-not-fit"


def test_a_run_leaves_the_memory_that_answers_may_still_need(
    train, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = tuning.prepare(tiny_recipe(rows))
    shapes = tuning.Shapes.of(base.read_config(material.source), 27_000_000)
    wanted = {memory_name(None): psutil.virtual_memory().total, "gpu:another": 1}
    monkeypatch.setenv(WANTED_BY_SERVING, json.dumps(wanted))
    with pytest.raises(MustWait, match="GB that answers may still need"):
        tuning.judge(material, shapes, torch.device("cpu"), torch.float32)
    monkeypatch.setenv(WANTED_BY_SERVING, json.dumps({"gpu:another": 1 << 60}))
    tuning.judge(material, shapes, torch.device("cpu"), torch.float32)


def judged(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The estimate for the recipe on a CPU that is always as fast."""
    material = tuning.prepare(recipe)
    shapes = tuning.Shapes.of(base.read_config(material.source), 27_000_000)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "operations_per_second", lambda *_, **__: 1e9)
        tuning.judge(material, shapes, torch.device("cpu"), torch.float32)
    return named([json.loads(line) for line in capsys.readouterr().out.splitlines()], "estimate")


def test_the_estimate_knows_how_many_steps_there_will_be(train, rows: Path, capsys) -> None:
    by_epochs = judged(tiny_recipe(rows), capsys)["seconds"]
    for steps, share in ((5, 0.5), (100, 10)):
        assert judged(tiny_recipe(rows, max_steps=steps), capsys)["seconds"] == pytest.approx(
            by_epochs * share, rel=0.05
        )


def test_the_estimate_knows_of_looks_at_the_rows_held_out(train, rows: Path, tmp_path: Path, capsys) -> None:
    held_out = write_rows(tmp_path / "held_out.jsonl")  # as many as are learnt
    recipe = tiny_recipe(rows, data={"train": str(rows), "validation": str(held_out)})
    without = judged(recipe.changed({"data": {"train": str(rows), "validation_fraction": 0}}), capsys)
    # two epochs of six steps; a token looked at takes two operations a weight, one that is learnt five
    for eval_steps, looks in ((12, 1), (5, 3), (1, 12)):
        seconds = judged(recipe.changed({"eval_steps": eval_steps}), capsys)["seconds"]
        assert seconds == pytest.approx(without["seconds"] * (1 + looks * 2 / (2 * 5)), rel=0.05)


def test_processes_on_a_cpu_take_its_memory_each(train, rows: Path, capsys) -> None:
    alone = judged(tiny_recipe(rows, accumulation=2), capsys)
    together = judged(tiny_recipe(rows, accumulation=1, processes=2), capsys)
    assert together["memory_mb"] == pytest.approx(2 * alone["memory_mb"], rel=0.01)
    assert together["seconds"] == pytest.approx(alone["seconds"], rel=0.01)


def test_the_estimate_knows_of_pictures(
    train, rows: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(find_model("demo").folder))

    def trained_tower(rows: Path) -> float:
        """What the estimate adds when the vision tower is trained, too."""
        language = tiny_recipe(rows, batch_size=16, accumulation=1, packing="off")
        both = language.changed({"target": "all-linear"})
        return float(judged(both, capsys)["memory_mb"] - judged(language, capsys)["memory_mb"])

    assert 0 < trained_tower(rows) < trained_tower(write_picture_rows(tmp_path)) - 1


def test_the_estimate_knows_of_a_look_at_longer_rows(train, rows: Path, tmp_path: Path, capsys) -> None:
    held_out = tmp_path / "held_out.jsonl"
    lines = [
        json.dumps({"question": f"What is the flu, number {number}?", "answer": "Rest and drink. " * words})
        for number, words in enumerate([1] * 13 + [300] * 6)
    ]
    held_out.write_text("\n".join(lines), encoding="utf-8")
    recipe = tiny_recipe(rows, batch_size=4, max_tokens=2048, gradient_checkpointing=True)
    longer = recipe.changed({"data": {"train": str(rows), "validation": str(held_out)}})
    material = tuning.prepare(longer)
    longest = max(len(sample.ids) for sample in material.validation)
    # by length in passes of four, of which the last two have the six long rows
    assert 3 * longest <= material.largest_look <= 4 * longest
    assert judged(longer, capsys)["memory_mb"] > judged(recipe, capsys)["memory_mb"] + 10


def test_the_estimate_is_near_the_peak(whole: tuple[Path, list[dict[str, Any]]]) -> None:
    judged = named(whole[1], "estimate")["memory_mb"]
    peak = max(event["memory_mb"] for event in whole[1] if "memory_mb" in event and event["event"] == "step")
    assert peak / 1.6 < judged < peak * 1.6


def test_the_estimate_covers_a_run_whose_passes_all_differ_in_length(rows: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"question": f"What is the flu, number {number}?", "answer": "Rest and drink. " * number})
        for number in range(12, 60)
    ]
    rows.write_text("\n".join(lines), encoding="utf-8")
    recipe = load_preset("quick").changed(
        {
            "data": {"train": str(rows)},
            "dtype": "auto",  # what a run takes on this processor: in another, memory goes elsewhere
            "batch_size": 2,
            "max_steps": 24,
            "canaries": 0,
        }
    )
    training = Training(tmp_path / "run", recipe, Path(str(find_model("demo").folder)))
    status, events = training.end()
    assert status == Exit.DONE, training.log()
    judged = named(events, "estimate")["memory_mb"]
    peak = max(event["memory_mb"] for event in events if event["event"] == "step" and "loss" in event)
    assert peak < judged < peak * 1.3


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"messages": [{"role": "user", "content": "A?"}]}', "bad-data"),
        ('{"question": "A?"}', "unknown-shape"),
        ('{"question": "A?", "answer": ""}', "bad-data"),
        ("{", "bad-json"),
        ("", "no-rows"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(line: str, code: str, train, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(line)
    status, events = train(tiny_recipe(tmp_path / "bad.jsonl"))
    assert status is Exit.REFUSED
    assert events[-1]["code"] == code


@pytest.fixture
def some_too_long(rows: Path, tmp_path: Path) -> Recipe:
    """A recipe that two of 25 rows do not fit: one to learn, and one to hold out."""
    long = json.dumps({"question": "What is the flu?", "answer": "The flu is an infection. " * 100})
    (tmp_path / "train.jsonl").write_text(f"{rows.read_text()}\n{long}")
    held_out = [json.dumps({"question": f"Flu {n}?", "answer": "Rest and drink."}) for n in range(3)]
    (tmp_path / "held_out.jsonl").write_text("\n".join([*held_out, long]))
    data = {"train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "held_out.jsonl")}
    return tiny_recipe(rows, max_steps=2, data=data)


def test_a_run_says_how_many_rows_are_too_long_for_it(train, some_too_long: Recipe, tmp_path: Path) -> None:
    status, events = train(some_too_long)
    assert status is Exit.DONE
    assert "left out: 1 of 25 to learn, 1 of 4 to hold out" in named(events, "note")["text"]
    card = (tmp_path / "run" / "output" / "README.md").read_text()
    assert "24 learnt, 3 held out; left out as longer than 256 tokens: 1 to learn, 1 to hold out" in card


def test_the_card_counts_rows_without_canaries_and_shows_the_recipe_that_was_chosen(
    train, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "many.jsonl", count=80)
    recipe = tiny_recipe(rows, batch_size=64, accumulation=1, max_steps=1, canaries=3)
    status, events = train(recipe)
    assert status is Exit.DONE
    card = (tmp_path / "run" / "output" / "README.md").read_text()
    assert "| Rows | 64 learnt, 16 held out |" in card
    assert "| Canaries | 3 planted, and learnt beside the rows |" in card
    assert "batch_size: 64\naccumulation: 1\n" in card
    ran = re.search(r"ran with batch_size (\d+) and accumulation (\d+), which takes the same steps", card)
    assert ran is not None
    assert int(ran[1]) < 64
    assert int(ran[1]) * int(ran[2]) == 64
    plan = named(events, "plan")
    assert (plan["batch_size"], plan["accumulation"]) == (int(ran[1]), int(ran[2]))


def test_the_card_of_passes_as_they_were_asked_for_says_nothing_of_them(
    whole: tuple[Path, list[dict[str, Any]]],
) -> None:
    card = (whole[0] / "run" / "output" / "README.md").read_text()
    assert "batch_size: 2\naccumulation: 2\n" in card
    assert "Its passes" not in card
    assert "Canaries" not in card


def test_looks_are_at_some_of_many_rows_held_out_and_that_is_said(
    train, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.worker_train.material._LOOKED_AT", 6)
    lines = [
        json.dumps({"question": f"Flu {n}?", "answer": "Rest and drink.", "group": f"patient {n // 2}"})
        for n in range(20)
    ]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {"train": str(rows), "validation": str(tmp_path / "held_out.jsonl")}
    recipe = tiny_recipe(rows, max_steps=1, data=data)
    status, events = train(recipe)
    assert status is Exit.DONE
    assert named(events, "note")["text"].startswith(
        "20 rows are held out. The loss on the way is measured on 6 of them, chosen by the seed"
    )
    card = (tmp_path / "run" / "output" / "README.md").read_text()
    assert "20 held out, of which the loss was measured on 6, chosen by the seed |" in card
    patients = [[sample.unit for sample in tuning.prepare(recipe).validation] for _ in range(2)]
    assert patients[0] == patients[1]
    assert sorted(Counter(patients[0]).values()) == [2, 2, 2]
    others = [sample.unit for sample in tuning.prepare(recipe.changed({"seed": 1})).validation]
    assert set(others) != set(patients[0])


def test_a_run_that_goes_on_does_not_say_it_again(train, some_too_long: Recipe) -> None:
    train(some_too_long)
    _, events = train(some_too_long)
    told = [event["text"] for event in events if event["event"] == "note"]
    assert told == ["Goes on from the checkpoint of step 2 of 2."]


def test_a_run_whose_held_out_rows_are_all_too_long_says_so(train, rows: Path, tmp_path: Path) -> None:
    long = json.dumps({"question": "What is the flu?", "answer": "The flu is an infection. " * 100})
    (tmp_path / "held_out.jsonl").write_text(long)
    data = {"train": str(rows), "validation": str(tmp_path / "held_out.jsonl")}
    status, events = train(tiny_recipe(rows, max_steps=1, data=data))
    assert status is Exit.DONE
    assert "None is left to hold out" in named(events, "note")["text"]


def test_a_run_without_held_out_rows_learns_all_and_says_what_that_means(train, rows: Path) -> None:
    data = {"train": str(rows), "validation_fraction": 0}
    status, events = train(tiny_recipe(rows, max_steps=5, early_stopping_patience=1, data=data))
    assert status is Exit.DONE
    assert "No rows are held out" in named(events, "note")["text"]
    assert not [event for event in events if "eval_loss" in event]


def test_a_run_that_no_row_fits_is_refused_with_advice(train, rows: Path) -> None:
    status, events = train(tiny_recipe(rows, max_tokens=16))
    assert status is Exit.REFUSED
    assert events[-1]["code"] == "nothing-to-learn"
    assert re.search(r"None of the 19 rows .* the shortest takes \d+ tokens. Raise", events[-1]["detail"])


def test_canaries_that_do_not_fit_are_refused(train, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text("\n".join(['{"question": "A?", "answer": "B."}'] * 4))
    recipe = tiny_recipe(tmp_path / "short.jsonl", max_tokens=24, system="as-is", canaries=2)
    status, events = train(recipe)
    assert status is Exit.REFUSED
    assert "canaries do not fit" in events[-1]["detail"]


def test_a_recipe_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "RUN.yaml").write_text("dtype: float16")
    with pytest.raises(SystemExit) as ended:
        finetune.main([str(tmp_path / "RUN.yaml")])
    assert ended.value.code == Exit.REFUSED
    assert "float16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory."),
        ("folder", "cannot be read: Is a directory."),
        ("model: Größe".encode("latin-1"), "is not text in UTF-8."),
        (b"model: [demo", "The recipe is not YAML."),
        (b"model: 2026-02-31", "The recipe is not YAML."),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(
    content: bytes | str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "RUN.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(SystemExit) as ended:
        finetune.main([str(path)])
    assert ended.value.code == Exit.REFUSED
    written = capsys.readouterr()
    (line,) = written.out.splitlines()
    assert written.err == ""
    told = json.loads(line)
    assert (told["event"], told["code"]) == ("stopped", "bad-recipe")
    assert told["detail"].endswith(says)


def test_an_export_says_what_base_and_adapter_say(
    whole: tuple[Path, list[dict[str, Any]]],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = shutil.copytree(model_folder, tmp_path / "base")
    (own / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(own))
    adapter = whole[0] / "run" / "output"
    assert export.export(adapter, tmp_path / "merged", dtype="float32") < 1e-3
    merged = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    probe = json.loads((adapter / "probe.json").read_text())
    ids = torch.tensor([probe["token_ids"][0]])
    with torch.no_grad():
        found = merged(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(found, torch.tensor(probe["logprobs_adapter"][0]), atol=1e-3, rtol=0)
    modelfile = (tmp_path / "merged" / "Modelfile").read_text()
    assert "FROM ." in modelfile
    assert f'TEMPLATE """{export.OLLAMA_TEMPLATE}"""' in modelfile
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"pieces"


def test_an_export_onto_other_weights_is_refused(
    whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_model(tmp_path / "other")
    tiny_model(seed=1).save_pretrained(other)
    monkeypatch.setenv("MEDICHAT_MODEL_PATH", str(other))
    with pytest.raises(Refused, match="other weights"):
        export.export(whole[0] / "run" / "output", tmp_path / "merged")

"""An adapter looked at where the weights have another format than at its trainer's, or few bits in both."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

from services.worker_infer.verify import Probe, Verification, verify
from services.worker_train.child import Exit
from services.worker_train.probe import logprobs, take_probe
from tests.tiny_training import Training, tiny_recipe, write_model, write_rows

#: Strengths that an adapter must not have, and what is said of each.
OTHER = [(0.0, "changes nothing"), (-1.0, "off by"), (0.25, "off by"), (3.0, "off by")]


def load(base: Path, adapter: Path, strength: float, **rest: Any) -> PeftModel:
    """The base model under an adapter, which is scaled."""
    model = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained(base, **rest), adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(strength)
    return model.eval()


class Whole:
    """The base model with whole weights under an adapter, as an engine scores with it."""

    def __init__(
        self, base: Path, adapter: Path, strength: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self._model = load(base, adapter, strength, dtype=dtype)

    @torch.no_grad()
    def score(self, token_ids: list[int], adapter: str | None = None) -> list[float]:
        with nullcontext() if adapter else self._model.disable_adapter():
            return logprobs(self._model, token_ids)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base model, and the adapter that was trained on it at 4 bits."""
    folder = tmp_path_factory.mktemp("nf4")
    model = write_model(folder / "model")
    rows = write_rows(folder / "rows.jsonl")
    training = Training(folder / "run", tiny_recipe(rows, quantisation="nf4"), model)
    status, _ = training.end()
    assert status == Exit.DONE, training.log()
    return model, folder / "run" / "output"


def found(trained: tuple[Path, Path], strength: float) -> Verification:
    model, output = trained
    probe = Probe.read(output)
    assert probe.dtype == "nf4"
    return verify(
        Whole(model, output, strength), probe, "any", base_revision=probe.base_revision, dtype="float32"
    )


def test_its_change_is_known_again(trained: tuple[Path, Path]) -> None:
    assert found(trained, 1.0).reason is None


@pytest.mark.parametrize(("strength", "reason"), OTHER)
def test_another_change_is_not(trained: tuple[Path, Path], strength: float, reason: str) -> None:
    refused = found(trained, strength)
    assert not refused.ok
    assert reason in str(refused.reason)


# -- in bfloat16

#: At this share of its strength no token changes by more than the 0.25 nats that formats may differ by.
WEAK = 0.03


@pytest.fixture(scope="module")
def probe(trained: tuple[Path, Path]) -> Probe:
    """What a trainer in bfloat16 sees of the adapter when it is weak."""
    model = load(*trained, WEAK, dtype=torch.bfloat16, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    return Probe.model_validate(take_probe(model, tokenizer, base_revision="a" * 64))


def found_in(dtype: torch.dtype, trained: tuple[Path, Path], probe: Probe, strength: float) -> Verification:
    assert probe.dtype == "bfloat16"
    engine, name = Whole(*trained, WEAK * strength, dtype), str(dtype).removeprefix("torch.")
    return verify(engine, probe, "any", base_revision="a" * 64, dtype=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_change_in_bfloat16_is_known_again(
    trained: tuple[Path, Path], probe: Probe, dtype: torch.dtype
) -> None:
    assert found_in(dtype, trained, probe, 1.0).reason is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("strength", "reason"), OTHER)
def test_another_change_in_bfloat16_is_not(
    trained: tuple[Path, Path], probe: Probe, dtype: torch.dtype, strength: float, reason: str
) -> None:
    refused = found_in(dtype, trained, probe, strength)
    assert not refused.ok
    assert reason.replace("off by", "does not compute what its trainer saw") in str(refused.reason)


class Rounded:
    """An engine whose figures are those that are given, each apart from the true one by chance."""

    def __init__(self, change: float, rounding: float, seed: int) -> None:
        self._change, self._rounding, self._seed = change, rounding, seed

    def score(self, token_ids: list[int], adapter: str | None = None) -> list[float]:
        chance = random.Random(f"{self._seed} {adapter}")
        return [
            -2.0 + chance.gauss(0, self._rounding) + (self._change * (-1) ** place if adapter else 0.0)
            for place in range(len(token_ids) - 1)
        ]


def judged(seen: float, here: float, rounding: float, seed: int = 0) -> str | None:
    """Of an adapter that changes every token by `seen` for its trainer, and by `here` in the engine."""
    tokens = list(range(150))
    trainer, engine = Rounded(seen, rounding, 2 * seed + 1), Rounded(here, rounding, 2 * seed + 2)
    probe = Probe(
        base_revision="a" * 64,
        dtype="bfloat16",
        token_ids=[tokens],
        logprobs_base=[trainer.score(tokens)],
        logprobs_adapter=[trainer.score(tokens, "any")],
    )
    return verify(engine, probe, "any", base_revision="a" * 64, dtype="bfloat16").reason


@pytest.mark.parametrize("seed", range(20))
def test_a_change_of_the_size_of_its_rounding_is_known_by_its_strength(seed: int) -> None:
    assert judged(0.04, 0.04, rounding=0.02, seed=seed) is None


@pytest.mark.parametrize("strength", [0.0, -1.0, 0.25, 3.0])
def test_another_change_of_that_size_is_not(strength: float) -> None:
    assert "told from rounding (0.04" in str(judged(0.04, 0.04 * strength, rounding=0.02))
    for seed in range(20):
        assert "told from rounding" in str(judged(0.04, 0.04 * strength, rounding=0.02, seed=seed))


@pytest.mark.parametrize("here", [0.0, 0.002])
def test_a_change_below_its_rounding_is_refused_with_what_to_do(here: float) -> None:
    assert "Train it longer" in str(judged(0.002, here, rounding=0.02))

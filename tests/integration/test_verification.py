"""An adapter that was trained on 4-bit weights, looked at where the weights are whole."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import Gemma3ForConditionalGeneration

from services.worker_infer.verify import Probe, Verification, verify
from services.worker_train.child import Exit
from services.worker_train.probe import logprobs
from tests.tiny_training import Training, tiny_recipe, write_model, write_rows


class Whole:
    """The base model in float32 under an adapter, as an engine scores with it."""

    def __init__(self, base: Path, adapter: Path, strength: float) -> None:
        self._model = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained(base), adapter)
        self._model.eval()
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(strength)

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


@pytest.mark.parametrize(
    ("strength", "reason"), [(0.0, "changes nothing"), (-1.0, "off by"), (0.25, "off by"), (3.0, "off by")]
)
def test_another_change_is_not(trained: tuple[Path, Path], strength: float, reason: str) -> None:
    refused = found(trained, strength)
    assert not refused.ok
    assert reason in str(refused.reason)

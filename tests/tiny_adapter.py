"""Small LoRA adapters with random weights, made and saved by PEFT as a training run would."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from services.worker_infer.engines.view import log_likelihoods
from shared.training.adapter_files import CARD, CONFIG, PROBE, WEIGHTS

LAYERS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
REVISION = "a" * 64
PROBES = [[2, 300, 301, 302, 303, 304, 305], [2, 310, 320, 330, 340], [2, 299, 298], [2, 271, 281, 291, 301]]


def with_adapter(model: PreTrainedModel, seed: int, *, scale: float = 0.3, dora: bool = False) -> PeftModel:
    """`model` changed by an adapter of this seed; at scale 0 one that changes nothing."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS, task_type="CAUSAL_LM", use_dora=dora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a name of the past
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return adapted.requires_grad_(False).eval()


def write_adapter(
    model: PreTrainedModel, folder: Path, seed: int = 1, *, revision: str = REVISION, **rest: object
) -> str:
    """Save an adapter of `model` (changing that) to `folder/<sha256>` with its probe; returns the SHA-256."""
    plain = [log_likelihoods(model, probe) for probe in PROBES]
    adapted = with_adapter(model, seed, **rest)  # type: ignore[arg-type]
    work = folder / f"new-{seed}"
    adapted.save_pretrained(work)
    (work / CARD).write_text("# A card\n")
    config = json.loads((work / CONFIG).read_text())
    config["revision"], config["base_model_name_or_path"] = revision, None
    (work / CONFIG).write_text(json.dumps(config))
    probe = {
        "base_revision": revision,
        "dtype": "float32",
        "token_ids": PROBES,
        "logprobs_base": plain,
        "logprobs_adapter": [log_likelihoods(adapted.base_model.model, probe) for probe in PROBES],
    }
    (work / PROBE).write_text(json.dumps(probe))
    sha256 = hashlib.sha256((work / WEIGHTS).read_bytes()).hexdigest()
    shutil.rmtree(folder / sha256, ignore_errors=True)
    work.rename(folder / sha256)
    return sha256

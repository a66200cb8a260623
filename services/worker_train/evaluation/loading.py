"""Puts a catalogue model and an adapter's files together, ready to be examined. It measures nothing."""

from pathlib import Path
from typing import cast

import torch
from peft import PeftModel

from services.worker_train import base
from services.worker_train.evaluation.examinee import Examinee
from services.worker_train.evaluation.text import RowText
from shared.settings import Settings
from shared.training.adapter_files import check_adapter, sha256_of


def load_examinee(
    settings: Settings,
    *,
    base_model: str,
    adapter: Path,
    sha256: str | None = None,
    files_sha256: str | None = None,
    revision: str | None = None,
) -> Examinee:
    """The base in the format that it is served in, with the adapter of a folder on it.

    Args:
        sha256: what the adapter's weights must be; whatever they are when left out.
        files_sha256: likewise for its other files; see `check_adapter`.
        revision: the weights that it must have been trained on; those that are here when left out.

    Raises:
        AdapterRefused: the files are not an intact LoRA in safetensors, made for these weights.
        Refused: the base model cannot be read.
    """
    source = base.find_source(base_model, settings)
    check_adapter(
        adapter,
        sha256=sha256 or sha256_of(adapter),
        files_sha256=files_sha256,
        base_revision=revision or source.revision(),
    )
    if revision is not None and source.revision() != revision:
        raise base.wrong_weights(base_model)
    device = torch.device("cpu") if settings.device == "cpu" else base.choose_device()
    model = base.open_model(
        source,
        device=device,
        dtype=_dtype(settings, source, device),
        nf4=settings.quantise == "nf4",
        packed=False,
    )
    model.config.use_cache = True
    longest = min(source.entry.context_tokens, model.config.get_text_config().max_position_embeddings)
    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    processor = base.open_processor(source) if source.entry.reads_images else None
    text = RowText(
        base.open_tokenizer(source), system=settings.system_prompt, processor=processor, max_tokens=longest
    )
    return Examinee(adapted, text)


def _dtype(settings: Settings, source: base.Source, device: torch.device) -> torch.dtype:
    """As serving chooses it."""
    if settings.dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.dtype))
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return cast(torch.dtype, getattr(torch, source.entry.dtype))
    return torch.float32

"""Puts a catalogue model and an adapter's files together, ready to be examined. It measures nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel

from services.worker_train import base
from services.worker_train.child import Refused
from services.worker_train.estimate import Shapes, evaluation_bytes
from services.worker_train.evaluation.examinee import BATCH_TOKENS, Examinee
from services.worker_train.evaluation.text import Row, RowText
from services.worker_train.room import Room
from shared.catalogue import Quantisation, choose_quantisation
from shared.settings import Settings
from shared.training.adapter_files import WEIGHTS, check_adapter, sha256_of


def load_examinee(
    settings: Settings,
    *,
    base_model: str,
    adapter: Path,
    rows: Sequence[Row],
    sha256: str | None = None,
    files_sha256: str | None = None,
    revision: str | None = None,
) -> Examinee:
    """The base in the format that it is served in, with the adapter of a folder on it.

    Args:
        rows: what it will be examined on; the longest of them say how much memory that takes.
        sha256: what the adapter's weights must be; whatever they are when left out.
        files_sha256: likewise for its other files; see `check_adapter`.
        revision: the weights that it must have been trained on; those that are here when left out.

    Raises:
        AdapterRefused: the files are not an intact LoRA in safetensors, made for these weights.
        Refused: the base model cannot be read, or is too large for the device.
        MustWait: there is no room for it beside what runs now.
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
    config = base.read_config(source)
    longest = min(source.entry.context_tokens, config.get_text_config().max_position_embeddings)
    processor = base.open_processor(source) if source.entry.reads_images else None
    text = RowText(
        base.open_tokenizer(source), system=settings.system_prompt, processor=processor, max_tokens=longest
    )
    device = torch.device("cpu") if settings.device == "cpu" else base.choose_device()
    dtype = _dtype(settings, source, device)
    nf4 = choose_quantisation(settings.quantise, source.entry) is Quantisation.NF4
    longest_row = _longest(rows, text, base.picture_tokens(source))
    needed = evaluation_bytes(
        Shapes.of(config, source.entry.parameters),
        adapter_bytes=(adapter / WEIGHTS).stat().st_size,
        nf4=nf4,
        tokens=max(BATCH_TOKENS, longest_row),
        longest_row=longest_row,
        device=device.type,
        weight_bytes=dtype.itemsize,
    )
    take_room(Room.on(device), needed, nf4=nf4)
    model = base.open_model(source, device=device, dtype=dtype, nf4=nf4, packed=False)
    model.config.use_cache = True
    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    return Examinee(adapted, text)


def take_room(room: Room, needed: float, *, nf4: bool) -> None:
    """Take what an evaluation needs, in bytes. Raises Refused when the device has less, and MustWait when
    only what is free now is too little.
    """
    if needed > room.total:
        smaller = "" if nf4 else "; or serve it with MEDICHAT_QUANTISE=nf4, as which it is then measured too"
        raise Refused(
            "does-not-fit",
            f"Measuring this takes about {needed / 1e9:.1f} GB, and the {room.device.type} has "
            f"{room.total / 1e9:.1f} GB in all. Measure it on a larger device{smaller}.",
        )
    room.take(needed)


def _longest(rows: Sequence[Row], text: RowText, picture_tokens: int) -> int:
    """Most tokens of a row that the model can read."""
    lengths = (
        len(text.whole(replace(row, image=None)).ids) + (picture_tokens if row.image else 0) for row in rows
    )
    return max((length for length in lengths if length <= text.max_tokens), default=0)


def _dtype(settings: Settings, source: base.Source, device: torch.device) -> torch.dtype:
    """As serving chooses it."""
    if settings.dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.dtype))
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return cast(torch.dtype, getattr(torch, source.entry.dtype))
    return torch.float32

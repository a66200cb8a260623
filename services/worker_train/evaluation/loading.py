"""Puts a catalogue model and an adapter's files together, ready to be examined. It measures nothing."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from transformers import AutoProcessor, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerFast

from services.worker_train.child import Refused
from services.worker_train.evaluation.examinee import Examinee
from services.worker_train.evaluation.text import RowText
from shared.catalogue import CatalogueModel, find_model
from shared.settings import Settings

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


def load_examinee(
    settings: Settings, *, base_model: str, adapter: Path, revision: str | None = None
) -> Examinee:
    """The base in the format that it is served in, with the adapter of a folder on it.

    Raises:
        Refused: the adapter is not a LoRA in safetensors, or was made for other weights than `revision`.
    """
    check_adapter(adapter)
    entry = find_model(base_model)
    folder = settings.model_path if settings.model == base_model and settings.model_path else entry.folder
    if revision is not None and folder is not None and hash_weights(folder) != revision:
        raise Refused(
            "wrong-base",
            f"The adapter was trained on other weights than those of the model {base_model} here; "
            "restore the weights or train it again.",
        )
    where = str(folder or entry.hub_id)
    source: dict[str, Any] = {"trust_remote_code": False}
    source |= {"revision": entry.revision} if folder is None else {"local_files_only": True}
    device = _device(settings)
    dtype = _dtype(settings, entry, device)
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(where, **source))
    model: Any = getattr(transformers, entry.model_class).from_pretrained(
        where,
        dtype=dtype,
        device_map={"": device},
        use_safetensors=True,
        attn_implementation="sdpa",
        quantization_config=_quantisation(settings, dtype),
        **source,
    )
    longest = min(entry.context_tokens, model.config.get_text_config().max_position_embeddings)
    adapted = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    processor = cast(Any, AutoProcessor).from_pretrained(where, **source) if entry.reads_images else None
    text = RowText(tokenizer, system=settings.system_prompt, processor=processor, max_tokens=longest)
    return Examinee(adapted, text)


def check_adapter(folder: Path) -> None:
    """Look before peft does: it would also unpickle. Raises Refused."""
    weights, config = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    if not weights.is_file() or not config.is_file():
        raise Refused("no-adapter", f"An adapter is a folder with {WEIGHTS_FILE} and {CONFIG_FILE}.")
    try:
        kind = json.loads(config.read_text("utf-8")).get("peft_type")
    except (ValueError, AttributeError):
        kind = None
    if kind != "LORA":
        raise Refused("no-adapter", f"The adapter's {CONFIG_FILE} does not describe a LoRA.")


def hash_weights(folder: Path) -> str:
    """SHA-256 over the folder's weight files in the order of their names: what serving calls its revision."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _device(settings: Settings) -> torch.device:
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("cpu")


def _dtype(settings: Settings, entry: CatalogueModel, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return cast(torch.dtype, getattr(torch, settings.dtype))
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return cast(torch.dtype, getattr(torch, entry.dtype))
    return torch.float32


def _quantisation(settings: Settings, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if settings.quantise == "none":
        return None
    return cast(Any, BitsAndBytesConfig)(  # type: ignore[no-any-return]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )

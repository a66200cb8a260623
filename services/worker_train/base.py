"""Opens the model that is to be adapted, and gives it its LoRA matrices. It knows no data and no training
loop.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerFast as Tokenizer

from services.worker_train.attention import PACKED
from services.worker_train.child import Refused
from services.worker_train.fetching import unreadable
from shared.catalogue import CATALOGUE, CatalogueModel, find_model
from shared.settings import Settings, load_settings
from shared.training.adapter_files import AdapterConfig
from shared.training.recipe import Recipe
from shared.weights import hash_weights

#: The language model's linear layers, and no others: the vision tower has layers of the same names.
LANGUAGE_LAYERS = (
    r"^(?!.*vision_tower).*\.layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)$"
)
#: The tokenizer as SentencePiece keeps it. For Gemma, transformers neither reads nor writes it, and Ollama
#: takes nothing else.
SENTENCEPIECE = "tokenizer.model"
#: Processors with one of these multiply bfloat16 several times as fast as float32; others do so slower.
CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a base model comes from."""

    entry: CatalogueModel
    #: A folder, or None for the hub.
    folder: Path | None

    @property
    def where(self) -> str:
        """What `from_pretrained` is given."""
        return str(self.folder or self.entry.hub_id)

    @property
    def options(self) -> dict[str, Any]:
        """What else it is given: a pinned revision, and no code from elsewhere."""
        pinned = {"local_files_only": True} if self.folder else {"revision": self.entry.revision}
        return {"trust_remote_code": False, **pinned}

    def revision(self) -> str:
        """Names the weights: the hub's commit, or the SHA-256 over the folder's weight files."""
        return hash_weights(self.folder) if self.folder else str(self.entry.revision)


def find_source(model: str, settings: Settings) -> Source:
    """The catalogue's model of that name; `MEDICHAT_MODEL_PATH` holds where it is the served one."""
    entry = find_model(model)
    own = settings.model_path if settings.model == model else None
    return Source(entry=entry, folder=own or entry.folder)


def catalogue_name(config: AdapterConfig) -> str:
    """The catalogue's model that an adapter says it was trained on. Raises Refused."""
    named = config.base_model_name_or_path
    for entry in CATALOGUE.values():
        if named is not None and named in (entry.name, entry.hub_id):
            return entry.name
    raise Refused("wrong-base", "The adapter's base model is not in the catalogue; name one with --model.")


def wrong_weights(model: str) -> Refused:
    """An adapter meets other weights than those it was trained on."""
    return Refused(
        "wrong-base",
        f"The adapter was trained on other weights than those of the model {model} here; "
        "restore the weights or train it again.",
    )


def choose_device() -> torch.device:
    """This process's GPU, which becomes the current one, or the CPU.

    Raises Refused where MEDICHAT_DEVICE is `cuda` and torch sees no GPU.
    """
    if not torch.cuda.is_available():
        if load_settings().device == "cuda":
            raise Refused(
                "no-gpu", "MEDICHAT_DEVICE is cuda, but torch sees no GPU; use cpu or install a CUDA build."
            )
        return torch.device("cpu")
    # of several processes each has its own; accelerate would choose it too late, after the model is loaded
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def gpu_uuid(device: torch.device) -> str | None:
    """Which GPU this is, whatever number it has here; None for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def choose_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The format of the arithmetic; never float16, in which Gemma 3 overflows."""
    if recipe.dtype != "auto":
        return cast(torch.dtype, getattr(torch, recipe.dtype))
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        fast = any(able.get(name) for name in CPU_BFLOAT16)
    return torch.bfloat16 if fast else torch.float32


def open_tokenizer(source: Source) -> Tokenizer:
    """The model's tokenizer. Raises Refused when the model cannot be read."""
    with _readable(source):
        return cast(Tokenizer, AutoTokenizer.from_pretrained(source.where, **source.options))


def find_sentencepiece(source: Source) -> Path | None:
    """The model's `tokenizer.model`, fetched if it must be; None when there is none or it cannot be had."""
    try:
        if source.folder is None:
            found = hf_hub_download(source.where, SENTENCEPIECE, revision=source.entry.revision)
            return Path(found)
    except (EntryNotFoundError, OSError):
        return None
    path = source.folder / SENTENCEPIECE
    return path if path.is_file() else None


def picture_tokens(source: Source) -> int:
    """How many tokens one picture takes; 0 for a model that reads none."""
    if not source.entry.reads_images:
        return 0
    return int(read_config(source).mm_tokens_per_image)


def read_config(source: Source) -> Any:
    """The model's configuration."""
    with _readable(source):
        return AutoConfig.from_pretrained(source.where, **source.options)


def open_image_processor(source: Source) -> Any:
    """What turns pictures into pixels."""
    with _readable(source):
        return cast(Any, AutoImageProcessor).from_pretrained(source.where, use_fast=False, **source.options)


def open_processor(source: Source) -> Any:
    """Tokenizer and image processor in one, as a checkpoint with pictures has them."""
    with _readable(source):
        return cast(Any, AutoProcessor).from_pretrained(source.where, **source.options)


def open_model(
    source: Source, *, device: torch.device, dtype: torch.dtype, nf4: bool, packed: bool
) -> PreTrainedModel:
    """The base model, frozen. Raises Refused when it cannot be read."""
    keep_few_kernels()
    config = (
        cast(Any, BitsAndBytesConfig)(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if nf4
        else None
    )
    with _readable(source):
        model: PreTrainedModel = getattr(transformers, source.entry.model_class).from_pretrained(
            source.where,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            attn_implementation="sdpa",
            quantization_config=config,
            **source.options,
        )
    if packed:
        pack(model)
    model.config.use_cache = False
    return model.requires_grad_(False)


def keep_few_kernels() -> None:
    """Keep the memory of a CPU from growing from pass to pass; to be called before the first one.

    Each pass has a length of its own, and for every length oneDNN keeps code, and torch's layer over it
    (ideep) the scratch space of a thousand products: in bfloat16 half as much again as all else.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "100")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")


def linear_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(in, out) features of every linear layer by name: what an adapter can change."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def pack(model: PreTrainedModel) -> None:
    """Let the language model take samples that lie behind one another (see attention.py)."""
    parts = model.config.sub_configs
    model.set_attn_implementation({"text_config": PACKED} if "text_config" in parts else PACKED)


def lora_config(recipe: Recipe, revision: str | None = None) -> LoraConfig:
    """The adapter's shape, and the revision of the weights that it belongs to. Nothing but LoRA matrices is
    trained: full copies of layers could not be merged.
    """
    return LoraConfig(
        revision=revision,
        task_type="CAUSAL_LM",
        r=recipe.r,
        lora_alpha=cast(int, recipe.alpha),
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        target_modules=LANGUAGE_LAYERS if recipe.target == "language" else "all-linear",
    )


class _readable:
    """Turns what goes wrong while a model is read into what to do about it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        refusal = error and unreadable(error, "no-model", f"The model {self._source.entry.name}")
        if refusal:
            raise refusal from error

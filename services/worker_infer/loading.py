"""Read a model's weights from disk or hub onto a device and put an engine around it.

Knows the catalogue and how weights are read; nothing of jobs, prompts or how an engine runs, and what fits
where is judged in fitting.py.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import torch
import transformers
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

from services.worker_infer.adapters import AdapterCopies, ask_registry
from services.worker_infer.engines.manager import PagedLimits
from services.worker_infer.engines.pictures import PictureLimits
from services.worker_infer.engines.view import linear_layers
from services.worker_infer.engines.views import AdapterEngine
from services.worker_infer.fitting import Placement, cache_room, device_memory, guard_dtype
from services.worker_infer.model import Model
from services.worker_infer.pixels import PictureReader
from services.worker_infer.text import ChatText
from shared.catalogue import CatalogueModel, Quantisation, weights_folder
from shared.db import Database
from shared.errors import AdapterRefused, Unavailable
from shared.memory import memory_name
from shared.settings import Settings
from shared.storage import Storage
from shared.weights import hash_weights

#: Most tokens in one step. On 2 cores 256 keep a step of an 18 x 640 model under 0.4 s, so that running
#: answers go on, at the same tokens per second as 1024; a GPU is only filled by more.
_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}
#: A CPU computes a step of a model of up to so many weights sooner on one thread: what each layer has to do
#: is less than handing half of it over. Measured on 2 cores: with 6 M weights one thread gives 1.1 to 1.7
#: times the tokens per second of two at 1 to 32 answers at a time; 100 M weights want all cores.
_ONE_THREAD_WEIGHTS = 20_000_000


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """Weights on their device, and the tokenizer that belongs to them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    #: Commit of the hub repository, or SHA-256 of the weight files of a folder.
    revision: str
    #: Token ids that end an answer.
    stop_token_ids: frozenset[int]


def expected_memory(settings: Settings) -> tuple[str, int]:
    """Where the configured model will lie (see `shared.memory`), and the bytes that its weights will take.

    Raises InvalidInput, as `open_model` does.
    """
    placement = Placement.of(settings)
    return memory_name(_gpu_uuid(placement.device)), placement.weight_bytes


def held_bytes(device: torch.device) -> int:
    """What this process has of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def open_model(settings: Settings, database: Database | None = None) -> Model:
    """The configured model with an engine that is not started yet.

    Sets for this process how many threads torch computes with, unless OMP_NUM_THREADS says it.
    `database` has the registry of adapters; without it none is loaded.

    Raises:
        InvalidInput: the configuration names a model, device or format that cannot be used here, or allows
            answers for which the model's context is too short.
        Unavailable: the weights are not there, may not be read or do not fit the memory.
    """
    placement = Placement.of(settings)
    entry, device = placement.entry, placement.device
    loaded = load_model(
        entry,
        folder=settings.model_path,
        device=device,
        dtype=placement.dtype,
        quantisation=placement.quantisation,
    )
    _share_processors(loaded.model)
    room = cache_room(
        placement,
        settings,
        loaded.model.config.get_text_config(),
        free_bytes=device_memory(device)[0],
    )
    context_tokens, shares = room.context_tokens, room.shares
    if shares is None:
        raise Unavailable(
            f"Beside the model, {device.type} has no memory for the {context_tokens} cached tokens that one "
            "answer may need: choose a smaller MEDICHAT_MODEL or set MEDICHAT_QUANTISE=nf4."
        )
    limits = PagedLimits(
        context_tokens=context_tokens,
        cache_tokens=shares.base_tokens,
        max_running=settings.worker_concurrency,
        batch_tokens=_BATCH_TOKENS[device.type],
    )
    copies = AdapterCopies(
        Storage.from_settings(settings),
        settings.state_dir / "adapters",
        files_hash=_refuse_all if database is None else ask_registry(database),
        base_revision=loaded.revision,
        base_layers=linear_layers(loaded.model),
    )
    return Model(
        name=entry.name,
        model_id=entry.hub_id or entry.name,
        revision=loaded.revision,
        dtype=_format_name(loaded.model),
        engine=AdapterEngine(
            loaded.model,
            stop_token_ids=loaded.stop_token_ids,
            limits=limits,
            view_limits=replace(limits, cache_tokens=shares.view_tokens),
            max_views=shares.views,
            source=copies,
            free_bytes=lambda: device_memory(device)[0],
            picture_limits=PictureLimits(context_tokens=context_tokens, cache_tokens=room.picture_tokens)
            if room.picture_tokens
            else None,
        ),
        source=copies,
        text=ChatText(
            loaded.tokenizer,
            picture_tokens=loaded.model.config.mm_tokens_per_image if room.picture_tokens else 0,
        ),
        context_tokens=context_tokens,
        pictures=PictureReader(loaded.model.config) if room.picture_tokens else None,
        memory=memory_name(_gpu_uuid(device)),
    )


def _refuse_all(sha256: str) -> str:
    raise AdapterRefused("Without a database nobody can tell which adapters may be loaded.")


def _format_name(model: PreTrainedModel) -> str:
    """`nf4` for 4-bit weights, else the name of their number format."""
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")


def load_model(
    entry: CatalogueModel,
    *,
    folder: Path | None = None,
    device: torch.device,
    dtype: torch.dtype,
    quantisation: Quantisation = Quantisation.NONE,
) -> LoadedModel:
    """Read the entry's weights, from `folder` when it is given, ready to answer.

    Only safetensors files are read, and no code that comes with a model is run.

    Raises:
        InvalidInput: a format that Gemma 3 cannot be run in, or a folder without weights.
        Unavailable: the weights are not there, may not be read or do not fit the memory.
    """
    guard_dtype(dtype)
    folder = weights_folder(entry, folder)
    placement = Placement(entry=entry, device=device, dtype=dtype, quantisation=quantisation)
    placement.check_memory()
    source: dict[str, Any] = {"trust_remote_code": False}
    if folder is None:
        source["revision"] = entry.revision
    else:
        source["local_files_only"] = True
    where = str(folder or entry.hub_id)
    try:
        tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(where, **source))
        model = make_model(placement, where, **source)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise Unavailable(placement.too_large()) from error
    except OSError as error:
        raise Unavailable(
            f"The model {entry.name} could not be read from {where}. For a model of the hub: accept its "
            "licence there, set HF_TOKEN (containers: the secret medichat_hf_token) and check the network; "
            "or set MEDICHAT_MODEL_PATH to its folder."
        ) from error
    model.requires_grad_(False)
    _keep_odd_layers_whole(model)
    return LoadedModel(
        model=cast(Any, model).eval(),
        tokenizer=tokenizer,
        revision=hash_weights(folder) if folder is not None else str(entry.revision),
        stop_token_ids=_stop_token_ids(model, tokenizer),
    )


def make_model(placement: Placement, where: str | None, **source: Any) -> PreTrainedModel:
    """The model as it is served, read from `where`; without it of the configuration and weights in `source`.

    Raises OSError, or that the memory is full.
    """
    model_class = getattr(transformers, placement.entry.model_class)
    return cast(
        PreTrainedModel,
        model_class.from_pretrained(
            where,
            dtype=placement.dtype,
            device_map={"": placement.device},
            use_safetensors=True,
            attn_implementation="sdpa",
            quantization_config=_quantisation_config(placement.quantisation, placement.dtype),
            **source,
        ),
    )


def _share_processors(model: PreTrainedModel) -> None:
    """Let a small model compute on one thread: quicker, and it leaves processors to guard and gateway."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    if "OMP_NUM_THREADS" not in os.environ and model.device.type == "cpu" and weights <= _ONE_THREAD_WEIGHTS:
        torch.set_num_threads(1)


def _keep_odd_layers_whole(model: PreTrainedModel) -> None:
    """Leave 4-bit layers as they are that bitsandbytes' kernel for AVX512_BF16 cannot pack.

    It packs 32 rows and 64 columns at a time, and fails at a layer's first pass otherwise: in MedGemma's
    vision tower (4,304), so that the first picture would (bitsandbytes 0.50,
    `_convert_weight_packed_for_cpu`).
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            linear = cast(torch.nn.Linear, module)
            if linear.out_features % 32 or linear.in_features % 64:
                cast(Any, module).support_avx512bf16_for_cpu = False


def _quantisation_config(quantisation: Quantisation, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantisation is Quantisation.NONE:
        return None
    return cast(Any, BitsAndBytesConfig)(  # type: ignore[no-any-return]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _gpu_uuid(device: torch.device) -> str | None:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """What the checkpoint, the tokenizer and the chat format each call the end of an answer."""
    configured = model.generation_config.eos_token_id
    ends = {configured} if isinstance(configured, int) else set(configured or ())
    ends |= {tokenizer.eos_token_id, tokenizer.get_vocab().get("<end_of_turn>")}
    return frozenset(end for end in ends if end is not None)

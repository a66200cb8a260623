"""What is chosen for a model on a device, and how the device's memory is shared out: the same for a worker
that starts and for who asks beforehand whether it can. It reads no weights and makes no engine.
"""

from dataclasses import dataclass
from math import ceil

import psutil  # type: ignore[import-untyped]
import torch

from shared.catalogue import CatalogueModel, Quantisation, choose_quantisation, find_model
from shared.errors import InvalidInput, Unavailable
from shared.memory import within_control_group
from shared.model_shapes import TextSizes, cache_bytes_per_token
from shared.settings import Settings

GIB = 2**30
_FORMATS = (torch.float32, torch.bfloat16)
#: Share of the memory left after loading that the KV cache may take.
_CACHE_SHARE = {"cpu": 0.25, "cuda": 0.7}
#: One part in so many of the cache is for pictures.
_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class CacheShares:
    """Tokens of KV cache for the base model and for each of `views` adapters."""

    base_tokens: int
    view_tokens: int
    views: int


def share_cache(*, affordable: int, context_tokens: int, requests: int, views: int) -> CacheShares | None:
    """Divide the tokens that the memory has room for; None when not even one answer fits.

    Every request at half the context is all that is wanted. Where that is too much for all, the base model
    gets half, and adapters are served as many at once as have room for one whole answer each; at none, they
    are refused with the reason when they are asked for.
    """
    if affordable < context_tokens:
        return None
    wanted = max(context_tokens, requests * context_tokens // 2)
    base = min(wanted, max(context_tokens, affordable // 2))
    left = affordable - base
    views = max(1, min(views, left // context_tokens))
    return CacheShares(
        base_tokens=base, view_tokens=min(wanted, max(context_tokens, left // views)), views=views
    )


def share_for_pictures(*, affordable: int, context_tokens: int, requests: int) -> int:
    """How many of the tokens of cache that the memory has room for are kept for requests with pictures.

    A small share, but one whole answer at least; never more than `requests` at half the context want. None
    where there is no room for a whole answer beside one of text: a conversation with a picture would come to
    its end once it is longer than the share.
    """
    wanted = max(context_tokens, min(affordable // _SHARE, requests * context_tokens // 2))
    share = min(wanted, affordable - context_tokens)
    return share if share >= context_tokens else 0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A model on a device, in a number format."""

    entry: CatalogueModel
    device: torch.device
    #: Of arithmetic, and of the weights that are not quantised.
    dtype: torch.dtype
    quantisation: Quantisation

    @classmethod
    def of(cls, settings: Settings) -> "Placement":
        """What the settings come to here. Raises InvalidInput when they cannot be used here, or allow answers
        for which the model's context is too short.
        """
        entry = find_model(settings.model)
        if settings.max_new_tokens >= entry.context_tokens:
            raise InvalidInput(
                f"MEDICHAT_MAX_NEW_TOKENS is {settings.max_new_tokens}, and with the model {entry.name} "
                f"question and answer share {entry.context_tokens} tokens: set it to "
                f"{entry.context_tokens // 2} or less."
            )
        device = choose_device(settings.device)
        return cls(
            entry=entry,
            device=device,
            dtype=choose_dtype(settings.dtype, entry, device),
            quantisation=choose_quantisation(settings.quantise, entry),
        )

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return self.entry.weight_bytes(self.dtype.itemsize, self.quantisation)

    def check_memory(self) -> None:
        """Raises Unavailable before a load that would end in the kernel killing the process."""
        needed, (free, _) = self.weight_bytes, device_memory(self.device)
        if needed > free:
            raise Unavailable(
                f"{self.too_large()} It takes about {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are "
                f"free on {self.device.type}."
            )

    def too_large(self) -> str:
        """What to do when the weights do not fit."""
        smaller = "" if self.quantisation is Quantisation.NF4 else "set MEDICHAT_QUANTISE=nf4, or "
        return (
            f"The model {self.entry.name} does not fit the memory: {smaller}choose a smaller MEDICHAT_MODEL."
        )


@dataclass(frozen=True, kw_only=True)
class CacheRoom:
    """How much KV cache there is room for beside the weights, and how it is divided."""

    #: Longest prompt plus answer.
    context_tokens: int
    bytes_per_token: int
    affordable_tokens: int
    #: Those of them that are kept for requests with pictures; 0: none are taken.
    picture_tokens: int
    #: Of the others. None: not even one answer fits.
    shares: CacheShares | None


def cache_room(placement: Placement, settings: Settings, text: TextSizes, *, free_bytes: int) -> CacheRoom:
    """Divide `free_bytes`, which are left beside the weights; `text`: sizes of the language model."""
    context_tokens = min(placement.entry.context_tokens, text.max_position_embeddings)
    each = cache_bytes_per_token(text, placement.dtype.itemsize)
    affordable = int(free_bytes * _CACHE_SHARE[placement.device.type] / each)
    pictures = 0
    if placement.entry.reads_images:
        pictures = share_for_pictures(
            affordable=affordable, context_tokens=context_tokens, requests=settings.worker_concurrency
        )
    return CacheRoom(
        context_tokens=context_tokens,
        bytes_per_token=each,
        affordable_tokens=affordable,
        picture_tokens=pictures,
        shares=share_cache(
            affordable=affordable - pictures,
            context_tokens=context_tokens,
            requests=settings.worker_concurrency,
            views=settings.max_adapters_loaded,
        ),
    )


def least_memory(placement: Placement, room: CacheRoom) -> int:
    """Bytes that must be free for the weights and one answer."""
    cache = room.context_tokens * room.bytes_per_token / _CACHE_SHARE[placement.device.type]
    return placement.weight_bytes + ceil(cache)


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a CUDA GPU where there is one. Raises InvalidInput when the device is not there."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise InvalidInput("MEDICHAT_DEVICE is cuda, but torch sees no GPU; use cpu or install a CUDA build.")
    return torch.device("cuda", 0) if available and wanted != "cpu" else torch.device("cpu")


def choose_dtype(wanted: str, entry: CatalogueModel, device: torch.device) -> torch.dtype:
    """The format for weights and arithmetic; `auto` is the entry's where a GPU computes in it, else float32.

    A CPU without AVX-512 computes bfloat16 slower than float32, so `auto` never takes it there.
    """
    if wanted != "auto":
        return guard_dtype(getattr(torch, wanted))
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return guard_dtype(getattr(torch, entry.dtype))
    return torch.float32


def guard_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`. Raises InvalidInput when Gemma 3 cannot be run in it: its activations overflow float16."""
    if dtype not in _FORMATS:
        raise InvalidInput(
            f"Gemma 3 cannot be run in {str(dtype).removeprefix('torch.')}; use bfloat16 or float32."
        )
    return dtype


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on the device now, and bytes that it has in all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    memory = psutil.virtual_memory()
    return within_control_group(memory.available, memory.total)

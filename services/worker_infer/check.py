"""Tells before a start whether the configured model can be served here, and where its weights are.

It loads nothing, asks nobody on the network, and judges by the functions that a start uses (fitting.py).
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import constants, get_token, try_to_load_from_cache

from services.worker_infer.fitting import (
    GIB,
    CacheRoom,
    Placement,
    cache_room,
    device_memory,
    least_memory,
)
from shared.catalogue import CATALOGUE, CatalogueModel, Quantisation, weights_folder
from shared.errors import InvalidInput
from shared.settings import Settings

#: Bytes a weight in the files of the hub: bfloat16.
_FILE_BYTES = 2
_INDEX, _ONE_FILE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """Where the weights come from."""

    place: Literal["folder", "cache", "hub"]
    #: The folder, or the hub's repository.
    where: str
    #: What a fetch from the hub would fail by, and what to do; None where nothing is known to hinder it.
    hindrance: str | None = None
    #: Whether a token for the hub is set; most models of the catalogue are given to nobody without one.
    has_token: bool = True


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a start would come to, all sizes in bytes."""

    model: str
    title: str
    parameters: int
    image_tokens: int
    device: str
    free_bytes: int
    total_bytes: int
    dtype: str
    quantisation: str
    weight_bytes: int
    files: WeightFiles
    #: Longest prompt plus answer.
    context_tokens: int
    cache_bytes_per_token: int
    #: Tokens of KV cache that the memory left has room for, the base model's, the adapters' and the
    #: pictures' together.
    affordable_tokens: int
    #: The base model's share of them, and each adapter's.
    base_cache_tokens: int
    adapter_cache_tokens: int
    #: What is kept for questions with pictures; 0: none are answered.
    picture_cache_tokens: int
    #: Answers at a time (`worker_concurrency`), and how many of them may be as long as the context.
    answers: int
    whole_answers: int
    #: Adapters ready at a time that there is room for, and those that are wanted.
    adapters: int
    wanted_adapters: int
    #: What training is left beside the weights and all of the cache.
    left_bytes: int
    #: Why a start would fail. Empty: it would not.
    problems: list[str] = field(default_factory=list)
    #: What to change: each alone is enough for the memory.
    advice: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether a start would succeed, as far as can be told."""
        return not self.problems


def check(settings: Settings) -> Check:
    """Look at the configured model and at this machine.

    Raises InvalidInput, as a start does, for settings that cannot be used here.
    """
    placement = Placement.of(settings)
    files = find_files(placement.entry, settings)
    free, total = device_memory(placement.device)
    room = _room(placement, settings, free)
    shares = room.shares if placement.weight_bytes <= free else None
    problems, advice = [], []
    if shares is None:
        problems.append(_shortage(placement, room, free))
        advice = [
            *_what_fits(settings, placement, free),
            f"use a device with {ceil(10 * least_memory(placement, room) / GIB) / 10:.1f} GiB free",
        ]
    if files.hindrance:
        problems.append(files.hindrance)
    base, each, views = (shares.base_tokens, shares.view_tokens, shares.views) if shares else (0, 0, 0)
    pictures = room.picture_tokens if shares else 0
    left = max(0, free - placement.weight_bytes - (base + pictures) * room.bytes_per_token)
    # as AdapterEngine does, which goes by what is free when an adapter is asked for
    adapters = min(views, left // (each * room.bytes_per_token)) if shares else 0
    entry = placement.entry
    return Check(
        model=entry.name,
        title=entry.title,
        parameters=entry.parameters,
        image_tokens=entry.shape.image_tokens,
        device=_describe_device(placement.device),
        free_bytes=free,
        total_bytes=total,
        dtype=str(placement.dtype).removeprefix("torch."),
        quantisation=placement.quantisation.value,
        weight_bytes=placement.weight_bytes,
        files=files,
        context_tokens=room.context_tokens,
        cache_bytes_per_token=room.bytes_per_token,
        affordable_tokens=room.affordable_tokens,
        base_cache_tokens=base,
        adapter_cache_tokens=each,
        picture_cache_tokens=pictures,
        answers=settings.worker_concurrency,
        whole_answers=min(settings.worker_concurrency, base // room.context_tokens),
        adapters=adapters,
        wanted_adapters=settings.max_adapters_loaded,
        left_bytes=left - adapters * each * room.bytes_per_token,
        problems=problems,
        advice=advice,
    )


def find_files(entry: CatalogueModel, settings: Settings) -> WeightFiles:
    """Where the weights lie, or what is known of fetching them. Raises InvalidInput for an empty folder."""
    folder = weights_folder(entry, settings.model_path)
    if folder is not None:
        return WeightFiles(place="folder", where=str(folder))
    hub_id = str(entry.hub_id)
    if _is_cached(hub_id, str(entry.revision)):
        return WeightFiles(place="cache", where=hub_id)
    return WeightFiles(
        place="hub", where=hub_id, hindrance=_hindrance(entry), has_token=get_token() is not None
    )


def _is_cached(hub_id: str, revision: str) -> bool:
    """Whether every file with weights of that revision is in the hub's cache here."""
    index = try_to_load_from_cache(hub_id, _INDEX, revision=revision)
    names = {_ONE_FILE}
    if isinstance(index, str):
        names = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    found = (try_to_load_from_cache(hub_id, name, revision=revision) for name in names)
    return all(isinstance(path, str) for path in found)


def _hindrance(entry: CatalogueModel) -> str | None:
    if constants.HF_HUB_OFFLINE:
        return "The weights are not here, and HF_HUB_OFFLINE is set: unset it, or set MEDICHAT_MODEL_PATH."
    cache = Path(constants.HF_HUB_CACHE).absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needed, free = entry.parameters * _FILE_BYTES, shutil.disk_usage(there).free
    if needed > free:
        return (
            f"The weights take {needed / GIB:.1f} GiB on the disk, and {free / GIB:.1f} GiB are free at "
            f"{there}: set HF_HOME to a folder on a larger disk."
        )
    return None


def _room(placement: Placement, settings: Settings, free: int) -> CacheRoom:
    left = max(0, free - placement.weight_bytes)
    return cache_room(placement, settings, placement.entry.shape.text, free_bytes=left)


def _shortage(placement: Placement, room: CacheRoom, free: int) -> str:
    weights = f"The weights take {placement.weight_bytes / GIB:.1f} GiB"
    if placement.weight_bytes > free:
        return f"{weights}, and {free / GIB:.1f} GiB are free on {placement.device.type}."
    return (
        f"{weights} of the {free / GIB:.1f} GiB that are free on {placement.device.type}, and beside them "
        f"there is no memory for the {room.context_tokens:,} cached tokens that one answer may need."
    )


def _what_fits(settings: Settings, placement: Placement, free: int) -> list[str]:
    """Changes of the settings with which there is room: the same model in fewer bytes, else other ones."""
    one_change: list[dict[str, str]] = [{"quantise": Quantisation.NF4.value}, {"dtype": "bfloat16"}]
    both = {**one_change[0], **one_change[1]}
    found = [_told_if_it_fits(settings, changes, placement, free) for changes in one_change]
    if not any(found):
        found = [_told_if_it_fits(settings, both, placement, free)]
    if not any(found):
        found = [
            _smaller_model(settings, entry, [{}, *one_change, both], placement, free)
            for entry in CATALOGUE.values()
            if entry.parameters < placement.entry.parameters
        ]
    return [way for way in found if way is not None]


def _smaller_model(
    settings: Settings,
    entry: CatalogueModel,
    changes: list[dict[str, str]],
    before: Placement,
    free: int,
) -> str | None:
    """The first of the changes with which this other model has room."""
    for each in changes:
        changed = {"model": entry.name, "model_path": None, **each}
        if (found := _told_if_it_fits(settings, changed, before, free)) is not None:
            return found
    return None


def _told_if_it_fits(
    settings: Settings, changes: Mapping[str, str | None], before: Placement, free: int
) -> str | None:
    changed = settings.model_copy(update=changes)
    try:
        placement = Placement.of(changed)
    except InvalidInput:
        return None
    if placement == before or placement.weight_bytes > free or not _room(placement, changed, free).shares:
        return None
    named = " ".join(f"MEDICHAT_{name.upper()}={value}" for name, value in changes.items() if value)
    return f"set {named} (weights: {placement.weight_bytes / GIB:.1f} GiB)"


def _describe_device(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type

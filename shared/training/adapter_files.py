"""Checks an adapter's folder before anything loads it. It reads headers and bytes, and builds no tensor.

An adapter comes from a storage that others may write to, so nothing in it is believed: the weights are named
by their hash, lie in safetensors (which cannot carry code), and are LoRA matrices of layers that the base
model has; the registry keeps a hash of what lies beside them. Pickles are refused unread: PEFT would fall
back to `torch.load` on them.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import AdapterRefused, WrongBase
from shared.storage import Storage

WEIGHTS, CONFIG, CARD, PROBE = "adapter_model.safetensors", "adapter_config.json", "README.md", "probe.json"
#: All that an adapter's folder may hold.
FILES = (WEIGHTS, CONFIG, CARD, PROBE)

MAX_RANK = 512
#: Bytes per number. There is no float16: Gemma 3 overflows in it.
_DTYPES = {"F32": 4, "BF16": 2}
_PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
_MAX_HEADER_BYTES = 16 << 20
_MAX_JSON_BYTES = 4 << 20
_LAYER = re.compile(r"base_model\.model\.(?P<layer>[\w.]+)\.(?P<part>lora_A\.weight|lora_B\.weight|"
                    r"lora_magnitude_vector)(?:\.weight)?")  # fmt: skip


class AdapterConfig(BaseModel):
    """`adapter_config.json` as far as it is used; all else in it must say nothing."""

    model_config = ConfigDict(extra="allow")

    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=MAX_RANK, strict=True)
    lora_alpha: float = Field(gt=0, le=4 * MAX_RANK)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    bias: Literal["none"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: list[str] | str
    #: Others (PiSSA, OLoRA …) also change the base's weights.
    init_lora_weights: bool | Literal["gaussian"] = True
    base_model_name_or_path: str | None = None
    #: Of the base model that it was trained on.
    revision: str | None = None


#: Fields that change nothing in how the weights are applied.
_HARMLESS = frozenset({"inference_mode", "peft_version", "task_type", "megatron_core", "qalora_group_size"})


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """A folder that was found good."""

    folder: Path
    #: Of the weights' file; the adapter's name.
    sha256: str
    config: AdapterConfig
    #: Names of the base model's layers that it changes, sorted.
    layers: tuple[str, ...]
    #: Of the weights' file.
    bytes: int


def check_adapter(
    folder: Path,
    *,
    sha256: str,
    files_sha256: str | None = None,
    base_revision: str | None = None,
    base_layers: Mapping[str, tuple[int, int]] | None = None,
) -> AdapterFiles:
    """Read the folder's files and say that they are what they should be.

    Args:
        sha256: the adapter's name, 64 hexadecimal digits.
        files_sha256: what `hash_files` gave when the adapter was registered; None for a folder that was not.
        base_revision: of the model that it shall change; None where no model is at hand.
        base_layers: (in, out) features of that model's linear layers by name; likewise.

    Raises:
        AdapterRefused: the message says what is wrong: tampered, truncated, pickled, another base …
    """
    _check_names(folder)
    size, tensors = _read_header(folder / WEIGHTS)
    if _hash(folder / WEIGHTS) != sha256:
        raise AdapterRefused(
            "The adapter was tampered with: the SHA-256 of its weights is not the one that names it."
        )
    config = _read_config(folder / CONFIG)
    _check_revision(folder, config, base_revision)
    shapes = _layers(tensors, config)
    if base_layers is not None:
        _check_shapes(shapes, base_layers)
    if files_sha256 is not None and hash_files(folder) != files_sha256:
        raise AdapterRefused(
            f"The adapter was tampered with: {CONFIG} or {PROBE} is not the one that was registered with it."
        )
    return AdapterFiles(folder=folder, sha256=sha256, config=config, layers=tuple(sorted(shapes)), bytes=size)


def _check_names(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    check_names(found)
    if any((folder / name).is_symlink() or not (folder / name).is_file() for name in found):
        raise AdapterRefused("The adapter holds something that is not a plain file.")


def check_names(found: Iterable[str]) -> None:
    """Whether an adapter's folder may hold these files, and has those it needs. Raises AdapterRefused."""
    found = list(found)
    if any(Path(name).suffix.lower() in _PICKLED for name in found):
        raise AdapterRefused(
            "The adapter holds a pickled file, which could run code; only safetensors is read."
        )
    if any(name not in FILES for name in found):
        raise AdapterRefused(f"The adapter holds a file that is none of {', '.join(FILES)}.")
    if WEIGHTS not in found or CONFIG not in found:
        raise AdapterRefused(f"The adapter is incomplete: it needs {WEIGHTS} and {CONFIG}.")


def copy_adapter(storage: Storage, sha256: str, folder: Path) -> None:
    """Copy the files of an adapter of the storage into a folder, which is still to be checked.

    Raises:
        AdapterRefused: there are other files than an adapter has; none is copied.
        FileNotFoundError: there are none.
    """
    prefix = f"adapters/{sha256}"
    names = [path.removeprefix(f"{prefix}/") for path in storage.list(prefix)]
    if not names:
        raise FileNotFoundError("the storage has no such adapter")
    check_names(names)
    for name in names:
        with storage.open(f"{prefix}/{name}") as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target)


def sha256_of(folder: Path) -> str:
    """Of the weights of an adapter's folder; zeros when it has none, which `check_adapter` then says."""
    weights = folder / WEIGHTS
    return _hash(weights) if weights.is_file() else "0" * 64


def hash_files(folder: Path) -> str:
    """Names what lies beside an adapter's weights and says how they are applied: configuration and probe."""
    lines = [f"{name} {_hash(folder / name)}" for name in (CONFIG, PROBE) if (folder / name).is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _read_header(path: Path) -> tuple[int, dict[str, tuple[str, list[int]]]]:
    """The file's size, and each tensor's dtype and shape; the file must hold exactly their bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(_exactly(file, 8), "little")
        if length > _MAX_HEADER_BYTES:
            raise AdapterRefused("The adapter's weights are not safetensors: their header is too long.")
        header = _parse(_exactly(file, length), "The adapter's weights are not safetensors.")
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[str, list[int]]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, span = _read_entry(entry)
        tensors[name] = dtype, shape
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise AdapterRefused("The adapter's weights are malformed: tensors overlap or leave a gap.")
        end = stop
    if size < 8 + length + end:
        raise AdapterRefused("The adapter's weights are truncated: the file ends before its tensors do.")
    if size > 8 + length + end:
        raise AdapterRefused("The adapter was tampered with: bytes follow its last tensor.")
    if not tensors:
        raise AdapterRefused("The adapter holds no weights.")
    return size, tensors


def _read_entry(entry: Any) -> tuple[str, list[int], tuple[int, int]]:
    """dtype, shape and place of one tensor in a safetensors header."""
    malformed = AdapterRefused(
        "The adapter's weights are malformed: a tensor's size is not that of its shape."
    )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise malformed
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise AdapterRefused(f"The adapter's weights must be {' or '.join(_DTYPES)}.")
    if not isinstance(shape, list) or not isinstance(span, list) or len(span) != 2:
        raise malformed
    if not all(type(number) is int and 0 <= number < 1 << 40 for number in (*shape, *span)):
        raise malformed
    count = 1
    for length in shape:
        count *= length
    if span[1] - span[0] != count * _DTYPES[dtype]:
        raise malformed
    return dtype, shape, (span[0], span[1])


def _read_config(path: Path) -> AdapterConfig:
    raw = _parse(_small(path), f"{CONFIG} is not JSON.")
    try:
        config = AdapterConfig.model_validate(raw)
    except ValidationError as error:
        fields = ", ".join(sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]}))
        raise AdapterRefused(f"{CONFIG} is not that of a plain LoRA adapter; see {fields}.") from error
    said = sorted(
        name for name, value in (config.model_extra or {}).items() if value and name not in _HARMLESS
    )
    if said:
        raise AdapterRefused(f"{CONFIG} asks for what is never loaded: {', '.join(said)[:200]}.")
    return config


def _check_revision(folder: Path, config: AdapterConfig, base_revision: str | None) -> None:
    """The configuration and the probe name the base; one of them must, and none may name another."""
    named = [config.revision] if config.revision is not None else []
    if (folder / PROBE).is_file():
        probe = _parse(_small(folder / PROBE), f"{PROBE} is not JSON.")
        named += [str(probe["base_revision"])] if "base_revision" in probe else []
    if not named:
        raise AdapterRefused("The adapter does not say which base model it was trained on.")
    if base_revision is not None and any(revision != base_revision for revision in named):
        raise WrongBase


def _layers(
    tensors: Mapping[str, tuple[str, list[int]]], config: AdapterConfig
) -> dict[str, tuple[int, int]]:
    """(in, out) features of each layer that the tensors change; every layer must be whole."""
    parts: dict[str, dict[str, list[int]]] = {}
    for name, (_, shape) in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise AdapterRefused("The adapter holds weights other than LoRA matrices; they are never loaded.")
        parts.setdefault(match["layer"], {})[match["part"]] = shape
    expected = {"lora_A.weight", "lora_B.weight"} | ({"lora_magnitude_vector"} if config.use_dora else set())
    layers: dict[str, tuple[int, int]] = {}
    for layer, found in parts.items():
        if set(found) != expected:
            raise AdapterRefused(
                "The adapter is incomplete: a layer lacks a LoRA matrix, or has one too many."
            )
        down, up = found["lora_A.weight"], found["lora_B.weight"]
        if len(down) != 2 or len(up) != 2 or down[0] != config.r or up[1] != config.r:
            raise AdapterRefused(f"The adapter's matrices are not of the rank that {CONFIG} says.")
        if config.use_dora and found["lora_magnitude_vector"] != [up[0]]:
            raise AdapterRefused("The adapter's DoRA magnitudes do not fit its matrices.")
        layers[layer] = down[1], up[0]
    return layers


def _check_shapes(shapes: Mapping[str, tuple[int, int]], base_layers: Mapping[str, tuple[int, int]]) -> None:
    if any(base_layers.get(layer) != shape for layer, shape in shapes.items()):
        raise AdapterRefused(
            "The adapter belongs to another base model: this one has no such layers, or of other sizes."
        )


def _exactly(file: IO[bytes], length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise AdapterRefused("The adapter's weights are truncated: the file ends within its header.")
    return data


def _small(path: Path) -> bytes:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise AdapterRefused(f"{path.name} is too large for what it is.")
    return path.read_bytes()


def _parse(data: bytes, otherwise: str) -> dict[str, Any]:
    """A JSON object in which no name comes twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name comes twice")
        return found

    try:
        value = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(otherwise) from error
    if not isinstance(value, dict):
        raise AdapterRefused(otherwise)
    return value


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

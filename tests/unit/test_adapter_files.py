"""What may be in an adapter's folder: everything else is refused before a byte of it is used."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from shared.errors import AdapterRefused
from shared.training.adapter_files import CONFIG, PROBE, WEIGHTS, check_adapter, hash_files

REVISION = "r" * 40
LAYERS = {"model.layers.0.q_proj": (6, 8), "model.layers.1.q_proj": (6, 8)}
CONFIG_JSON = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "auto_mapping": None,
    "modules_to_save": None,
    "revision": REVISION,
}


def tensors(rank: int = 2) -> dict[str, tuple[str, list[int]]]:
    found = {}
    for layer, (inputs, outputs) in LAYERS.items():
        found[f"base_model.model.{layer}.lora_A.weight"] = ("F32", [rank, inputs])
        found[f"base_model.model.{layer}.lora_B.weight"] = ("BF16", [outputs, rank])
    return found


def safetensors(parts: dict[str, tuple[str, list[int]]], **changed: Any) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in parts.items():
        size = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header.update(changed)
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(range(256)) * (end // 256) + bytes(range(end % 256))


def write(folder: Path, weights: bytes | None = None, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    weights = safetensors(tensors()) if weights is None else weights
    (folder / WEIGHTS).write_bytes(weights)
    (folder / CONFIG).write_text(json.dumps({**CONFIG_JSON, **config}))
    return hashlib.sha256(weights).hexdigest()


def check(folder: Path, sha256: str) -> Any:
    return check_adapter(folder, sha256=sha256, base_revision=REVISION, base_layers=LAYERS)


@pytest.mark.parametrize("name", [CONFIG, PROBE])
def test_files_beside_the_weights_that_are_not_the_registered_ones_are_refused(
    tmp_path: Path, name: str
) -> None:
    sha256 = write(tmp_path / "a")
    (tmp_path / "a" / PROBE).write_text(json.dumps({"base_revision": REVISION}))
    registered = hash_files(tmp_path / "a")
    assert check_adapter(tmp_path / "a", sha256=sha256, files_sha256=registered).sha256 == sha256
    with (tmp_path / "a" / name).open("a") as file:
        file.write(" ")  # says the same
    with pytest.raises(AdapterRefused, match="not the one that was registered"):
        check_adapter(tmp_path / "a", sha256=sha256, files_sha256=registered)


def test_a_whole_adapter_is_taken(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "a")
    files = check(tmp_path / "a", sha256)
    assert (files.config.r, files.layers) == (2, tuple(LAYERS))
    assert files.bytes == (tmp_path / "a" / WEIGHTS).stat().st_size


def test_dora_magnitudes_are_taken_when_the_configuration_says_so(tmp_path: Path) -> None:
    parts = tensors()
    for layer in LAYERS:
        parts[f"base_model.model.{layer}.lora_magnitude_vector"] = ("F32", [8])
    assert check(tmp_path / "a", write(tmp_path / "a", safetensors(parts), use_dora=True)).config.use_dora
    with pytest.raises(AdapterRefused, match="one too many"):
        check(tmp_path / "b", write(tmp_path / "b", safetensors(parts)))


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "x.PKL", "old.pickle", "last.ckpt"])
def test_a_pickle_beside_the_weights_is_refused(tmp_path: Path, name: str) -> None:
    sha256 = write(tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(b"\x80\x04.")
    with pytest.raises(AdapterRefused, match="pickled"):
        check(tmp_path / "a", sha256)


def test_a_pickle_instead_of_the_weights_is_refused(tmp_path: Path) -> None:
    pickled = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    with pytest.raises(AdapterRefused, match="not safetensors"):
        check(tmp_path / "a", write(tmp_path / "a", pickled))


def test_code_beside_the_weights_is_refused(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "a")
    (tmp_path / "a" / "modeling.py").write_text("print(1)")
    with pytest.raises(AdapterRefused, match="a file that is none of"):
        check(tmp_path / "a", sha256)


@pytest.mark.parametrize("missing", [WEIGHTS, CONFIG])
def test_an_incomplete_folder_is_refused(tmp_path: Path, missing: str) -> None:
    sha256 = write(tmp_path / "a")
    (tmp_path / "a" / missing).unlink()
    with pytest.raises(AdapterRefused, match="incomplete"):
        check(tmp_path / "a", sha256)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "a")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "elsewhere")
    (tmp_path / "a" / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterRefused, match="not a plain file"):
        check(tmp_path / "a", sha256)


def test_one_changed_byte_is_tampering(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "a")
    whole = bytearray((tmp_path / "a" / WEIGHTS).read_bytes())
    whole[-1] ^= 1
    (tmp_path / "a" / WEIGHTS).write_bytes(whole)
    with pytest.raises(AdapterRefused, match="tampered with: the SHA-256"):
        check(tmp_path / "a", sha256)


@pytest.mark.parametrize("kept", [4, 20, -1])
def test_a_truncated_file_is_refused_as_that(tmp_path: Path, kept: int) -> None:
    whole = safetensors(tensors())[:kept]
    with pytest.raises(AdapterRefused, match="truncated"):
        check(tmp_path / "a", write(tmp_path / "a", whole))


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="bytes follow its last tensor"):
        check(tmp_path / "a", write(tmp_path / "a", safetensors(tensors()) + b"x"))


FIRST = "base_model.model.model.layers.0.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2, 6], "data_offsets": [0, 44]}, "size is not that of its shape"),
        ({"dtype": "F32", "shape": [2, -6], "data_offsets": [0, 48]}, "size is not that of its shape"),
        ({"dtype": "F32", "shape": [2, 6]}, "size is not that of its shape"),
        ({"dtype": "F32", "shape": "ab", "data_offsets": None}, "size is not that of its shape"),
        ({"dtype": "F32", "shape": [2, 6], "data_offsets": [8, 56]}, "overlap or leave a gap"),
        ({"dtype": "F16", "shape": [2, 6], "data_offsets": [0, 24]}, "must be F32 or BF16"),
        ({"dtype": {}, "shape": [2, 6], "data_offsets": [0, 24]}, "must be F32 or BF16"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(AdapterRefused, match=message):
        check(tmp_path / "a", write(tmp_path / "a", safetensors(tensors(), **{FIRST: entry})))


@pytest.mark.parametrize(
    "name",
    ["base_model.model.lm_head.weight", "base_model.model.model.layers.0.q_proj.base_layer.weight", "x"],
)
def test_other_weights_than_lora_are_refused(tmp_path: Path, name: str) -> None:
    parts = {**tensors(), name: ("F32", [2, 2])}
    with pytest.raises(AdapterRefused, match="other than LoRA"):
        check(tmp_path / "a", write(tmp_path / "a", safetensors(parts)))


def test_half_a_layer_is_refused(tmp_path: Path) -> None:
    parts = tensors()
    del parts[FIRST]
    with pytest.raises(AdapterRefused, match="lacks a LoRA matrix"):
        check(tmp_path / "a", write(tmp_path / "a", safetensors(parts)))


def test_another_rank_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="not of the rank"):
        check(tmp_path / "a", write(tmp_path / "a", safetensors(tensors(rank=3))))


@pytest.mark.parametrize(
    "changed",
    [
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"]},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil"}},
        {"r": 0},
        {"r": 100_000},
        {"r": "2"},
        {"lora_alpha": 1e9},
        {"lora_alpha": float("nan")},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 9}},
        {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [1]},
        {"something_new": True},
    ],
)
def test_a_configuration_of_anything_but_plain_lora_is_refused(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    with pytest.raises(AdapterRefused, match=CONFIG):
        check(tmp_path / "a", write(tmp_path / "a", **changed))


def test_another_revision_of_the_base_is_refused_whoever_names_it(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="another base model"):
        check(tmp_path / "a", write(tmp_path / "a", revision="other"))
    sha256 = write(tmp_path / "b", revision=None)
    with pytest.raises(AdapterRefused, match="does not say which base"):
        check(tmp_path / "b", sha256)
    (tmp_path / "b" / PROBE).write_text(json.dumps({"base_revision": "other"}))
    with pytest.raises(AdapterRefused, match="another base model"):
        check(tmp_path / "b", sha256)
    (tmp_path / "b" / PROBE).write_text(json.dumps({"base_revision": REVISION}))
    check(tmp_path / "b", sha256)


@pytest.mark.parametrize("layers", [{}, dict.fromkeys(LAYERS, (6, 9))])
def test_layers_that_the_base_lacks_or_has_in_other_sizes_are_refused(
    tmp_path: Path, layers: dict[str, tuple[int, int]]
) -> None:
    sha256 = write(tmp_path / "a")
    with pytest.raises(AdapterRefused, match="another base model: this one has no such layers"):
        check_adapter(tmp_path / "a", sha256=sha256, base_layers=layers)


@pytest.mark.parametrize("where", range(0, 40, 3))
def test_no_broken_header_raises_anything_but_a_refusal(tmp_path: Path, where: int) -> None:
    whole = bytearray(safetensors(tensors()))
    whole[where] ^= 0xFF
    with pytest.raises(AdapterRefused):
        check(tmp_path / "a", write(tmp_path / "a", bytes(whole)))

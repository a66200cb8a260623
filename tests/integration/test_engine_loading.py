"""Reading models: from safetensors only, in formats that Gemma 3 bears, with errors that say what to do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from PIL import Image

from models.demo.pictures import answer, draw_picture
from services.worker_infer.engines.base import GenerationRequest
from services.worker_infer.fitting import choose_device, choose_dtype
from services.worker_infer.loading import (
    LoadedModel,
    _keep_odd_layers_whole,
    expected_memory,
    load_model,
    open_model,
)
from services.worker_infer.text import Turn
from shared.catalogue import CATALOGUE, CatalogueModel, ModelClass, Quantisation, find_model
from shared.errors import InvalidInput, Unavailable
from shared.settings import Settings
from tests.drawn import encoded
from tests.tiny_model import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, quantisation: Quantisation = Quantisation.NONE) -> LoadedModel:
    return load_model(
        CATALOGUE["demo"], folder=folder, device=CPU, dtype=torch.float32, quantisation=quantisation
    )


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    return output[0].tolist()


def test_a_folder_is_read_with_its_hash_and_its_stop_tokens(folder: Path) -> None:
    loaded = load(folder)
    assert len(loaded.revision) == 64
    assert loaded.stop_token_ids == {1, tiny_tokenizer().convert_tokens_to_ids("<end_of_turn>")}
    assert greedy(loaded.model, [2, 300, 301]) == greedy(tiny_model(), [2, 300, 301])


def test_the_hash_changes_with_the_weights(folder: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).revision != load(folder).revision


def test_float16_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be run in float16"):
        load_model(CATALOGUE["demo"], folder=folder, device=CPU, dtype=torch.float16)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InvalidInput, match="no safetensors files"):
        load(tmp_path)


def test_a_model_beyond_the_memory_is_refused_before_it_is_read(folder: Path) -> None:
    huge: CatalogueModel = replace(CATALOGUE["demo"], parameters=10**13)
    with pytest.raises(Unavailable, match=r"MEDICHAT_QUANTISE=nf4.*GiB are free on cpu"):
        load_model(huge, folder=folder, device=CPU, dtype=torch.float32)


def test_nf4_runs_on_a_cpu_and_takes_a_fraction_of_the_memory(folder: Path) -> None:
    whole, small = load(folder), load(folder, Quantisation.NF4)
    layers = [
        model.get_submodule("model.language_model.layers.0.mlp.up_proj").weight
        for model in (whole.model, small.model)
    ]
    assert layers[1].dtype is torch.uint8
    assert layers[1].nbytes * 8 == layers[0].nbytes
    assert len(greedy(small.model, [2, 300, 301])) > 3


def test_auto_dtype_on_a_cpu_is_float32() -> None:
    assert choose_dtype("auto", CATALOGUE["medgemma-4b"], CPU) is torch.float32
    assert choose_dtype("bfloat16", CATALOGUE["medgemma-4b"], CPU) is torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInput, match="torch sees no GPU"):
        choose_device("cuda")


def test_an_unknown_model_is_refused_with_the_names() -> None:
    with pytest.raises(InvalidInput, match="demo, gemma-1b, medgemma-4b"):
        find_model("medgemma-2b")


def test_every_hub_model_is_pinned_to_a_commit() -> None:
    for entry in CATALOGUE.values():
        assert (entry.hub_id is None) == (entry.revision is None) == (entry.folder is not None)
        assert entry.revision is None or len(entry.revision) == 40
        assert entry.reads_images == (entry.model_class is ModelClass.TEXT_AND_IMAGES)


@pytest.mark.parametrize(
    ("model", "quantise", "in_nf4"),
    [
        ("medgemma-27b", "auto", 26_009_432_064),
        ("medgemma-27b-text", "auto", 25_598_361_600),
        ("medgemma-4b", "auto", 0),
        ("medgemma-4b", "nf4", 3_619_713_024),
        ("medgemma-27b", "none", 0),
    ],
)
def test_weights_are_held_as_the_catalogue_says_unless_the_operator_chooses(
    model: str, quantise: str, in_nf4: int
) -> None:
    settings = Settings(model=model, quantise=quantise, dtype="bfloat16", device="cpu")  # type: ignore[arg-type]
    _, expected = expected_memory(settings)
    # half a byte and the scales for a weight of a linear layer; embeddings stay in bfloat16
    scales = in_nf4 / 64 + 4 * in_nf4 / (64 * 256)
    assert expected == int(in_nf4 / 2 + scales) + (CATALOGUE[model].parameters - in_nf4) * 2


def test_answers_that_would_leave_a_question_no_room_are_refused_at_the_start(folder: Path) -> None:
    settings = Settings(model_path=folder, max_new_tokens=2048, device="cpu")
    with pytest.raises(InvalidInput, match=r"MEDICHAT_MAX_NEW_TOKENS is 2048.* set it to 1024 or less"):
        open_model(settings)


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_an_opened_model_answers(folder: Path, quantise: str) -> None:
    settings = Settings(model_path=folder, quantise=quantise, worker_concurrency=2, device="cpu")  # type: ignore[arg-type]
    opened = open_model(settings)
    opened.engine.start()
    try:
        prompt = opened.text.prompt(
            system=settings.system_prompt,
            turns=[Turn(role="user", text="Hello"), Turn(role="assistant", text="Hello!")],
            question="What is the flu?",
            budget_tokens=opened.context_tokens - 20,
        )
        request = GenerationRequest(request_id="one", prompt_token_ids=prompt.token_ids, max_new_tokens=20)
        tokens = [token_id for token_ids in opened.engine.submit(request) for token_id in token_ids]
        assert 0 < len(tokens) <= 20
    finally:
        opened.engine.close()


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_an_opened_model_sees_pictures(quantise: str) -> None:
    settings = Settings(model="demo", quantise=quantise, worker_concurrency=2, device="cpu")  # type: ignore[arg-type]
    opened = open_model(settings)
    assert opened.pictures is not None
    drawn = draw_picture("left", np.random.default_rng(1))
    opened.engine.start()
    try:
        prompt = opened.text.prompt(
            system=settings.system_prompt,
            turns=[],
            question="On which side is the bright patch?",
            pictures=1,
            budget_tokens=opened.context_tokens - 40,
        )
        request = GenerationRequest(
            request_id="one",
            prompt_token_ids=prompt.token_ids,
            pixel_values=opened.pictures.read([encoded(Image.fromarray(drawn))]),
            max_new_tokens=40,
        )
        said = [token_id for token_ids in opened.engine.submit(request) for token_id in token_ids]
        assert opened.text.decode(said) == answer("left")
    finally:
        opened.engine.close()


@pytest.mark.parametrize(
    ("told", "threads"), [(None, 1), ("2", 2)], ids=["by itself", "as the operator says"]
)
def test_a_small_model_computes_on_one_thread_unless_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        open_model(Settings(model="demo", model_path=folder, device="cpu"))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_layers_that_a_kernel_for_4_bits_cannot_pack_stay_as_they_are() -> None:
    """As on a processor with AVX512_BF16, which most machines have not: the layers are told so."""
    sides = {"even": (64, 32), "rows": (64, 48), "columns": (96, 32)}
    layers = torch.nn.ModuleDict({name: Linear4bit(*each) for name, each in sides.items()})
    for layer in layers.values():
        layer.support_avx512bf16_for_cpu = True
    _keep_odd_layers_whole(layers)
    assert [name for name, layer in layers.items() if layer.support_avx512bf16_for_cpu] == ["even"]

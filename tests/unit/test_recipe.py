"""Recipes: presets that load, knobs that explain themselves, and refusals that name the knob."""

import itertools

import pytest
from pydantic import ValidationError

from shared.catalogue import CATALOGUE, choose_quantisation
from shared.errors import InvalidInput
from shared.training.recipe import (
    Data,
    Recipe,
    default_preset,
    load_preset,
    preset_names,
    read_recipe,
    stored_recipe,
)

COLUMNS = {"question": "Frage", "answer": "Antwort", "group": ""}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_under_its_name(name: str) -> None:
    assert load_preset(name).preset == name


def test_a_preset_that_is_not_there_is_refused_with_the_names() -> None:
    with pytest.raises(InvalidInput, match="quick, qlora, lora-bf16, multi-gpu"):
        load_preset("fast")


@pytest.mark.parametrize(
    ("model", "quantise", "preset"),
    [
        ("demo", "auto", "quick"),
        ("demo", "nf4", "quick"),
        ("medgemma-4b", "auto", "lora-bf16"),
        ("medgemma-4b", "nf4", "qlora"),
        ("medgemma-27b", "auto", "qlora"),
    ],
)
def test_who_chooses_no_preset_starts_from_one_for_the_served_model(
    model: str, quantise: str, preset: str
) -> None:
    assert default_preset(model, choose_quantisation(quantise, CATALOGUE[model])) == preset


def test_a_stored_recipe_is_read_as_it_was_written() -> None:
    recipe = load_preset("qlora")
    assert stored_recipe(recipe.model_dump(mode="json")) == recipe


def test_every_knob_states_its_trade_off() -> None:
    for knob in Recipe.knobs():
        assert len(knob.doc) > 40, knob.name


def test_defaults_of_the_knobs_make_a_recipe() -> None:
    assert Recipe().changed({knob.name: knob.default for knob in Recipe.knobs()}) == Recipe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype: Gemma 3's activations overflow in float16"),
        ({"dora": True, "quantisation": "nf4"}, "dora with nf4"),
        ({"dora": True, "rslora": True}, "dora with rslora"),
        ({"max_tokens": 4096}, "served with at most 2048 tokens"),
        ({"batch_size": 256, "accumulation": 1025}, "a step has at most 262,144 rows"),
        ({"max_steps": 2**31}, "max_steps: Input should be less than or equal to 2147483647"),
        ({"eval_steps": 2**31}, "eval_steps: Input should be less"),
        ({"save_steps": 2**31}, "save_steps: Input should be less"),
        ({"canaries": 1}, "canaries: one alone may look learnt by chance; plant none, or at least 2"),
        ({"r": 0}, "r: Input should be greater than or equal to 1"),
        ({"model": "gpt"}, "there is no model"),
        ({"data": {"columns": {"question": "Frage"}}}, r"data\.columns: columns must name one of: messages;"),
        ({"data": {"columns": {"colour": "x"}}}, r"data\.columns\.colour\S*: Input should be 'messages'"),
        ({"data": {"train": "medichat:d", "columns": COLUMNS}}, "data: columns: .* check it again"),
        ({"lr": 1}, "lr: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_work_is_refused_with_the_knob(changes: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        Recipe().changed(changes)


def test_columns_are_named_for_a_file_beside_a_dataset_of_medichat() -> None:
    data = {"train": "medichat:d", "validation": "held_out.jsonl", "columns": COLUMNS}
    recipe = Recipe().changed({"data": data})
    assert read_recipe(recipe.to_yaml()).data.columns == COLUMNS


def test_a_recipe_survives_its_file() -> None:
    recipe = load_preset("qlora")
    assert read_recipe(recipe.to_yaml()) == recipe


def test_no_text_of_a_recipe_is_lost_or_taken_for_a_comment_in_its_file() -> None:
    title = "Müller's: # 50 % more\n\n- " + "long " * 40 + "'\""
    recipe = Recipe(title=title, packing="on", data=Data(train=f"/data/{title}.jsonl", validation="null"))
    assert read_recipe(recipe.to_yaml()) == recipe


def written_above(text: str, name: str) -> str:
    """The comment above a value of a recipe's file, as one line."""
    lines = [line.strip() for line in text.splitlines()]
    place = next(number for number, line in enumerate(lines) if line.startswith(f"{name}: "))
    above = itertools.takewhile(lambda line: line.startswith("# "), reversed(lines[:place]))
    return " ".join(line.removeprefix("# ") for line in reversed(list(above)))


def test_every_knob_is_explained_above_it_in_the_file_of_a_recipe() -> None:
    text = load_preset("qlora").to_yaml()
    for knob in Recipe.knobs():
        assert written_above(text, knob.name).startswith(knob.doc), knob.name
    assert written_above(text, "schedule").endswith("One of [cosine, linear, constant].")
    assert written_above(text, "packing").endswith("One of [auto, 'on', 'off'].")


def test_where_the_rows_come_from_is_explained_in_the_file_of_a_recipe() -> None:
    text = Recipe().to_yaml()
    assert "`medichat:<dataset id>`" in written_above(text, "train")
    assert "held-out rows" in written_above(text, "validation")
    assert "Share of the rows" in written_above(text, "validation_fraction")
    assert "An empty name: no column means it" in written_above(text, "columns")


def test_a_file_that_is_no_recipe_is_refused() -> None:
    for text in ("- 1", "a: [", ""):
        with pytest.raises(InvalidInput):
            read_recipe(text)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        Recipe().r = 1  # type: ignore[misc]


def test_out_of_memory_halves_the_batch_and_keeps_the_step() -> None:
    recipe = Recipe(batch_size=4, accumulation=2, gradient_checkpointing=False)
    tried = []
    after: Recipe | None = recipe
    while (after := after.after_out_of_memory()) is not None:
        tried.append((after.batch_size, after.accumulation, after.gradient_checkpointing))
    assert tried == [(2, 4, False), (1, 8, False), (1, 8, True)]


@pytest.mark.parametrize("batch_size", [256, 4, 255])
def test_the_most_accumulation_may_grow_when_the_batch_is_halved(batch_size: int) -> None:
    recipe = Recipe(batch_size=batch_size, accumulation=1024)
    rows = batch_size * recipe.accumulation
    while (smaller := recipe.after_out_of_memory()) is not None:
        recipe = smaller
    assert (recipe.batch_size, recipe.accumulation) == (1, rows)
    assert read_recipe(recipe.to_yaml()) == recipe

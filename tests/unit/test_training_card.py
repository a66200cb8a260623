"""The card of an adapter: its lineage, its figures and the terms of its base."""

from typing import Any

import yaml

from services.worker_train.card import code_revision, write_card, write_merged_card
from services.worker_train.rows import Origin
from shared.catalogue import find_model
from shared.prompts import prompt_version
from shared.training.recipe import Recipe

TERMS = "https://developers.google.com/health-ai-developer-foundations/terms"
ADAPTER, MANIFEST, REVISION = "a" * 64, "d" * 64, "e" * 40
#: What the hub is told of MedGemma's licence.
LICENCE = {"license": "other", "license_name": "health-ai-developer-foundations", "license_link": TERMS}


def card(model: str, *, validation_data: Origin | None = None, looked_at: int = 60, **recipe: Any) -> str:
    return write_card(
        entry=find_model(model),
        base_revision=REVISION,
        recipe=Recipe(model=model, seed=7, **recipe),
        passes=(4, 4),
        data=Origin(MANIFEST, "SHA-256 of the dataset's manifest"),
        validation_data=validation_data,
        rows=(1200, 60),
        looked_at=looked_at,
        left_out=(0, 0),
        system="" if recipe.get("system") == "as-is" else "You are helpful.",
        metrics={"steps": 225, "last_loss": 0.51236, "eval_loss": 0.4},
        adapter_sha256=ADAPTER,
        dtype="bfloat16",
    )


def front(text: str) -> dict[str, Any]:
    """What the hub reads."""
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def test_the_card_of_an_adapter_of_medgemma_tells_the_hub_its_base_and_its_licence() -> None:
    assert front(card("medgemma-4b")) == {
        "base_model": "google/medgemma-4b-it",
        "library_name": "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lora", "medichat", "medical"],
        **LICENCE,
    }


def test_the_card_of_an_adapter_of_medgemma_names_its_lineage() -> None:
    text = card("medgemma-4b")
    for line in (
        f"| Adapter | `{ADAPTER}` (SHA-256 of `adapter_model.safetensors`) |",
        "| Base model | MedGemma 4B, `google/medgemma-4b-it` |",
        f"| Base revision | `{REVISION}` |",
        f"| Data | `{MANIFEST}` (SHA-256 of the dataset's manifest) |",
        "| Rows | 1,200 learnt, 60 held out |",
        f"| System text | `{prompt_version('You are helpful.')}`, as the log of served answers names it |",
        "| Seed | 7 |",
        "| Arithmetic | bfloat16 |",
        "| steps | 225 |",
        "| last loss | 0.5124 |",
        "| eval loss | 0.4000 |",
    ):
        assert line in text.splitlines()
    (code,) = [line for line in text.splitlines() if line.startswith("| Code | MediChat ")]
    assert f"`{code_revision()}`" in code


def test_the_card_names_other_data_that_was_held_out_and_the_columns_but_no_file() -> None:
    columns = {"question": "Fräge | `a`", "answer": "Antwort\n```", "group": ""}
    data = {"train": "/ward/Maria_Huber.jsonl", "validation": "Maria_Huber_2.jsonl", "columns": columns}
    text = card("demo", validation_data=Origin(ADAPTER, "SHA-256 of the file"), data=data)
    assert f"| Held-out data | `{ADAPTER}` (SHA-256 of the file) |" in text.splitlines()
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("\n```\n")[0])
    assert shown["data"] == {"columns": columns}
    assert "Huber" not in text
    assert "Held-out data" not in card("demo")
    assert "columns" not in card("demo")


def test_the_card_of_an_adapter_of_medgemma_names_the_terms_that_go_with_it() -> None:
    terms = " ".join(card("medgemma-4b").partition("## Terms\n")[2].split())
    assert "This adapter is a **modified** derivative of MedGemma: it changes the model's weights" in terms
    assert f"subject to the Health AI Developer Foundations Terms of Use found at {TERMS};" in terms
    assert "the use restrictions in them, go with every copy of this adapter" in terms


def test_the_card_names_no_system_text_where_every_row_has_its_own() -> None:
    assert "System text" not in card("demo", system="as-is")


def test_the_card_says_of_how_many_rows_held_out_a_loss_is_the_mean() -> None:
    assert "| Rows | 1,200 learnt, 60 held out |" in card("medgemma-4b")
    told = "60 held out, of which the loss was measured on 51, chosen by the seed |"
    assert told in card("medgemma-4b", looked_at=51)


def test_the_card_says_what_a_loss_is_the_mean_over() -> None:
    assert "Losses are nats per answer token;" in card("demo")
    assert "Losses are nats per token, those of the questions included;" in card("demo", train_on="all")


def test_the_card_of_a_merged_medgemma_keeps_licence_terms_and_lineage() -> None:
    text = write_merged_card(
        entry=find_model("medgemma-4b"),
        base_revision=REVISION,
        adapter_sha256=ADAPTER,
        adapter_card=card("medgemma-4b"),
        dtype="bfloat16",
    )
    assert front(text).items() >= LICENCE.items()
    for fact in (MANIFEST, code_revision(), "| eval loss | 0.4000 |", TERMS):
        assert fact in text


def test_the_cards_of_other_models_have_terms_of_their_own() -> None:
    for model, terms in (
        ("gemma-1b", "https://ai.google.dev/gemma/terms"),
        ("demo", "a toy without medical"),
    ):
        text = card(model)
        assert "license" not in front(text)
        assert terms in text

"""What an admin may ask of a check."""

import pytest
from pydantic import ValidationError

from shared.training.options import DatasetOptions


def test_columns_have_to_make_a_row() -> None:
    assert DatasetOptions(columns={"question": "Frage", "answer": "Antwort"}).columns["question"] == "Frage"
    with pytest.raises(ValidationError, match="answer and question"):
        DatasetOptions(columns={"question": "Frage"})
    with pytest.raises(ValidationError, match="answer and question"):
        DatasetOptions(columns={"question": "Frage", "answer": ""})
    assert DatasetOptions(columns={"group": ""}).columns == {"group": ""}


def test_what_a_row_may_have_besides_may_be_named_alone() -> None:
    besides = {"image": "scan", "group": "case", "system": "role", "context": "history", "input": "case"}
    assert DatasetOptions(columns=besides).columns == besides


def test_the_served_models_tokenizer_counts_unless_another_is_named() -> None:
    assert DatasetOptions().counted_for("medgemma-4b").model == "medgemma-4b"
    assert DatasetOptions(model="demo").counted_for("medgemma-4b").model == "demo"


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation_fraction": 0.51},
        {"validation_fraction": float("nan")},
        {"max_tokens": 15},
        {"max_tokens": 32_769},
        {"phi": "ignore"},
        {"model": "gpt"},
        {"columns": {"colour": "x"}},
        {"colour": "red"},
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DatasetOptions.model_validate(wrong)

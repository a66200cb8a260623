"""Rows and the shape that they make: columns that the first rows lack are read from where they come."""

import json
import re
from typing import Any

import pytest

from services.worker_train.child import Refused
from services.worker_train.reading import Source, no_pictures
from services.worker_train.row_parts import RowProblem
from services.worker_train.shaped_rows import ShapedRows
from services.worker_train.shapes import FIRST_ROWS, Conversation
from shared.training.options import DatasetOptions
from shared.training.recipe import Data

Row = dict[str, Any]
PLAIN = {"question": "Q", "answer": "A"}
SAID = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
CHAT = [{"role": "user", "content": "C"}]
#: The line of the first row that is not among those that decide the shape.
LATE = FIRST_ROWS + 1


def shaped(late: Row, first: Row = PLAIN, *, pictures: bool = False, **chosen: str) -> ShapedRows:
    """As many rows as decide the shape, and one more."""
    rows = enumerate([*[first] * FIRST_ROWS, late], start=1)
    picture = no_pictures if not pictures else lambda _name: b""
    return ShapedRows(Source("jsonl", iter(rows), picture), chosen)


def last(rows: ShapedRows) -> Conversation:
    """The last row as it is read."""
    return [rows.read(row) for _, row in rows][-1]


@pytest.mark.parametrize(
    ("more", "read"),
    [
        ({"image": "a.png"}, Conversation(SAID, "a.png", None)),
        ({"Patient ID": 7}, Conversation(SAID, None, "7")),
        ({"system": "S"}, Conversation([{"role": "system", "content": "S"}, *SAID], None, None)),
        ({"context": "C"}, Conversation([{"role": "user", "content": "C\n\nQ"}, SAID[1]], None, None)),
    ],
)
def test_what_a_row_has_besides_is_read_though_the_first_rows_lack_it(more: Row, read: Conversation) -> None:
    rows = shaped({**PLAIN, **more})
    assert last(rows) == read
    assert set(more) <= set(rows.columns)
    assert set(more) <= set(rows.shape.columns.values())


def test_the_input_of_an_instruction_is_read_though_the_first_rows_lack_it() -> None:
    first = {"instruction": "I", "output": "A"}
    assert last(shaped({**first, "input": "X"}, first)).messages[0]["content"] == "I\n\nX"


def test_an_input_that_the_admin_left_out_is_not_read_where_it_comes_late() -> None:
    first = {"instruction": "I", "output": "A"}
    assert last(shaped({**first, "input": "X"}, first, input="")).messages[0]["content"] == "I"
    asked = {**first, "question": "Q"}
    assert last(shaped({**first, "input": "X"}, asked, input="")).messages[0]["content"] == "I"


@pytest.mark.parametrize(
    ("first", "name", "asked"),
    [
        ({"prompt": "P", "completion": "A"}, "context", "P"),
        ({"prompt": "P", "completion": "A"}, "input", "P"),
        ({"prompt": "P", "response": "A"}, "question", "P"),
        ({"instruction": "P", "input": "X", "output": "A"}, "context", "P\n\nX"),
        ({"instruction": "P", "output": "A"}, "q", "P"),
    ],
)
@pytest.mark.parametrize("value", [{"contexts": ["C"]}, CHAT, 3, True, [0.5]])
def test_what_is_named_like_more_of_the_question_and_is_no_text_is_not_read(
    first: Row, name: str, asked: str, value: Any
) -> None:
    more = {**first, name: value}
    assert last(shaped(more, more)).messages[0]["content"] == asked
    assert last(shaped(more, first)).messages[0]["content"] == asked
    for held in (["C"], [{"title": "T", "text": "C"}, None]):
        text = {**first, name: held}
        assert last(shaped(text, text)).messages[0]["content"] != asked


def test_texts_are_not_passed_over_because_the_first_rows_held_none() -> None:
    first = {"prompt": "P", "completion": "A", "context": 3}
    late = {**first, "context": "C"}
    with pytest.raises(Refused, match=f"Line {LATE} has text in the column 'context'"):
        last(shaped(late, first))
    assert last(shaped(late, first, context="context")).messages[0]["content"] == "C\n\nP"
    assert last(shaped(late, first, context="")).messages[0]["content"] == "P"


@pytest.mark.parametrize(
    ("first", "more"),
    [
        ({"instruction": "I", "response": "A", "Question": 3}, {"Question": "Q"}),
        ({"instruction": "I", "output": "A", "question": "Q"}, {"question": None, "query": "Q"}),
        ({"instruction": "I", "output": "A", "query": "Q"}, {"question": "Q"}),
        ({"prompt": "P", "completion": "A", "context": 3}, {"context": "C"}),
        ({"question": "Q", "answer": "A", "image": "a.png"}, {"image": "", "picture": "b.png"}),
    ],
)
def test_what_a_refusal_says_to_choose_may_be_chosen(first: Row, more: Row) -> None:
    late = {**first, **more}
    with pytest.raises(Refused) as refusal:
        last(shaped(late, first))
    choices = [json.loads(text) for text in re.findall(r"\{[^}]*\}", refusal.value.detail)]
    assert choices
    for choice in choices:
        chosen = DatasetOptions(columns=choice).columns
        assert Data(columns=choice).columns == chosen
        assert last(shaped(late, first, **chosen)).messages[-1]["content"] == "A"


def test_a_number_is_read_as_the_input_that_its_instruction_is_for() -> None:
    row = {"instruction": "Square it.", "input": 3, "output": "9"}
    assert last(shaped(row, row)).messages[0]["content"] == "Square it.\n\n3"


@pytest.mark.parametrize("part", ["context", "system", "group"])
def test_what_is_no_text_in_a_column_of_texts_is_told_with_its_column(part: str) -> None:
    first = {"prompt": "P", "completion": "A", part: "C"}
    with pytest.raises(RowProblem) as caught:
        last(shaped({**first, part: {"a": "C"}}, first))
    assert f"The column '{part}' is read as {part} and is no text." in str(caught.value.advice)
    assert last(shaped({**first, part: {"a": "C"}}, first, **{part: ""})).messages[0]["content"] == "P"


def test_a_late_row_is_text_too_where_no_column_is_the_image() -> None:
    late = {**PLAIN, "question": "<image> Q", "context": "", "picture": "a.png"}
    assert last(shaped(late, image="")) == Conversation(SAID, None, None)


def test_the_name_of_a_file_is_a_late_picture_only_where_pictures_lie_beside_the_rows() -> None:
    row = {**PLAIN, "file_name": "a.png"}
    assert last(shaped(row)).image is None
    assert last(shaped(row, pictures=True)).image == "a.png"
    assert last(shaped({**row, "file_name": b"png"})).image == b"png"


def test_a_late_column_that_means_nothing_is_listed_and_changes_nothing() -> None:
    rows = shaped({**PLAIN, "prompt": "P", "note": "N"})
    assert last(rows).messages[0]["content"] == "Q"
    assert list(rows.columns) == ["question", "answer", "prompt", "note"]
    assert rows.shape.columns == {"question": "question", "answer": "answer"}


def test_a_late_column_is_not_read_as_what_the_admin_said_no_column_is() -> None:
    assert last(shaped({**PLAIN, "group": "Anatomy"}, group="")).group is None


def test_a_late_column_that_would_go_before_one_that_was_read_is_refused_with_its_line() -> None:
    first = {**PLAIN, "patient": 1}
    with pytest.raises(Refused, match=f"'group' first appears on line {LATE}, .* read from 'patient'"):
        list(shaped({**first, "group": "x"}, first))
    assert last(shaped({**first, "group": "x"}, first, group="patient", **{n: n for n in PLAIN})).group == "1"


@pytest.mark.parametrize("row", [1, LATE])
@pytest.mark.parametrize(
    ("known", "other"),
    [
        ("patient_id", "subject_id"),
        ("Patient ID", "patient_id"),
        ("image", "picture"),
        ("context", "passage"),
        ("system", "system_prompt"),
    ],
)
def test_what_a_row_holds_under_another_name_than_the_rows_before_is_never_passed_over(
    row: int, known: str, other: str
) -> None:
    first: Row = {**PLAIN, known: "1", other: None}
    rows = [first] * (row - 1) + [{**PLAIN, known: "", other: "2"}, *[first] * LATE]
    source = Source("jsonl", enumerate(rows, start=1), no_pictures)
    with pytest.raises(Refused, match=f"Line {row} has nothing in the column '{known}'.* in '{other}'"):
        list(ShapedRows(source, {}))


def test_a_row_that_has_both_names_or_neither_is_read_from_the_one() -> None:
    first = {**PLAIN, "patient_id": "1", "subject_id": "x"}
    assert last(shaped({**PLAIN, "subject_id": ""}, first)).group is None
    assert last(shaped(first, first)).group == "1"
    assert last(shaped({**PLAIN, "subject_id": "2"}, first, group="patient_id")).group is None


@pytest.mark.parametrize(("part", "read"), [("image", "scan"), ("group", "case"), ("context", "history")])
def test_what_a_row_may_have_besides_may_be_chosen_though_the_first_rows_lack_it(
    part: str, read: str
) -> None:
    rows = shaped({**PLAIN, read: "x"}, **{part: read})
    found = last(rows)
    assert "x" in (found.image, found.group, found.messages[0]["content"].partition("\n")[0])
    assert rows.shape.columns[part] == read


def test_a_chosen_column_that_no_row_has_is_refused_at_the_end() -> None:
    rows = shaped({**PLAIN, "note": "N"}, image="scan")
    with pytest.raises(
        Refused, match=r"no column 'scan' to read as image in any row.*answer, note"
    ) as refusal:
        list(rows)
    assert refusal.value.reason == "unknown-column"


def test_what_every_row_needs_is_chosen_among_the_first_rows() -> None:
    with pytest.raises(Refused, match=f"no column 'Frage' .* in the first {FIRST_ROWS} rows"):
        shaped({"Frage": "Q", "answer": "A"}, question="Frage", answer="answer")


def test_names_of_late_columns_fill_no_memory() -> None:
    rows = ({**PLAIN, f"column {number}": 1} for number in range(1000))
    shaped_rows = ShapedRows(Source("jsonl", enumerate(rows, start=1), no_pictures), {})
    assert len(list(shaped_rows)) == 1000
    assert len(shaped_rows.columns) == 200


def test_a_chosen_column_may_come_after_more_names_than_are_listed() -> None:
    rows = ({**PLAIN, f"column {number}": 1} for number in range(1000))
    shaped_rows = ShapedRows(Source("jsonl", enumerate(rows, start=1), no_pictures), {"group": "column 900"})
    assert [line for line, row in shaped_rows if shaped_rows.read(row).group] == [901]

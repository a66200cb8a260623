"""The shapes of conversations: recognised by their columns, turned into one form."""

import json
from typing import Any

import pytest

from services.worker_train.child import Refused
from services.worker_train.first_rows import held_in
from services.worker_train.row_parts import RowProblem
from services.worker_train.shapes import Conversation, recognise
from shared.training.report import Reason

ASKED, ANSWERED = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}


def read(row: dict[str, Any], **chosen: str) -> Conversation:
    return recognise(row, chosen).read(row)


CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": CHAT}, "chat"),
        ({"messages": json.dumps(CHAT)}, "chat"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ANSWERED]}, "chat"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "chat"),
        ({"prompt": "Q", "completion": "A"}, "prompt_completion"),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, "prompt_completion"),
        ({"prompt": " Q ", "response": "A\n"}, "prompt_completion"),
        ({"instruction": "Q", "output": "A"}, "instruction_output"),
        ({"instruction": "Q", "input": "", "output": "A"}, "instruction_output"),
        ({"question": "Q", "answer": "A", "source": "x"}, "question_answer"),
        ({"Query": "Q", "Response": "A"}, "question_answer"),
        ({"input": "Q", "output": "A"}, "question_answer"),
        ({"q": "Q", "a": "A"}, "question_answer"),
        ({"prompt": "template", "question": "Q", "answer": "A"}, "question_answer"),
        ({"prompt": "Q", "chosen": [ASKED, ANSWERED], "rejected": [ASKED]}, "prompt_completion"),
        ({"prompt": "Q", "chosen": [ANSWERED]}, "prompt_completion"),
        ({"prompt": [ASKED], "chosen": [ASKED, ANSWERED]}, "prompt_completion"),
        ({"prompt": [ASKED], "completion": "A"}, "prompt_completion"),
    ],
)
def test_a_shape_is_recognised_and_read(row: dict[str, Any], shape: str) -> None:
    assert recognise(row, {}).name == shape
    assert read(row).messages == [ASKED, ANSWERED]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        ({"instruction": "I", "input": "X", "output": "A"}, "I\n\nX"),
        ({"instruction": "I", "context": "C", "response": "A"}, "I\n\nC"),
        ({"instruction": "I", "input": "X", "context": "C", "output": "A"}, "I\n\nC\n\nX"),
        ({"instruction": "I", "question": "Q", "answer": "A"}, "I\n\nQ"),
        ({"question": "Q", "context": "C", "answer": "A"}, "C\n\nQ"),
        ({"prompt": "P", "context": "C", "response": "A"}, "C\n\nP"),
        ({"prompt": "P", "input": "X", "response": "A"}, "P\n\nX"),
        ({"prompt": [{"role": "user", "content": "P"}], "context": "C", "completion": "A"}, "C\n\nP"),
    ],
)
def test_all_that_is_asked_goes_into_the_question(row: dict[str, Any], asked: str) -> None:
    assert read(row).messages == [{"role": "user", "content": asked}, ANSWERED]


def test_the_shape_that_leaves_less_of_what_is_asked_unread_is_taken_and_says_what_it_leaves() -> None:
    columns = ["prompt", "question", "answer"]
    shape = recognise(columns, {})
    assert (shape.name, shape.unread(columns)) == ("question_answer", ["prompt"])
    columns = ["instruction", "input", "output", "prompt", "note"]
    shape = recognise(columns, {})
    assert (shape.name, shape.unread(columns)) == ("instruction_output", ["prompt"])
    assert recognise(["messages", "prompt"], {}).unread(["messages", "prompt"]) == []


@pytest.mark.parametrize(
    "columns",
    [["question", "A", "B", "C", "D"], ["q", "A", "B", "C", "D"], ["question", "A"], ["question", "q", "a"]],
)
def test_the_first_of_several_options_is_not_taken_for_the_answer(columns: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        recognise([*columns, "correct"], {})
    assert caught.value.reason == "unknown-shape"
    assert recognise([*columns, "answer"], {}).columns["answer"] == "answer"


def test_system_image_and_group_go_with_every_shape() -> None:
    extras = {"system": "S", "image": "a.png", "patient_id": 7}
    for row in ({"messages": CHAT}, {"prompt": "Q", "completion": "A"}, {"question": "Q", "answer": "A"}):
        found = read({**row, **extras})
        assert found.messages == [{"role": "system", "content": "S"}, ASKED, ANSWERED]
        assert (found.image, found.group) == ("a.png", "7")


def test_an_image_is_read_as_datasets_writes_it_and_its_mark_is_no_text() -> None:
    row = {"question": "<image>\nQ", "answer": "A", "image": {"bytes": b"png", "path": None}}
    assert read(row) == Conversation([ASKED, ANSWERED], b"png", None)


def test_what_is_not_a_number_is_nothing_beside_the_texts_too() -> None:
    nothing = float("nan")
    row = {"question": "Q", "context": nothing, "answer": 5.5, "image": nothing, "group": nothing}
    assert read(row) == Conversation([ASKED, {"role": "assistant", "content": "5.5"}], None, None)


def test_a_chosen_column_goes_before_what_the_names_say() -> None:
    row = {"question": "no", "Frage": "Q", "answer": "A", "messages": CHAT}
    found = recognise(row, {"question": "Frage"})
    assert found.name == "question_answer"
    assert found.read(row).messages == [ASKED, ANSWERED]


def test_a_part_may_be_no_column_whatever_the_names_say() -> None:
    row = {"question": "Q", "answer": "A", "patient": "Anatomy", "image": "a.png"}
    assert read(row).group == "Anatomy"
    assert read(row, group="", image="") == Conversation([ASKED, ANSWERED], None, None)


DOLLY = {"instruction": "I", "context": "C", "output": "A"}
ALPACA = {"instruction": "I", "input": "X", "output": "A"}


@pytest.mark.parametrize(
    ("row", "chosen", "asked"),
    [
        (
            {"question": "Q", "context": "C", "answer": "A"},
            {"instruction": "question", "output": "answer", "input": "context"},
            "Q\n\nC",
        ),
        (DOLLY, {"input": "context"}, "I\n\nC"),
        (DOLLY, {"group": "context"}, "I\n\nC"),
    ],
)
def test_a_chosen_column_is_in_the_question_once(
    row: dict[str, Any], chosen: dict[str, str], asked: str
) -> None:
    assert read(row, **chosen).messages == [{"role": "user", "content": asked}, ANSWERED]


def test_a_context_that_was_chosen_as_the_system_text_is_in_no_question() -> None:
    found = read({"question": "Q", "context": "C", "answer": "A"}, system="context")
    assert found.messages == [{"role": "system", "content": "C"}, ASKED, ANSWERED]


@pytest.mark.parametrize(
    ("row", "chosen", "asked"),
    [
        (ALPACA, {"input": ""}, "I"),
        ({**ALPACA, "note": "N"}, {"input": "note"}, "I\n\nN"),
        (
            {**ALPACA, "note": "N"},
            {"instruction": "instruction", "output": "output", "input": "note"},
            "I\n\nN",
        ),
        (DOLLY, {"context": ""}, "I"),
        ({"instruction": "I", "question": "Q", "answer": "A"}, {"question": ""}, "I"),
        ({"prompt": "I", "input": "X", "output": "A"}, {"input": ""}, "I"),
    ],
)
def test_what_the_admin_left_out_is_in_no_question(
    row: dict[str, Any], chosen: dict[str, str], asked: str
) -> None:
    assert read(row, **chosen).messages == [{"role": "user", "content": asked}, ANSWERED]


def test_an_input_is_the_question_where_there_is_no_other() -> None:
    assert read({"input": "Q", "output": "A"}, input="").messages == [ASKED, ANSWERED]


def test_a_subject_is_what_is_taught_and_no_patient() -> None:
    assert read({"question": "Q", "answer": "A", "subject": "Anatomy"}).group is None
    assert read({"question": "Q", "answer": "A", "subject_id": "7"}).group == "7"


@pytest.mark.parametrize("name", ["image_name", "img_name", "img_path", "Figure_path", "image file"])
def test_a_picture_is_known_by_the_names_that_published_sets_give_it_where_it_can_be(name: str) -> None:
    row = {"question": "Q", "answer": "A", name: "a.png"}
    assert recognise(row, {}, pictures=True).read(row).image == "a.png"
    assert read(row).image is None
    for picture in (b"png", {"bytes": b"png", "path": None}, [{"bytes": b"png"}]):
        row[name] = picture
        assert recognise(row, {}, held=held_in([row])).read(row).image == b"png"


def chat_with(*pictures: dict[str, Any], **columns: Any) -> dict[str, Any]:
    """A row whose question holds these parts besides its text."""
    asked = {"role": "user", "content": [*pictures, {"type": "text", "text": "Q", "image": None}]}
    return {"messages": [asked, ANSWERED], **columns}


@pytest.mark.parametrize(
    ("row", "image"),
    [
        (chat_with({"type": "image", "image": "a.png"}), "a.png"),
        (chat_with({"type": "image", "text": None, "image": {"bytes": b"png", "path": None}}), b"png"),
        (chat_with({"type": "image", "path": "a.png"}), "a.png"),
        (chat_with({"type": "image_url", "image_url": "a.png"}), "a.png"),
        (chat_with({"type": "image"}, image="a.png"), "a.png"),
        (chat_with({"type": "image", "index": 0, "text": None}, images=[{"bytes": b"png"}]), b"png"),
        ({"messages": json.dumps(chat_with({"type": "image", "image": "a.png"})["messages"])}, "a.png"),
    ],
)
def test_the_picture_of_a_turn_is_the_rows(row: dict[str, Any], image: str | bytes) -> None:
    assert read(row) == Conversation([ASKED, ANSWERED], image, None)


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (chat_with({"type": "image_url", "image_url": {"url": "https://host/a.png"}}), "not fetched"),
        (chat_with({"type": "image", "source": {"type": "base64", "data": "x"}}), "not fetched"),
        (chat_with(*[{"type": "image", "image": "a.png"}] * 2), "several pictures"),
        (chat_with({"type": "image"}), "names none"),
        (chat_with({"type": "image"}, image=None), "names none"),
        ({"question": "<image> Q", "answer": "A"}, "names none"),
        ({"question": "Q", "answer": "A", "image": {"url": "https://host/a.png"}}, "not fetched"),
        ({"question": "Q", "answer": "A", "image": {"bytes": None, "src": "a.png"}}, "not fetched"),
    ],
)
def test_a_row_whose_picture_cannot_be_had_is_not_used_without_it(row: dict[str, Any], advice: str) -> None:
    with pytest.raises(RowProblem) as caught:
        read(row)
    assert caught.value.reason is Reason.BROKEN_IMAGE
    assert advice in str(caught.value.advice)


@pytest.mark.parametrize("nothing", [{"bytes": None, "path": None}, {"bytes": b""}, b"", ""])
def test_a_picture_that_is_nothing_is_none(nothing: Any) -> None:
    assert read({"question": "Q", "answer": "A", "image": nothing}).image is None
    assert read(chat_with({"type": "image", "image": nothing})) == Conversation([ASKED, ANSWERED], None, None)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "<image>\nQ", "answer": "A", "image": "a.png"},
        chat_with({"type": "image"}, image="a.png"),
        chat_with({"type": "image_url", "image_url": {"url": "https://host/a.png"}}),
    ],
)
def test_a_row_is_text_where_no_column_is_the_image(row: dict[str, Any]) -> None:
    assert read(row, image="") == Conversation([ASKED, ANSWERED], None, None)


def test_the_name_of_a_file_is_a_picture_only_where_pictures_lie_beside_the_rows() -> None:
    row = {"question": "Q", "answer": "A", "file_name": "leaflet.pdf"}
    assert read(row).image is None
    assert recognise(row, {}, pictures=True).read(row).image == "leaflet.pdf"
    assert recognise({**row, "image": "a.png"}, {}, pictures=True).columns["image"] == "image"


def test_what_fits_no_shape_is_refused_with_the_columns_and_the_shapes() -> None:
    with pytest.raises(Refused) as caught:
        recognise(["title", "abstract"], {})
    assert caught.value.reason == "unknown-shape"
    assert "title, abstract" in caught.value.detail
    assert "question (+ context) + answer" in caught.value.detail


def test_a_chosen_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refused, match="no column 'Frage'"):
        recognise(["question", "answer"], {"question": "Frage"})


@pytest.mark.parametrize(
    "first",
    [
        ["What helps against the itch?", "Cool cloths."],
        ["question", "Jane Roe"],
        ["Roe, Jane", "gout"],
        ["jane@example.org", "gout"],
        ["4711", "gout"],
        ["A1234567", "gout"],
        ["2024-03-01", "gout"],
        ["Elizabeth", "gout"],
        ["x" * 41, "gout"],
    ],
)
def test_words_of_a_first_row_in_place_of_a_header_are_not_repeated(first: list[str]) -> None:
    for chosen in ({}, {"question": "Frage"}):
        with pytest.raises(Refused, match=r"column 1, column 2 .*header line missing") as caught:
            recognise(first, chosen)
        assert not any(word in caught.value.detail for word in first if word != "question")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ASKED], Reason.ROLES),
        ([ANSWERED, ASKED], Reason.ROLES),
        ([ASKED, ASKED], Reason.ROLES),
        ([], Reason.ROLES),
        ([ASKED, {"role": "tool", "content": "x"}], Reason.ROLES),
        ([ASKED, {"role": "system", "content": "x"}], Reason.ROLES),
        ([ASKED, {"role": "assistant", "content": " "}], Reason.EMPTY_ANSWER),
        ([ASKED, {"role": "assistant"}], Reason.EMPTY_ANSWER),
        ([{"role": "user", "content": ""}, ANSWERED], Reason.EMPTY_QUESTION),
        ([ASKED, {"role": "assistant", "content": {"a": 1}}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": [{"role": "assistant", "content": "A"}]}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": [{"type": "audio", "text": None}]}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": "\ud83d"}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": "A\0"}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": True}], Reason.NOT_TEXT),
        ([ASKED, {"role": "assistant", "content": float("nan")}], Reason.EMPTY_ANSWER),
        ([ASKED, {"role": "assistant", "content": [float("inf")]}], Reason.EMPTY_ANSWER),
        ([{"role": "user", "content": float("-inf")}, ANSWERED], Reason.EMPTY_QUESTION),
        (json.dumps([ASKED, {"role": "assistant", "content": float("nan")}]), Reason.EMPTY_ANSWER),
        ([ASKED, {"role": "assistant", "content": json.loads("[" * 450 + "]" * 450)}], Reason.NOT_TEXT),
        (None, Reason.NOT_TEXT),
        ("no json", Reason.NOT_TEXT),
        ([1, 2], Reason.NOT_TEXT),
    ],
)
def test_a_row_that_cannot_be_used_says_why(messages: Any, reason: Reason) -> None:
    with pytest.raises(RowProblem) as caught:
        read({"messages": messages})
    assert caught.value.reason is reason


def test_a_group_that_is_no_text_cannot_be_used() -> None:
    with pytest.raises(RowProblem) as caught:
        read({"messages": CHAT, "patient": "\ud800"})
    assert caught.value.reason is Reason.NOT_TEXT


def test_two_system_texts_are_one_too_many() -> None:
    with pytest.raises(RowProblem):
        read({"messages": [{"role": "system", "content": "S"}, *CHAT], "system": "S"})


def test_an_instruction_without_words_is_an_empty_question_even_with_context() -> None:
    with pytest.raises(RowProblem) as caught:
        read({"question": "", "context": "C", "answer": "A"})
    assert caught.value.reason is Reason.EMPTY_QUESTION

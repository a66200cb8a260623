"""Recognises how a dataset writes its conversations, and turns its rows into one form. It judges no content.

Known shapes: chat (`messages`, or ShareGPT's `conversations` of from/value), prompt and completion,
instruction with input and output, question and answer with context. Each may have a system text, an image and
a group (the patient, so that one patient's rows stay together).
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.worker_train.child import Refused
from shared.training.report import Reason

#: Rows looked at before it is decided which columns there are.
FIRST_ROWS = 100
_ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog"),
    "instruction": ("instruction",),
    "input": ("input", "context"),
    "output": ("output", "response", "answer"),
    "prompt": ("prompt",),
    "completion": ("completion", "response", "answer", "output", "chosen"),
    "question": ("question", "query", "q", "patient_question", "input"),
    "context": ("context", "passage"),
    "answer": ("answer", "response", "a", "output", "reply", "long_answer"),
    "system": ("system", "system_prompt"),
    "image": ("image", "image_path", "img", "picture", "images"),
    "group": ("group", "patient", "patient_id", "subject", "subject_id", "group_id", "person_id"),
}
#: Names a picture where pictures lie beside the rows; elsewhere it may be any file's.
_BESIDE = "file_name"
#: Each shape with the parts it needs; the first that fits is taken.
_SHAPES: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "instruction_output": ("instruction", "output"),
    "question_answer": ("question", "answer"),
}
#: What a shape may have besides.
_EXTRAS: dict[str, tuple[str, ...]] = {"instruction_output": ("input",), "question_answer": ("context",)}
_COMMON = ("system", "image", "group")
_KNOWN = (
    "messages [{role, content}] or conversations [{from, value}]; prompt + completion; "
    "instruction (+ input) + output; question (+ context) + answer"
)
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "patient": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "doctor": "assistant",
    "chatbot": "assistant",
}
#: How the name of a column looks: one word, without a number that could be somebody's; or as a CSV's column
#: without a name is called.
_NAME = re.compile(r"column \d{1,3}|(?!.*\d{4})(?!.{41})(?![\d\W_]+$)\w[\w.-]*")
_MOST_LISTED = 30
_IMAGE_MARKS = ("<image>", "<start_of_image>")

Message = dict[str, str]


class RowProblem(Exception):
    """This row cannot be used; `advice` is None when the reason's own says all."""

    def __init__(self, reason: Reason, advice: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class Clash(Exception):
    """A late column would be read as a part that another column was read as before."""

    def __init__(self, part: str, known: str, late: str) -> None:
        super().__init__(part)
        self.part, self.known, self.late = part, known, late


@dataclass(frozen=True)
class Conversation:
    """A row in the one form: alternating messages, the last by the assistant."""

    messages: list[Message]
    #: What the row names as its picture: a file's name, or its bytes.
    image: str | bytes | None
    group: str | None


@dataclass(frozen=True)
class Shape:
    """One way of writing conversations."""

    name: str
    #: The part that a column is read as → the column.
    columns: Mapping[str, str]

    def read(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation. Raises RowProblem."""
        messages = _READERS[self.name](self, row)
        if system := self.text(row, "system"):
            if messages[:1] and messages[0]["role"] == "system":
                raise RowProblem(Reason.ROLES, "The row has two system texts; keep one.")
            messages = [_said("system", system), *messages]
        image = _image(self.value(row, "image"))
        if image is not None:
            messages = [_said(message["role"], _without_marks(message["content"])) for message in messages]
        _check(messages)
        return Conversation(messages, image, self.text(row, "group") or None)

    def with_late(
        self, names: Iterable[str], chosen: Mapping[Any, str], *, pictures: bool = False
    ) -> "Shape":
        """The shape once there are these columns, too, which no row had before.

        A part that this shape may have besides and that nothing is read as yet becomes such a column, so that
        earlier rows read as they did. Otherwise as `recognise`. Raises Clash.
        """
        found = _by_name([*self.columns.values(), *names], pictures)
        columns = dict(self.columns)
        for part in (*_EXTRAS.get(self.name, ()), *_COMMON):
            if part in found and part not in chosen:
                known = columns.setdefault(part, found[part])
                if known != found[part]:
                    raise Clash(part, known, found[part])
        return self if columns == self.columns else Shape(self.name, columns)

    def value(self, row: Mapping[str, Any], part: str) -> Any:
        """What the row holds in the column that is read as `part`; None when there is none."""
        return row.get(self.columns[part]) if part in self.columns else None

    def text(self, row: Mapping[str, Any], part: str) -> str:
        """The same as text. Raises RowProblem."""
        return _text(self.value(row, part))


def recognise(columns: Iterable[str], chosen: Mapping[Any, str], *, pictures: bool = False) -> Shape:
    """The shape that these columns make.

    Args:
        columns: their names.
        chosen: part → column, which goes before what the names say; "" for a part that no column is.
        pictures: whether pictures can lie beside the rows.

    Raises:
        Refused: none fits, or a chosen column is not there.
    """
    seen = list(columns)
    named = {part: column for part, column in chosen.items() if column}
    for part, column in named.items():
        if column not in seen:
            raise Refused(
                "unknown-column",
                f"There is no column {column[:40]!r} to read as {part} in the first {FIRST_ROWS} rows. The "
                f"columns: {_listed(seen)}.",
            )
    found = {part: column for part, column in _by_name(seen, pictures).items() if part not in chosen} | named
    for name, needed in _SHAPES.items():
        parts = (*needed, *_EXTRAS.get(name, ()), *_COMMON)
        if all(part in found for part in needed) and all(part in parts for part in named):
            return Shape(name, {part: found[part] for part in parts if part in found})
    raise Refused(
        "unknown-shape",
        f"The rows fit no known shape. The columns: {_listed(seen)}. Known: {_KNOWN}. Rename the columns, or "
        "say which column is which: in the options, or in a recipe's data.columns.",
    )


def _by_name(columns: list[str], pictures: bool) -> dict[str, str]:
    plain = {column.strip().lower().replace(" ", "_"): column for column in reversed(columns)}
    found = {}
    for part, names in _ALIASES.items():
        if name := next((name for name in names if name in plain), None):
            found[part] = plain[name]
    if pictures and "image" not in found and _BESIDE in plain:
        found["image"] = plain[_BESIDE]
    return found


def _listed(columns: list[str]) -> str:
    """The columns by name, or by number: where a header line is missing, a row's words stand in its place."""
    shown = columns[:_MOST_LISTED]
    if all(map(_is_name, shown)):
        return ", ".join(shown) or "none"
    numbered = ", ".join(f"column {place}" for place in range(1, len(shown) + 1))
    return f"{numbered} (not named here, for they do not look like names; is the header line missing?)"


def _is_name(column: str) -> bool:
    from shared.privacy import phi  # it takes a while to load, and only a refusal needs it

    return _NAME.fullmatch(column) is not None and not phi.find(column)


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _read_chat(shape: Shape, row: Mapping[str, Any]) -> list[Message]:
    return _turns(shape.value(row, "messages"))


def _read_prompt_completion(shape: Shape, row: Mapping[str, Any]) -> list[Message]:
    prompt, completion = shape.value(row, "prompt"), shape.value(row, "completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*_turns(prompt), *_turns(completion)]
    return [_said("user", _text(prompt)), _said("assistant", _text(completion))]


def _read_instruction_output(shape: Shape, row: Mapping[str, Any]) -> list[Message]:
    question = "\n\n".join(filter(None, (shape.text(row, "instruction"), shape.text(row, "input"))))
    return [_said("user", question), _said("assistant", shape.text(row, "output"))]


def _read_question_answer(shape: Shape, row: Mapping[str, Any]) -> list[Message]:
    question = shape.text(row, "question")
    if question:
        question = "\n\n".join(filter(None, (shape.text(row, "context"), question)))
    return [_said("user", question), _said("assistant", shape.text(row, "answer"))]


_READERS: dict[str, Callable[[Shape, Mapping[str, Any]], list[Message]]] = {
    "chat": _read_chat,
    "prompt_completion": _read_prompt_completion,
    "instruction_output": _read_instruction_output,
    "question_answer": _read_question_answer,
}


def _turns(value: Any) -> list[Message]:
    """The turns of a chat, however they call role and content. Raises RowProblem."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowProblem(Reason.NOT_TEXT, "The messages are not a JSON list.") from None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowProblem(Reason.NOT_TEXT, "The messages are not a list of {role, content}.")
    turns = []
    for turn in value:
        role = _ROLES.get(str(turn.get("role", turn.get("from"))).lower())
        if role is None:
            raise RowProblem(Reason.ROLES, "A turn has a role other than system, user and assistant.")
        turns.append(_said(role, _text(turn.get("content", turn.get("value")))))
    return turns


def _text(value: Any) -> str:
    """Text, trimmed; the text parts of a list are joined, and nothing is "". Raises RowProblem."""
    if _is_missing(value):
        return ""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if any(isinstance(part, list) for part in parts):
            raise RowProblem(Reason.NOT_TEXT)
        return "\n".join(filter(None, (_text(part) for part in parts)))
    if isinstance(value, dict | bytes):
        raise RowProblem(Reason.NOT_TEXT)
    if isinstance(value, bool):
        raise RowProblem(Reason.NOT_TEXT, "True and false are no text; write it in words.")
    text = str(value).strip()
    if "\0" in text:
        raise RowProblem(Reason.NOT_TEXT, "A text holds a NUL character; remove it.")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RowProblem(Reason.NOT_TEXT, "A text holds half of a surrogate pair; write it again as UTF-8.")
    return text


def _is_missing(value: Any) -> bool:
    """Whether it is nothing, or the not-a-number (or infinity) that stands for nothing in tables."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _image(value: Any) -> str | bytes | None:
    """A file's name or a picture's bytes, as it stands or as `datasets` writes it. Raises RowProblem."""
    if isinstance(value, list):
        if len(value) > 1:
            raise RowProblem(Reason.BROKEN_IMAGE, "The row has several pictures; one can be used.")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if _is_missing(value) or value == "":
        return None
    if not isinstance(value, str | bytes):
        raise RowProblem(Reason.BROKEN_IMAGE)
    return value


def _without_marks(text: str) -> str:
    for mark in _IMAGE_MARKS:
        text = text.replace(mark, "")
    return text.strip()


def _check(messages: list[Message]) -> None:
    turns = messages[1:] if messages[:1] and messages[0]["role"] == "system" else messages
    if not turns or len(turns) % 2:
        raise RowProblem(Reason.ROLES, "The conversation must end with the assistant's answer.")
    for place, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[place % 2]:
            raise RowProblem(Reason.ROLES)
        if not turn["content"]:
            raise RowProblem(Reason.EMPTY_ANSWER if place % 2 else Reason.EMPTY_QUESTION)

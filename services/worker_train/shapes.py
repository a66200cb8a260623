"""Recognises how a dataset writes its conversations, and turns its rows into one form. It judges no content.

Known shapes: chat (`messages`, or ShareGPT's `conversations` of from/value), instruction with input and
output, question and answer with context, prompt and completion. Each may have a system text, an image and a
group (the patient, so that one patient's rows stay together).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from services.worker_train.child import Refused
from services.worker_train.column_names import all_by_name, by_name, is_makeshift, listed
from services.worker_train.first_rows import Held, is_text
from services.worker_train.row_parts import Message, RowParts, RowProblem, check, is_nothing, joined, said
from shared.training.report import Reason

#: Rows looked at before it is decided which columns there are.
FIRST_ROWS = 100
#: Each shape with the parts it needs. Of those that fit, the first is taken of those that leave the least of
#: what is asked unread.
_SHAPES: dict[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "instruction_output": ("instruction", "output"),
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
}
#: What a shape may have besides.
_EXTRAS: dict[str, tuple[str, ...]] = {
    "instruction_output": ("context", "input", "question"),
    "question_answer": ("context",),
    "prompt_completion": ("context", "input"),
}
#: Of these, what is read by its name only where it holds text: a number is likelier a key, or a count.
_IF_TEXT: dict[str, tuple[str, ...]] = {
    "instruction_output": ("context", "question"),
    "prompt_completion": ("context", "input"),
}
_COMMON = ("system", "image", "group")
#: What may belong to what is asked.
_ASKED = ("instruction", "prompt", "question", "context", "input")
#: Parts that no row needs: the first rows may lack them all.
_BESIDES = (*_COMMON, "context", "input")
_UNSEEN = Held()
_KNOWN = (
    "messages [{role, content}] or conversations [{from, value}]; prompt + completion; "
    "instruction (+ input) + output; question (+ context) + answer"
)


class Clash(Exception):
    """A column that comes late is named like a part, and goes before the one that is read as it."""

    def __init__(self, part: str, known: str, other: str) -> None:
        super().__init__(part)
        self.part, self.known, self.other = part, known, other


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
    #: Whether a row may have a picture; where it may not, what the texts say of one is passed over.
    pictures: bool = True
    #: Parts that are not read → the column that is named like it and held no text so far.
    left_out: Mapping[str, str] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any]) -> Conversation:
        """The row as a conversation. Raises RowProblem."""
        parts = RowParts(row, self.columns)
        messages = _READERS[self.name](parts)
        if system := parts.besides("system"):
            if messages[:1] and messages[0]["role"] == "system":
                raise RowProblem(Reason.ROLES, "The row has two system texts; keep one.")
            messages = [said("system", system), *messages]
        messages, image = parts.with_image(messages, wanted=self.pictures)
        check(messages)
        return Conversation(messages, image, parts.besides("group") or None)

    def with_late(
        self, names: Iterable[str], chosen: Mapping[Any, str], *, pictures: bool = False, held: Held = _UNSEEN
    ) -> "Shape":
        """The shape once there are these columns, too, which no row had before.

        A part that this shape may have besides and that nothing is read as yet becomes such a column, so that
        earlier rows read as they did. Otherwise as `recognise`. Raises Clash.
        """
        by_names = by_name([*self.columns.values(), *names], pictures=pictures, in_bytes=held.pictures)
        found = {part: by_names[part] for part in self._besides(chosen) if part in by_names}
        for part, column in found.items():
            if self.columns.get(part, column) != column:
                raise Clash(part, self.columns[part], column)
        return self.with_besides(found, held)

    def with_besides(self, found: Mapping[str, str], held: Held) -> "Shape":
        """The shape, and what it may have besides of what was found: what says more than is read already."""
        columns, left_out = dict(self.columns), dict(self.left_out)
        for part in (*_EXTRAS.get(self.name, ()), *_COMMON):
            column = found.get(part)
            if column is None or part in columns or is_makeshift(part, column):
                continue
            if column in (known for other, known in columns.items() if other != "group"):
                continue
            if part in _IF_TEXT.get(self.name, ()) and column in held.textless:
                left_out[part] = column
            else:
                columns[part] = column
        return replace(self, columns=columns, left_out=left_out)

    def refuse_other_names(self, line: int, row: Mapping[str, Any], chosen: Mapping[Any, str]) -> None:
        """Raise Refused, naming the line, where a column of the row is named like a part that the row lacks
        in its own column, as where two files were joined that called it differently; or holds text where it
        was left out because it held none.
        """
        for part, column in self.left_out.items():
            if part not in chosen and is_text(row.get(column)) and not is_nothing(row[column]):
                raise Refused(
                    "unknown-column",
                    f"Line {line} has text in the column {column!r}, which is named like {part}, and the "
                    "rows before it have none there. Say in the options, or in a recipe's data.columns, "
                    f"which column {part} is, as in {self.choice(part, column)}, or that none is: "
                    f"{json.dumps({part: ''})}.",
                )
        lacking = [
            part
            for part in self._besides(chosen)
            if part in self.columns and is_nothing(row.get(self.columns[part]))
        ]
        if not lacking:
            return
        named, read = all_by_name(row), set(self.columns.values())
        for part in lacking:
            for other in named.get(part, ()):
                if other not in read and not is_makeshift(part, other) and not is_nothing(row[other]):
                    raise Refused(
                        "unknown-column",
                        f"Line {line} has nothing in the column {self.columns[part]!r}, from which {part} is "
                        f"read, and something in {other!r}. Write one of them in every row, or say in the "
                        f"options, or in a recipe's data.columns, which column {part} is, as in "
                        f"{self.choice(part, self.columns[part])}.",
                    )

    def choice(self, part: str, column: str) -> str:
        """What to choose so that the part is read from the column, as options take it: a part that makes a
        row in some shape goes with all that make one in this.
        """
        needed = _SHAPES[self.name] if any(part in parts for parts in _SHAPES.values()) else ()
        chosen = {each: self.columns[each] for each in needed} | {part: column}
        return json.dumps(chosen, ensure_ascii=False)

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Parts of what may be asked that one of these columns is named like and this shape does not read."""
        if self.name == "chat":
            return []  # its turns say it all
        named, read = by_name(columns, pictures=False), set(self.columns.values())
        return [
            part
            for part in _ASKED
            if part in named and named[part] not in read and not is_makeshift(part, named[part])
        ]

    def _besides(self, chosen: Mapping[Any, str]) -> list[str]:
        """The parts that a row may have besides, as far as their columns' names say which they are."""
        return [part for part in (*_EXTRAS.get(self.name, ()), *_COMMON) if part not in chosen]


def recognise(
    columns: Iterable[str], chosen: Mapping[Any, str], *, pictures: bool = False, held: Held = _UNSEEN
) -> Shape:
    """The shape that these columns make.

    Args:
        columns: their names.
        chosen: part → column, which goes before what the names say; "" for a part that no column is. What a
            row may have besides may be a column that comes later: see `refuse_unmet`.
        pictures: whether pictures can lie beside the rows.
        held: what columns hold in the first rows.

    Raises:
        Refused: none fits, or a chosen column is not there.
    """
    seen = list(columns)
    needed = {part: column for part, column in chosen.items() if part not in _BESIDES}
    refuse_unmet(needed, seen, where=f"in the first {FIRST_ROWS} rows")
    named = {part: column for part, column in chosen.items() if column}
    by_names = by_name(seen, pictures=pictures, in_bytes=held.pictures)
    found = {part: column for part, column in by_names.items() if part not in chosen} | named
    fitting = [shape for name in _SHAPES if (shape := _fit(name, found, named, held))]
    if fitting:
        textless = {part for part in set().union(*_IF_TEXT.values()) if by_names.get(part) in held.textless}
        best = min(fitting, key=lambda shape: len(set(shape.unread(seen)) - textless - set(chosen)))
        return replace(best, pictures=chosen.get("image") != "")
    raise Refused(
        "unknown-shape",
        f"The rows fit no known shape. The columns: {listed(seen)}. Known: {_KNOWN}. Rename the columns, or "
        "say which column is which: in the options, or in a recipe's data.columns.",
    )


def refuse_unmet(chosen: Mapping[Any, str], seen: Iterable[str], *, where: str = "in any row") -> None:
    """Raise Refused for a chosen column that is not among those seen."""
    seen = list(seen)
    for part, column in chosen.items():
        if column and column not in seen:
            raise Refused(
                "unknown-column",
                f"There is no column {column[:40]!r} to read as {part} {where}. The columns: {listed(seen)}.",
            )


def _fit(name: str, found: Mapping[str, str], named: Mapping[str, str], held: Held) -> Shape | None:
    """The shape, if the columns make it."""
    needed = _SHAPES[name]
    parts = (*needed, *_EXTRAS.get(name, ()), *_COMMON)
    if not all(part in found for part in needed) or not all(part in parts for part in named):
        return None
    return Shape(name, {part: found[part] for part in (*needed, *named)}).with_besides(found, held)


def _read_chat(parts: RowParts) -> list[Message]:
    return parts.turns("messages")


def _read_prompt_completion(parts: RowParts) -> list[Message]:
    prompt, completion = parts.said("prompt", "user"), parts.said("completion", "assistant")
    repeats = completion[: len(prompt)] == prompt  # as where preferences are told in whole conversations
    turns = completion if repeats else [*prompt, *completion]
    asked = next((turn for turn in turns if turn["role"] == "user"), None)
    if asked and asked["content"]:
        asked["content"] = joined(parts.besides("context"), asked["content"], parts.besides("input"))
    return turns


def _read_instruction_output(parts: RowParts) -> list[Message]:
    asked = joined(parts.text("instruction"), *map(parts.besides, ("context", "input", "question")))
    return [said("user", asked), said("assistant", parts.text("output"))]


def _read_question_answer(parts: RowParts) -> list[Message]:
    question = parts.text("question")
    asked = joined(parts.besides("context"), question) if question else ""
    return [said("user", asked), said("assistant", parts.text("answer"))]


_READERS: dict[str, Callable[[RowParts], list[Message]]] = {
    "chat": _read_chat,
    "prompt_completion": _read_prompt_completion,
    "instruction_output": _read_instruction_output,
    "question_answer": _read_question_answer,
}

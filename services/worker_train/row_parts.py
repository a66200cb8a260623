"""Takes texts, turns and pictures out of what a row holds. It chooses no column, and does
not know what a text says.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from shared.training.report import Reason

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
_IMAGE_MARKS = ("<image>", "<start_of_image>")
#: Where a part of a text that is a picture says which, in the ways in which chats are written.
_IMAGE_KEYS = ("image", "path", "bytes", "image_url", "url", "base64", "source", "data")
_UNREAD_PICTURE = (
    "The picture is given in a way that is not read. Name a file of the zip, or put its bytes into Parquet; "
    "what an address names is not fetched."
)

#: Of a picture that a row of the hub names without holding it.
UNFETCHED_PICTURE = (
    "Pictures that lie beside the rows on the hub are not fetched. Download the dataset, pack it into a zip "
    "and upload that, or say in the options, or in a recipe's data.columns, that no column is the image."
)

Message = dict[str, str]


class RowProblem(Exception):
    """This row cannot be used; `advice` is None when the reason's own says all."""

    def __init__(self, reason: Reason, advice: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


class RowParts:
    """The parts of one row. Every method raises RowProblem.

    Args:
        row: what it holds.
        columns: the part that a column is read as → the column.
    """

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self._values = {part: row.get(column) for part, column in columns.items()}
        self._columns = columns
        #: What stands for a picture among the texts that were read; None where only its place is marked.
        self._pictures: list[Any] = []

    def text(self, part: str) -> str:
        """The part as text, trimmed; nothing is ""."""
        return self._text(self._values.get(part))

    def besides(self, part: str) -> str:
        """The same of a part that no row needs: the column may be named like it and be something else."""
        value = self._values.get(part)
        try:
            return self._text(value)
        except RowProblem as problem:
            if isinstance(value, str):
                raise
            raise RowProblem(
                problem.reason,
                f"The column {self._columns[part]!r} is read as {part} and is no text. Write it as text, or "
                "say in the options that no column is it.",
            ) from None

    def turns(self, part: str) -> list[Message]:
        """The turns of a chat, however they call role and content."""
        return self._turns(self._values.get(part))

    def said(self, part: str, role: str) -> list[Message]:
        """The turns where the part holds such; else its text, as said by `role`."""
        value = self._values.get(part)
        if isinstance(value, list) and all(isinstance(turn, dict) and _is_turn(turn) for turn in value):
            return self._turns(value)
        return [said(role, self._text(value))]

    def with_image(
        self, messages: list[Message], *, wanted: bool
    ) -> tuple[list[Message], str | bytes | None]:
        """The messages without marks of a picture, and the one picture that the row names, where one is
        wanted: in the part `image`, or else among the texts that were read.
        """
        bare = [said(message["role"], _without_marks(message["content"])) for message in messages]
        if not wanted:
            return bare, None
        image = _image(self._values.get("image"))
        if image is None:
            image = _image([picture for picture in self._pictures if picture is not None])
        if image is not None:
            return bare, image
        if self._pictures or any(mark in each["content"] for each in messages for mark in _IMAGE_MARKS):
            raise RowProblem(
                Reason.BROKEN_IMAGE,
                "The text has the place of a picture, and the row names none. Name its file in a column "
                "`image`, take the place out of the text, or say in the options that no column is the image.",
            )
        return messages, None

    def _turns(self, value: Any) -> list[Message]:
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
            turns.append(said(role, self._text(turn.get("content", turn.get("value")))))
        return turns

    def _text(self, value: Any) -> str:
        """Text; the text parts of a list are joined, and its pictures noted."""
        if isinstance(value, list):
            return "\n".join(filter(None, map(self._text_of_part, value)))
        return _plain_text(value)

    def _text_of_part(self, part: Any) -> str:
        if not isinstance(part, dict):
            return _plain_text(part)
        kind = str(part.get("type", ""))
        if kind.startswith("image"):
            given = [part[key] for key in _IMAGE_KEYS if part.get(key) is not None]
            picture = next((each for each in given if not is_nothing(each)), None)
            if picture is not None or not given:
                self._pictures.append(picture)
            return ""
        if part.get("text") is None and kind != "text":
            raise RowProblem(Reason.NOT_TEXT)
        return _plain_text(part.get("text"))


def said(role: str, content: str) -> Message:
    """One turn."""
    return {"role": role, "content": content}


def joined(*texts: str) -> str:
    """Those that are not empty, a blank line between them."""
    return "\n\n".join(filter(None, texts))


def is_nothing(value: Any) -> bool:
    """Whether a row holds nothing there, in whatever way a table writes that."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return all(_is_missing(each) or (isinstance(each, str) and not each.strip()) for each in values)


def check(messages: list[Message]) -> None:
    """Raise RowProblem unless it is a conversation to learn from: whole turns, none of them empty."""
    turns = messages[1:] if messages[:1] and messages[0]["role"] == "system" else messages
    if not turns or len(turns) % 2:
        raise RowProblem(Reason.ROLES, "The conversation must end with the assistant's answer.")
    for place, turn in enumerate(turns):
        if turn["role"] != ("user", "assistant")[place % 2]:
            raise RowProblem(Reason.ROLES)
        if not turn["content"]:
            raise RowProblem(Reason.EMPTY_ANSWER if place % 2 else Reason.EMPTY_QUESTION)


def _is_turn(value: Mapping[str, Any]) -> bool:
    return "role" in value or "from" in value


def _plain_text(value: Any) -> str:
    """Text, trimmed; nothing is ""."""
    if _is_missing(value):
        return ""
    if isinstance(value, list | dict | bytes):
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
    return value is None or value == b"" or (isinstance(value, float) and not math.isfinite(value))


def _image(value: Any) -> str | bytes | None:
    """A file's name or a picture's bytes, as it stands or as `datasets` writes it."""
    if isinstance(value, list):
        if len(value) > 1:
            raise RowProblem(Reason.BROKEN_IMAGE, "The row has several pictures; one can be used.")
        value = value[0] if value else None
    if isinstance(value, dict):
        named = value.get("bytes") or value.get("path")
        if not named and not is_nothing(value):
            raise RowProblem(Reason.BROKEN_IMAGE, _UNREAD_PICTURE)
        value = named
    if _is_missing(value) or value == "":
        return None
    if not isinstance(value, str | bytes):
        raise RowProblem(Reason.BROKEN_IMAGE)
    return value


def _without_marks(text: str) -> str:
    for mark in _IMAGE_MARKS:
        text = text.replace(mark, "")
    return text.strip()

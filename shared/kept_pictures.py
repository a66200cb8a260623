"""Seals pictures with the message that they came with, and opens them. It does not ask who sees them.

A message's parts name its pictures in their order; each picture is a row of its own, so that nobody reads a
picture who wants a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, select

from shared.audit.binding import digest_pictures, digest_text
from shared.db.rows import Into, put
from shared.db.tables import pictures
from shared.errors import NotFound
from shared.ids import new_id
from shared.privacy.envelope import DataKey

if TYPE_CHECKING:
    from shared.pictures import PreparedPicture  # what opens pictures is loaded by who opens some


@dataclass(frozen=True, kw_only=True)
class PictureRef:
    """Which picture, and how large it is in pixels."""

    id: str
    width: int
    height: int


class Sealed:
    """Pictures of one message, sealed: put its row first, for theirs point to it."""

    def __init__(
        self,
        key: DataKey,
        given: Sequence[PreparedPicture],
        *,
        conversation_id: str,
        message_id: str,
        now: datetime,
    ) -> None:
        ids = [new_id() for _ in given]
        self._rows: list[dict[str, Any]] = [
            {
                "id": picture_id,
                "conversation_id": conversation_id,
                "message_id": message_id,
                "position": position,
                "width": picture.width,
                "height": picture.height,
                "ciphertext": key.encrypt_bytes(picture.png, place=_place(picture_id)),
                "key_id": key.key_id,
                "created_at": now,
            }
            for position, (picture_id, picture) in enumerate(zip(ids, given, strict=True), start=1)
        ]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What stands of them in their message's parts."""
        return [
            {"type": "image", "id": row["id"], "width": row["width"], "height": row["height"]}
            for row in self._rows
        ]

    @property
    def sha256(self) -> str | None:
        """What binds the log to them (`digest_pictures`); None where there are none."""
        if not self._rows:
            return None
        names = ("position", "id", "conversation_id", "width", "height", "key_id")
        bound = ([*(row[name] for name in names), digest_text(row["ciphertext"])] for row in self._rows)
        return digest_pictures(bound)

    def put(self, into: Into) -> None:
        """Store their rows."""
        for row in self._rows:
            put(into, pictures, row)


def refs_in(parts: Sequence[dict[str, Any]]) -> tuple[PictureRef, ...]:
    """The pictures of a message with these parts, in their order."""
    return tuple(
        PictureRef(id=part["id"], width=part["width"], height=part["height"])
        for part in parts
        if part["type"] == "image"
    )


def read_picture(connection: Connection, picture_id: str, *, conversation_id: str, key: DataKey) -> bytes:
    """The PNG of a picture of this conversation, whose `key` this is. Raises NotFound, CannotDecrypt."""
    sealed = _find(connection, pictures.c.ciphertext, picture_id, conversation_id)
    return key.decrypt_bytes(sealed, place=_place(picture_id))


def find_picture(connection: Connection, conversation_id: str, picture_id: str) -> None:
    """Raises NotFound where this conversation has no such picture."""
    _find(connection, pictures.c.id, picture_id, conversation_id)


def _find(connection: Connection, column: ColumnElement[Any], picture_id: str, conversation_id: str) -> Any:
    found = connection.execute(
        select(column).where(pictures.c.id == picture_id, pictures.c.conversation_id == conversation_id)
    ).scalar_one_or_none()
    if found is None:
        raise NotFound("There is no picture under this id in this conversation.")
    return found


def _place(picture_id: str) -> str:
    return f"picture:{picture_id}"

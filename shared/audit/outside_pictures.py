"""Holds the pictures of messages against what events say of them. It opens none of them.

A few are in memory at a time, for each has some megabytes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from shared.audit.binding import digest_pictures, digest_text
from shared.audit.reading import among, as_ids, fetch
from shared.db.tables import messages, pictures

#: Pictures that are read at a time.
_AT_ONCE = 16


def find_digests(connection: Connection, message_ids: Iterable[str]) -> dict[str, str | None]:
    """What binds the log to the pictures of each message that shows or has any (`digest_pictures`).

    None where a message does not show what it has, or something stands there that no picture has.
    """
    wanted = set(message_ids)
    columns = pictures.c
    names = (columns.position, columns.id, columns.conversation_id, columns.width, columns.height)
    statement = select(columns.message_id, *names, columns.key_id).order_by(
        columns.message_id, columns.position
    )
    of_message = among(connection, columns.message_id)
    there: dict[str, list[Any]] = defaultdict(list)
    for message, *row in fetch(connection, statement.where(of_message), as_ids(connection, wanted)):
        there[message].append(row)
    digests = _digests(connection, [row[1] for rows in there.values() for row in rows])
    shown = _shown(connection, wanted)
    found: dict[str, str | None] = {}
    for message in shown.keys() | there.keys():
        rows = there[message]
        try:
            same = shown.get(message, []) == [[picture, *size] for _, picture, _, *size, _ in rows]
            found[message] = digest_pictures([*row, digests[row[1]]] for row in rows) if same else None
        except (TypeError, ValueError, KeyError):
            found[message] = None
    return found


def _digests(connection: Connection, picture_ids: list[Any]) -> dict[Any, str | None]:
    """Of the ciphertext of each picture."""
    statement = select(pictures.c.id, pictures.c.ciphertext).where(among(connection, pictures.c.id))
    ids = [each for each in picture_ids if isinstance(each, str)]
    found: dict[Any, str | None] = {}
    for start in range(0, len(ids), _AT_ONCE):
        some = as_ids(connection, set(ids[start : start + _AT_ONCE]))
        for picture, ciphertext in fetch(connection, statement, some):
            found[picture] = digest_text(ciphertext) if isinstance(ciphertext, bytes) else None
    return found


def _shown(connection: Connection, message_ids: set[str]) -> dict[str, list[Any]]:
    """The pictures that each message's parts name, of those that name any."""
    statement = select(messages.c.id, messages.c.parts).where(among(connection, messages.c.id))
    found: dict[str, list[Any]] = {}
    for message, parts in fetch(connection, statement, as_ids(connection, message_ids)):
        try:
            read = json.loads(parts) if isinstance(parts, str | bytes) else parts
            named = [[part["id"], part["width"], part["height"]] for part in read if part["type"] == "image"]
        except (TypeError, ValueError, KeyError, RecursionError):
            named = [None]  # no parts that were ever written
        if named:
            found[message] = named
    return found

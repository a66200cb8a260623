"""What columns hold, as far as some rows show. It knows no part, and not what a text says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.worker_train.row_parts import is_nothing


@dataclass(frozen=True)
class Held:
    """What some columns were seen to hold; of others nothing is known."""

    #: They hold something, and text in no row: numbers, say, or what has parts of its own.
    textless: frozenset[str] = frozenset()
    #: They hold the bytes of pictures.
    pictures: frozenset[str] = frozenset()

    def with_late(self, names: Iterable[str], row: Mapping[str, Any]) -> "Held":
        """What is known once there are these columns, which no row had before this one."""
        late = held_in([{name: row[name] for name in names}])
        return Held(self.textless | late.textless, self.pictures | late.pictures)


def held_in(rows: Iterable[Mapping[str, Any]]) -> Held:
    """What the columns of these rows hold."""
    filled: set[str] = set()
    texts: set[str] = set()
    pictures: set[str] = set()
    for row in rows:
        for column, value in row.items():
            if is_nothing(value):
                continue
            filled.add(column)
            if is_text(value):
                texts.add(column)
            elif _has_bytes(value):
                pictures.add(column)
    return Held(frozenset(filled - texts), frozenset(pictures))


def is_text(value: Any) -> bool:
    """Whether it is text, or a list of texts and of the parts in which chats are written."""
    if isinstance(value, list):
        return all(part is None or isinstance(part, str) or _is_part(part) for part in value)
    return isinstance(value, str)


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and ("type" in value or isinstance(value.get("text"), str))


def _has_bytes(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_bytes, value))
    return isinstance(value.get("bytes") if isinstance(value, dict) else value, bytes)

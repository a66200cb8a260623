"""Reads a YAML text strictly and remembers the line of every part. It knows no policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from shared.errors import PolicyRefused

#: A file that unfolds to more parts is no policy: aliases within aliases grow without bound.
MOST_PARTS = 200_000
Place = tuple[str | int, ...]
_TEXT = "tag:yaml.org,2002:str"


class Located:
    """One parsed file.

    Args:
        name: the file's name, for error messages.
        text: its YAML.

    Raises:
        PolicyRefused: it is not YAML, holds a key twice, a key that is no text, or tags of its own.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._lines: dict[Place, int] = {(): 1}
        try:
            loader = yaml.SafeLoader(text)
            try:
                node = loader.get_single_node()
                if node is None:
                    raise self.refusal((), "the file is empty")
                self._walk(node, ())
                self.document: Any = loader.construct_document(node)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise PolicyRefused(name, line, f"this is not YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise PolicyRefused(name, line, "a character that YAML does not allow") from None
        except RecursionError:
            raise PolicyRefused(name, 1, "lists or aliases are nested too deeply") from None

    def refusal(self, place: Sequence[object], reason: str) -> PolicyRefused:
        """The error that names the line of a part, as far as the file has what `place` says."""
        found: Place = ()
        for part in place:
            longer = (*found, part)
            if longer in self._lines:
                found = longer  # type: ignore[assignment]
        return PolicyRefused(self.name, self._lines[found], reason)

    def _walk(self, node: yaml.Node, place: Place) -> None:
        if len(self._lines) > MOST_PARTS:
            raise self.refusal((), "the file unfolds to too many parts")
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self._lines[*place, number] = item.start_mark.line + 1
                self._walk(item, (*place, number))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode) or key.tag != _TEXT:
                    raise PolicyRefused(self.name, line, "a key is no text; put it in quotes")
                if (*place, key.value) in self._lines:
                    raise PolicyRefused(self.name, line, "the key is there twice")
                self._lines[*place, key.value] = line
                self._walk(value, (*place, key.value))

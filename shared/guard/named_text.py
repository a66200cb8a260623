"""A sentence and what stands before it, with the names in both. It does not judge."""

from __future__ import annotations

from functools import cached_property

from shared.guard.lexicon import Lexicon
from shared.guard.names import Named, Names
from shared.guard.rules import CONTEXT_CHARS, ScopedText


class NamedText(ScopedText):
    """A text and the end of what stands before it; each is looked into when first needed."""

    def __init__(self, lexicon: Lexicon, names: Names, text: str, context: str) -> None:
        super().__init__(lexicon, text, context)
        self._names = names
        self.sentence = text
        self.before = context[-CONTEXT_CHARS:]

    @cached_property
    def named(self) -> list[Named]:
        """The names in the text."""
        return self._names.find(self.sentence)

    @cached_property
    def named_before(self) -> list[Named]:
        """The names in what stands before it."""
        return self._names.find(self.before)

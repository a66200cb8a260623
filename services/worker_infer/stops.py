"""Ends a text before the first of some strings, wherever its pieces are cut. It knows no tokens, no guard."""

import re
from collections.abc import Sequence

#: Where a sentence may end; after so many characters at the latest.
_END = re.compile(r"[.!?…](?=\s|$)|\n")
_LONGEST_REST = 300


class Stops:
    """The stops of one answer; without any, every piece passes at once.

    All outputs joined are the text up to the first stop: what may be the beginning of one waits.
    """

    def __init__(self, stops: Sequence[str], released: str = "") -> None:
        """`released` is what passed in an earlier attempt; a stop may have begun at its end."""
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = released[len(released) - self._beginning(released) :]
        #: How many of the held characters have passed already.
        self._passed = len(self._held)
        #: The end of what has passed.
        self._last = released[-1:]
        #: From a stop on, what came: nothing passes any more.
        self.cut = ""

    @property
    def judgeable(self) -> bool:
        """Whether a stop was found, and the sentence in which it stands has come to its end, or seems to have
        none: only as a whole can it be judged.
        """
        if not self.cut:
            return False
        return (
            not self._last
            or _END.search(self._last) is not None
            or _END.search(self.cut) is not None
            or len(self.cut) >= _LONGEST_REST
        )

    def feed(self, piece: str) -> str:
        """What of the text is certainly before any stop."""
        if self.cut:
            self.cut += piece
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        certain = min(places) if places else len(text) - self._beginning(text)
        self.cut, self._held = (text[certain:], "") if places else ("", text[certain:])
        return self._new(text[:certain])

    def close(self) -> str:
        """What was still held back."""
        rest, self._held = self._held, ""
        return self._new(rest)

    def _new(self, text: str) -> str:
        """The text without what has passed already."""
        known, self._passed = self._passed, max(self._passed - len(text), 0)
        new = text[known:]
        self._last = new.rstrip(" ")[-1:] or self._last
        return new

    def _beginning(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0

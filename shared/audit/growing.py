"""The tree of the log as it grows leaf by leaf, tile by tile. It reads no database.

It keeps the hashes of unfinished tiles alone, so that memory stays flat, and the complete subtrees that were
made of them already: the root of any size costs a few hashes more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

from shared.audit.merkle import EMPTY_ROOT
from shared.audit.tiles import WIDTH

#: Is told of a tile that became whole: (level, number, its hashes, its root).
OnTile = Callable[[int, int, list[bytes], bytes], None]


class _Tile:
    """An unfinished tile."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []
        #: The roots of its complete subtrees, the largest first, and of how many hashes they are made.
        self._subtrees: list[bytes] = []
        self._covered = 0

    def subtrees(self) -> list[bytes]:
        """The roots of its complete subtrees, the largest first; of a whole tile that is its root."""
        subtrees = self._subtrees
        for at in range(self._covered, len(self.hashes)):
            node, left = self.hashes[at], at
            while left & 1:  # as many merges as the number has ones at its end
                node = sha256(b"\x01" + subtrees.pop() + node).digest()
                left >>= 1
            subtrees.append(node)
        self._covered = len(self.hashes)
        return subtrees


class Growing:
    """The tree so far."""

    def __init__(self, on_tile: OnTile) -> None:
        self.size = 0
        self._on_tile = on_tile
        #: By level, the tile of it that is not whole yet.
        self._tiles = [_Tile()]

    def extend(self, leaves: Sequence[bytes]) -> None:
        """More leaves."""
        at = 0
        while at < len(leaves):
            hashes = self._tiles[0].hashes
            more = leaves[at : at + WIDTH - len(hashes)]
            hashes += more
            at += len(more)
            self.size += len(more)
            if len(hashes) == WIDTH:
                self._end(0, self.size // WIDTH - 1)

    def root(self) -> bytes:
        """The root of the leaves so far (RFC 6962, 2.1)."""
        root = b""
        for tile in self._tiles:  # the last subtree first: each begins where the one before it ended
            for node in reversed(tile.subtrees()):
                root = sha256(b"\x01" + node + root).digest() if root else node
        return root or EMPTY_ROOT

    def _end(self, level: int, number: int) -> None:
        tile = self._tiles[level]
        (root,) = tile.subtrees()
        self._tiles[level] = _Tile()
        self._on_tile(level, number, tile.hashes, root)
        if level + 1 == len(self._tiles):
            self._tiles.append(_Tile())
        above = self._tiles[level + 1].hashes
        above.append(root)
        if len(above) == WIDTH:
            self._end(level + 1, number // WIDTH)

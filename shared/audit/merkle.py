"""The Merkle tree of RFC 6962, section 2.1: roots, inclusion and consistency. It keeps no hash.

A node is named by its level (0: leaves) and its number from the left. Every function that needs nodes is
handed a `Nodes`, which gives those whose 2^level leaves are all there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

#: The hash of the complete node (level, number).
Nodes = Callable[[int, int], bytes]
HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 ‖ data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root of a complete subtree from its nodes of one level; their number is a power of two."""
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def tree_root(size: int, nodes: Nodes) -> bytes:
    """MTH of the first `size` leaves."""
    return _range_root(0, size, nodes) if size else EMPTY_ROOT


def inclusion_path(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """PATH(index, first `size` leaves): the hashes that lead from a leaf to the root, lowest first."""
    if not 0 <= index < size:
        raise ValueError("the tree has no such leaf")
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(_range_root(middle, end, nodes))
            end = middle
        else:
            path.append(_range_root(start, middle, nodes))
            start = middle
    return path[::-1]


def consistency_path(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """PROOF(old, first `new` leaves): shows that the old tree is the beginning of the new one."""
    if not 0 < old <= new:
        raise ValueError("the old tree is not within the new one")
    path, start, end, whole = [], 0, new, True
    while old != end - start:
        middle = start + _split(end - start)
        if old <= middle - start:
            path.append(_range_root(middle, end, nodes))
            end = middle
        else:
            path.append(_range_root(start, middle, nodes))
            old -= middle - start
            start, whole = middle, False
    if not whole:
        path.append(_range_root(start, end, nodes))
    return path[::-1]


def inclusion_holds(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path leads from the leaf at `index` to the root of `size` leaves (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    number, last, reached = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if number % 2 or number == last:
            reached = node_hash(sibling, reached)
            while number % 2 == 0 and number:
                number, last = number // 2, last // 2
        else:
            reached = node_hash(reached, sibling)
        number, last = number // 2, last // 2
    return last == 0 and reached == root


def consistency_holds(old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether the old root's leaves are the first of the new one's, by this path (RFC 9162, 2.1.4.2)."""
    if old == new:
        return not path and old_root == new_root
    if not 0 < old < new or not path:
        return False
    hashes = list(path) if old & (old - 1) else [old_root, *path]
    number, last = old - 1, new - 1
    while number % 2:
        number, last = number // 2, last // 2
    reached_old = reached_new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if number % 2 or number == last:
            reached_old, reached_new = node_hash(sibling, reached_old), node_hash(sibling, reached_new)
            while number % 2 == 0 and number:
                number, last = number // 2, last // 2
        else:
            reached_new = node_hash(reached_new, sibling)
        number, last = number // 2, last // 2
    return last == 0 and reached_old == old_root and reached_new == new_root


def _range_root(start: int, end: int, nodes: Nodes) -> bytes:
    """The root of the leaves from `start` up to `end`, where the tree splits there."""
    size = end - start
    level = size.bit_length() - 1
    if size == 1 << level:
        return nodes(level, start >> level)
    middle = start + _split(size)
    return node_hash(_range_root(start, middle, nodes), _range_root(middle, end, nodes))


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)

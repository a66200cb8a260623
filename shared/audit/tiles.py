"""Reads and builds the tiles of the log's tree: 256 hashes a row, as in C2SP tlog-tiles. It seals nothing.

A tile of level 0 holds hashes of leaves; one of level L those of the tiles below it. Only whole tiles are
rows; what is not whole yet is read from the seals, or from the rows below. So a proof needs a few rows,
however large the tree is. See https://c2sp.org/tlog-tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select

from shared.audit.merkle import HASH_BYTES, Nodes, root_of
from shared.db.tables import audit_seals
from shared.db.tables_audit import audit_tiles
from shared.db.types import as_stored
from shared.errors import LogAltered

#: Hashes of a tile, and the levels of the tree that it spans.
WIDTH, HEIGHT = 256, 8

_MISSING = "Hashes of the log's tree are missing, so nothing can be proved or sealed; verify the log."

_LEAVES = (
    select(as_stored(audit_seals.c.leaf_hash))
    .where(audit_seals.c.sequence >= bindparam("start"), audit_seals.c.sequence < bindparam("end"))
    .order_by(audit_seals.c.sequence)
)
_ROOTS = (
    select(as_stored(audit_tiles.c.root))
    .where(
        audit_tiles.c.level == bindparam("of_level"),
        audit_tiles.c.number >= bindparam("start"),
        audit_tiles.c.number < bindparam("end"),
    )
    .order_by(audit_tiles.c.number)
)
_TILE = select(as_stored(audit_tiles.c.hashes)).where(
    audit_tiles.c.level == bindparam("of_level"), audit_tiles.c.number == bindparam("of_number")
)


def read_nodes(connection: Connection, size: int) -> Nodes:
    """The complete nodes of the first `size` leaves, each tile read once. They raise LogAltered."""

    @cache
    def tile(level: int, number: int) -> list[bytes]:
        return _read_tile(connection, level, number, size)

    def node(level: int, number: int) -> bytes:
        above, within = divmod(level, HEIGHT)
        width = 1 << within  # of the tile's hashes
        place, first = divmod(number * width, WIDTH)
        hashes = tile(above, place)[first : first + width]
        if len(hashes) != width:
            raise LogAltered(_MISSING)
        return root_of(hashes)

    return node


def _read_tile(connection: Connection, level: int, number: int, size: int) -> list[bytes]:
    """The hashes of a tile, as many as `size` leaves give it."""
    row = connection.execute(_TILE, {"of_level": level, "of_number": number}).scalar_one_or_none()
    known = size >> (HEIGHT * level)
    start, end = number * WIDTH, min((number + 1) * WIDTH, known)
    if row is not None:
        return _cut(row)[: end - start]
    bounds: dict[str, Any] = {"start": start, "end": end}
    if level == 0:
        return [bytes(each) for each in connection.execute(_LEAVES, bounds).scalars()]
    return [bytes(each) for each in connection.execute(_ROOTS, {**bounds, "of_level": level - 1}).scalars()]


def whole_tiles(connection: Connection, size: int, leaves: Sequence[bytes]) -> list[dict[str, Any]]:
    """The rows of the tiles that become whole when `leaves` join a tree of `size`; the lowest level first.

    At most 256 leaves at once.
    """
    rows: list[dict[str, Any]] = []
    added, level = list(leaves), 0
    while size % WIDTH + len(added) >= WIDTH:
        number, kept = divmod(size, WIDTH)
        hashes = _read_tile(connection, level, number, size << (HEIGHT * level))[:kept] + added
        if len(hashes) != kept + len(added):
            raise LogAltered(_MISSING)
        whole = hashes[:WIDTH]
        root = root_of(whole)
        rows.append({"level": level, "number": number, "hashes": b"".join(whole), "root": root})
        added, size, level = [root], number, level + 1
    return rows


def store_tiles(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert whole tiles."""
    if rows:
        connection.execute(insert(audit_tiles), list(rows))


def _cut(hashes: bytes) -> list[bytes]:
    return [bytes(hashes[at : at + HASH_BYTES]) for at in range(0, len(hashes), HASH_BYTES)]

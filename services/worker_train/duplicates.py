"""Finds rows that say the same, by fingerprints and an index of them. It does not know which copy is kept.

What is asked, what stands before it (a context, earlier turns) and the answer are compared each by itself,
and pictures by their hash: a long text that rows share does not make them alike.

Near duplicates by MinHash (Broder 1997) with locality-sensitive hashing in bands (Leskovec, Rajaraman,
Ullman, *Mining of Massive Datasets*, 3.4). The signatures are datasketch's; its index takes some 5 KB a row,
so the bands are kept in arrays here, at 260 bytes a row.
"""

import hashlib
import re
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np
from datasketch import MinHash
from numpy.typing import NDArray

#: Rows say the same when their sets of word triples share this much (Jaccard) in every part. An answer may be
#: worded a little more freely, for the question tells it apart already.
NEAR = {"question": 0.85, "context": 0.85, "answer": 0.8}
#: Bands x values of the parts' signatures: rows as near as that share a band with probability 0.98, others
#: seldom, even where there is no context and the answer is one of few.
_BANDS, _VALUES = 10, {"question": 3, "context": 1, "answer": 2}
_PERMUTATIONS = 60
_NEAR = np.array(list(NEAR.values()))
_WORD = re.compile(r"\w+")
#: Texts of fewer words are near only when they are equal: a word that differs may be all that matters.
_FEW_WORDS = 25
#: How often a line's triples may count, so that it weighs as much as the longest.
_MAX_WEIGHT = 24
#: Triples permuted, and rows compared, at a time: a long text or many copies take no more memory.
_BATCH = 4096
#: Rows of one band that later ones are compared with.
_LEADERS = 50
_SCHEME = "affine32"
_PERMUTED = MinHash(_PERMUTATIONS, seed=1, scheme=_SCHEME).permutations


def digest(*parts: str) -> bytes:
    """16 bytes that tell texts apart, regardless of case and white space."""
    folded = "\0".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.blake2b(folded.encode(), digest_size=16).digest()


def signature(question: str, context: str, answer: str) -> NDArray[np.uint32]:
    """The MinHash signatures of a row's parts, of shape [3, 60]."""
    return np.stack([_sketch(question), _sketch(context), _sketch(answer)])


def split_question(asked: str) -> tuple[str, str]:
    """The last paragraph, which asks, and what stands before it: a context, an instruction, earlier turns."""
    before, _, last = asked.strip().rpartition("\n\n")
    return last, before


def _sketch(text: str) -> NDArray[np.uint32]:
    sketch = MinHash(_PERMUTATIONS, hashfunc=_as_it_is, permutations=_PERMUTED, scheme=_SCHEME)
    values = _values(text)
    for start in range(0, len(values), _BATCH):
        sketch.update_batch(values[start : start + _BATCH].tolist())
    hashes: NDArray[np.uint32] = sketch.hashvalues
    return hashes


def _values(text: str) -> NDArray[np.uint32]:
    """What is counted of a text: one hash of it all where it is short, else the triples of its lines.

    Those of a short line count several times over: rows that differ in it differ, even where a long passage
    beside it is the same.
    """
    words = _WORD.findall(text.lower())
    if len(words) < _FEW_WORDS:
        return np.array([zlib.crc32((" ".join(words) or text).encode())], dtype=np.uint32)
    lines = [_triples(line) for line in text.splitlines() if _WORD.search(line)]
    longest = max(map(len, lines))
    return np.concatenate([_copies(line, min(_MAX_WEIGHT, longest // len(line))) for line in lines])


def _copies(values: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """`count` values for each, all different."""
    return (values[None, :] + (np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1))[:, None]).ravel()


def _as_it_is(value: int) -> int:
    return value


def _triples(text: str) -> NDArray[np.uint32]:
    """A hash of each run of three words, of a text that has words."""
    words = [_word_hash(word) for word in _WORD.findall(text.lower())]
    padded = np.array([1, *words, 2], dtype=np.uint32)
    triples = padded[:-2] * np.uint32(2654435761) + padded[1:-1] * np.uint32(40503) + padded[2:]
    return np.unique(triples)


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode())


@dataclass
class Neighbours:
    """Signatures of rows in the order they came, and which of them are near each other."""

    _bands: bytearray = field(default_factory=bytearray)
    _low: bytearray = field(default_factory=bytearray)

    def add(self, hashes: NDArray[np.uint32], picture: str | None = None) -> None:
        """Keep one row's signatures: a hash of each band, and the low byte of each value to compare by.

        `picture` is its SHA-256 in hex; rows of different pictures share no band.
        """
        band = np.full(_BANDS, int(picture[:16], 16) if picture else 0, dtype=np.uint64)
        for values, count in zip(hashes.astype(np.uint64), _VALUES.values(), strict=True):
            for column in range(count):
                band = (band ^ values[column * _BANDS : (column + 1) * _BANDS]) * np.uint64(
                    0x9E3779B97F4A7C15
                )
                band ^= band >> np.uint64(29)
        self._bands += band.tobytes()
        self._low += hashes.astype(np.uint8).tobytes()

    def pairs(self) -> dict[int, list[int]]:
        """For each row, the earlier rows that it is near to, nearest in the order of the file first.

        Of rows that share a band each is compared with the first `_LEADERS` that are near to none before
        them: a run of copies is found without comparing all with all.
        """
        if not self._bands:
            return {}
        bands = np.frombuffer(self._bands, dtype=np.uint64).reshape(-1, _BANDS)
        low = np.frombuffer(self._low, dtype=np.uint8).reshape(-1, len(NEAR), _PERMUTATIONS)
        found: dict[int, set[int]] = {}
        for band in range(_BANDS):
            order = np.argsort(bands[:, band], kind="stable")
            starts = np.flatnonzero(np.diff(bands[order, band], prepend=bands[order[0], band] + np.uint64(1)))
            for start, end in pairwise((*starts.tolist(), len(order))):
                if end - start > 1:
                    self._compare(order[start:end], low, found)
        return {row: sorted(earlier) for row, earlier in found.items()}

    @staticmethod
    def _compare(rows: NDArray[np.intp], low: NDArray[np.uint8], found: dict[int, set[int]]) -> None:
        leaders: list[int] = []
        for start in range(0, len(rows), _BATCH):
            rest = rows[start : start + _BATCH]
            for leader in leaders:
                rest = _without_near(leader, rest, low, found)
            while len(rest) and len(leaders) < _LEADERS:
                leaders.append(int(rest[0]))
                rest = _without_near(leaders[-1], rest[1:], low, found)


def _without_near(
    leader: int, rows: NDArray[np.intp], low: NDArray[np.uint8], found: dict[int, set[int]]
) -> NDArray[np.intp]:
    """Note the rows that are near to the leader; returns the others."""
    near = (np.count_nonzero(low[rows] == low[leader], axis=2) >= _NEAR * _PERMUTATIONS).all(axis=1)
    for row in rows[near].tolist():
        found.setdefault(row, set()).add(leader)
    others: NDArray[np.intp] = rows[~near]
    return others

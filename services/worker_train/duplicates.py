"""Finds rows that say the same, by fingerprints and an index of them. It does not know which copy is kept.

Near duplicates by MinHash (Broder 1997) with locality-sensitive hashing in bands (Leskovec, Rajaraman,
Ullman, *Mining of Massive Datasets*, 3.4). The signatures are datasketch's; its index takes some 5 KB a row,
so the bands are kept in arrays here, at 140 bytes a row.
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

#: Rows whose sets of word triples share this much (Jaccard) say the same.
NEAR = 0.85
#: Bands x rows of the signature: two rows at 0.85 share a band with probability 0.99.
_BANDS, _ROWS_A_BAND = 10, 6
_PERMUTATIONS = _BANDS * _ROWS_A_BAND
_WORD = re.compile(r"\w+")
#: How often a question's triples may count, so that it weighs as much as the answer.
_MAX_WEIGHT = 24
#: Rows of one band that later ones are compared with.
_LEADERS = 50
_SCHEME = "affine32"
_PERMUTED = MinHash(_PERMUTATIONS, seed=1, scheme=_SCHEME).permutations


def digest(*parts: str) -> bytes:
    """16 bytes that tell texts apart, regardless of case and white space."""
    folded = "\0".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.blake2b(folded.encode(), digest_size=16).digest()


def signature(question: str, answer: str) -> NDArray[np.uint32]:
    """The MinHash signature of a row, of shape [60].

    The question's triples count several times over: the same answer to another question is another row, even
    where a long answer outweighs a short question.
    """
    asked, answered = _triples(question), _triples(answer)
    weight = max(1, min(_MAX_WEIGHT, len(answered) // len(asked)))
    copies = (asked[None, :] + (np.arange(weight, dtype=np.uint32) * np.uint32(0x9E3779B1))[:, None]).ravel()
    sketch = MinHash(_PERMUTATIONS, hashfunc=_as_it_is, permutations=_PERMUTED, scheme=_SCHEME)
    sketch.update_batch(np.concatenate((answered, copies)).tolist())
    hashes: NDArray[np.uint32] = sketch.hashvalues
    return hashes


def _as_it_is(value: int) -> int:
    return value


def _triples(text: str) -> NDArray[np.uint32]:
    """A hash of each run of three words, at least one."""
    words = [_word_hash(word) for word in _WORD.findall(text.lower())]
    padded = np.array([1, *words, 2], dtype=np.uint32)
    triples = (
        padded[:-2] * np.uint32(2654435761) + padded[1:-1] * np.uint32(40503) + padded[2:]
        if words
        else padded
    )
    return np.unique(triples)


@lru_cache(maxsize=200_000)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode())


@dataclass
class Neighbours:
    """Signatures of rows in the order they came, and which of them are near each other."""

    _bands: bytearray = field(default_factory=bytearray)
    _low: bytearray = field(default_factory=bytearray)

    def add(self, hashes: NDArray[np.uint32]) -> None:
        """Keep one row's signature: a hash of each band, and the low byte of each value to compare by."""
        mixed = hashes.reshape(_BANDS, _ROWS_A_BAND).astype(np.uint64)
        band = np.zeros(_BANDS, dtype=np.uint64)
        for column in range(_ROWS_A_BAND):
            band = (band ^ mixed[:, column]) * np.uint64(0x9E3779B97F4A7C15)
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
        low = np.frombuffer(self._low, dtype=np.uint8).reshape(-1, _PERMUTATIONS)
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
        leaders = [int(rows[0])]
        for row in rows[1:].tolist():
            alike = (low[leaders] == low[row]).mean(axis=1) >= NEAR
            if alike.any():
                found.setdefault(row, set()).add(leaders[int(alike.argmax())])
            elif len(leaders) < _LEADERS:
                leaders.append(row)

"""Documents that say the same again: word for word, or nearly (MinHash of word shingles, every hit verified).

What is kept in memory for each document is a digest and, in the index, a sketch (about 1.7 KB together); the shingles that
hits are verified by lie in a temporary file on disk.
"""

from __future__ import annotations

import tempfile
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

SHINGLE = 3  # words
PERMUTATIONS = 120  # which many numbers of bands divide


class Digests:
    """The strings met so far, as 64 bits each in a table that is at most two thirds full: 12 to 24 bytes a string, not hundreds."""

    def __init__(self) -> None:
        self._table, self._count = array("Q", bytes(8 << 10)), 0

    def add(self, text: str) -> bool:
        """Whether it is new; by chance, for one in 2^64 / count, False is wrong."""
        digest = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") or 1  # 0 is an empty place
        place = self._place(digest)
        if self._table[place]:
            return False
        self._table[place] = digest
        self._count += 1
        if 3 * self._count > 2 * len(self._table):
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for digest in filter(None, old):
                self._table[self._place(digest)] = digest
        return True

    def _place(self, digest: int) -> int:
        """Where it stands, or would."""
        last = len(self._table) - 1  # a power of two, less one
        place = digest & last
        while self._table[place] not in (0, digest):
            place = (place + 1) & last
        return place


@dataclass
class Duplicates:
    """Documents added one by one, each compared with those before it; a number stands for a document, in the order they were added.

    `near` is the Jaccard similarity of the shingles from which on two documents are near duplicates, 0 to look for exact ones only. Only
    the first of a group of duplicates is compared with later ones, so a group of three counts as two duplicates.
    """

    near: float = 0.8
    exact_pairs: list[tuple[int, int]] = field(default_factory=list)  # (the later, the earlier)
    near_pairs: list[tuple[int, int, float]] = field(default_factory=list)  # (the later, the earlier, their similarity)

    def __post_init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._count = 0
        if not self.near:
            return
        from rensa import RMinHashLSH

        self._index = RMinHashLSH(threshold=self.near, num_perm=PERMUTATIONS, num_bands=bands(self.near))
        self._shingles = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self._ends = array("q", [0])  # where the shingles of document i lie: from [i] to [i + 1], in bytes

    def add(self, text: str) -> None:
        """Compare a document with those before it. White space and, for near duplicates, case make no difference."""
        number, words = self._count, text.split()
        self._count += 1
        earlier = self._first.setdefault(blake2b(" ".join(words).encode(), digest_size=16).digest(), number)
        if earlier != number:
            self.exact_pairs.append((number, earlier))
        if not self.near:
            return
        shingles = {" ".join(words[i : i + SHINGLE]).lower() for i in range(max(1, len(words) - SHINGLE + 1))}
        if earlier == number:
            self._compare(number, shingles)
        else:
            self._ends.append(self._ends[-1])  # never asked for

    def _compare(self, number: int, shingles: set[str]) -> None:
        from rensa import RMinHash

        sketch = RMinHash(num_perm=PERMUTATIONS, seed=1)
        sketch.update(list(shingles))
        # Python's own hashes, 64 bits, differ from process to process, and this is one.
        own = np.unique(np.fromiter(map(hash, shingles), np.int64, len(shingles)))
        best = max(((_similarity(own, self._stored(other)), -other) for other in self._index.query(sketch)), default=(0.0, 0))
        self._ends.append(self._ends[-1])
        if best[0] >= self.near:
            self.near_pairs.append((number, -best[1], best[0]))
            return
        self._shingles.seek(self._ends[number])
        self._shingles.write(own.tobytes())
        self._ends[-1] += own.nbytes
        self._index.insert(number, sketch)

    def _stored(self, number: int) -> np.ndarray:
        start, end = self._ends[number], self._ends[number + 1]
        self._shingles.seek(start)
        return np.frombuffer(self._shingles.read(end - start), np.int64)


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard similarity of two sorted sets."""
    small, large = sorted((a, b), key=len)
    places = np.searchsorted(large, small)
    shared = int((large[np.minimum(places, len(large) - 1)] == small).sum())
    return shared / (len(a) + len(b) - shared)


def bands(threshold: float) -> int:
    """The fewest bands of the sketch by which at least 98 of 100 pairs at the threshold are found: fewer bands, fewer hits to verify.

    A pair of similarity s agrees in all r values of one of b bands with the probability 1 - (1 - s^r)^b.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        if PERMUTATIONS % rows == 0 and 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= 0.98:
            return PERMUTATIONS // rows
    return PERMUTATIONS

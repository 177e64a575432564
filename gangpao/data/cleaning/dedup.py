"""Near-duplicate documents: MinHash to find candidates, the exact Jaccard similarity to decide.

Two documents are near-duplicates when their sets of word runs (ngrams.py) overlap by at least `threshold` of their union.
A signature keeps the smallest value of each of bands x rows hash functions; two signatures agree in one place with a
probability equal to the similarity. Documents that agree in all rows of at least one band are candidates, which happens
with 1 - (1 - s^rows)^bands: for 20 bands of 6 rows 99.8 % at s = 0.8 and 1.4 % at s = 0.3. A candidate is dropped only
after the exact similarity to a document that was kept has been computed, so there are no false hits.

Documents are gone through in order and the first of a kind stays: nothing is dropped for being like something dropped.
What it gives up: the quarter per cent that no band catches, and passages copied into otherwise different documents.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.data.cleaning.ngrams import U64, mix

U32 = npt.NDArray[np.uint32]
_BLOCK = 2048  # shingles at a time: a block of values for all functions stays in the processor's cache
_MARGIN = 4.0  # standard deviations of the estimate below which the exact similarity is not computed


class MinHash:
    """bands x rows hash functions, the same ones every time."""

    def __init__(self, bands: int, rows: int) -> None:
        if bands < 1 or rows < 1:
            raise ValueError(f"MinHash needs at least one band and one row, not {bands} and {rows}")
        self.bands, self.rows = bands, rows
        seeds = mix(np.arange(1, 2 * bands * rows + 1, dtype=np.uint64))
        self._flip = (seeds[0::2] >> np.uint64(32)).astype(np.uint32)[:, None]
        self._times = ((seeds[1::2] >> np.uint64(32)).astype(np.uint32) | np.uint32(1))[:, None]

    def signature(self, found: U64) -> U32:
        """The smallest value of each function over a set of hashes [bands * rows]; all ones for the empty set."""
        values = (found >> np.uint64(32)).astype(np.uint32)
        smallest = np.full(self.bands * self.rows, 0xFFFFFFFF, np.uint32)
        for start in range(0, len(values), _BLOCK):
            block = (values[start : start + _BLOCK] ^ self._flip) * self._times
            np.minimum(smallest, block.min(axis=1), out=smallest)
        return smallest


def jaccard(a: U64, b: U64) -> float:
    """Shared share of the union of two sets, given sorted without doubles; 0 for two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


def exact_duplicates(digests: npt.NDArray[Any]) -> dict[int, int]:
    """dropped -> kept for rows that are equal to an earlier row."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True, axis=0)
    origin = first[inverse.reshape(-1)]
    copies = np.flatnonzero(origin != np.arange(len(digests)))
    return {int(i): int(origin[i]) for i in copies}


def near_duplicates(
    signatures: U32, hasher: MinHash, threshold: float, similarity: Callable[[int, int], float]
) -> dict[int, int]:
    """dropped -> kept, by row of `signatures` [documents, bands * rows]; similarity(i, j) is the exact one."""
    groups = _groups(signatures, hasher)
    lowest = threshold - _MARGIN * (threshold * (1 - threshold) / signatures.shape[1]) ** 0.5
    kept: dict[int, list[int]] = defaultdict(list)  # group -> documents in it that stay
    dropped: dict[int, int] = {}
    for document in sorted(groups):
        mine = groups[document]
        candidates = sorted({other for group in mine for other in kept[group]})
        if candidates:
            alike = (signatures[candidates] == signatures[document]).mean(axis=1)
            # The likeliest first: one hit is enough.
            for at in np.argsort(-alike, kind="stable"):
                if alike[at] < lowest:
                    break
                if similarity(candidates[at], document) >= threshold:
                    dropped[document] = candidates[at]
                    break
        if document not in dropped:
            for group in mine:
                kept[group].append(document)
    return dropped


def _groups(signatures: U32, hasher: MinHash) -> dict[int, list[int]]:
    """For every document that shares a band with another one: the numbers of the bands it shares."""
    out: dict[int, list[int]] = defaultdict(list)
    used = 0
    for band in range(hasher.bands):
        rows = signatures[:, band * hasher.rows : (band + 1) * hasher.rows]
        hashes = np.zeros(len(rows), np.uint64)
        for column in range(hasher.rows):
            hashes = mix(hashes ^ rows[:, column].astype(np.uint64)) + np.uint64(column)
        _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        inverse = inverse.reshape(-1)
        for document in np.flatnonzero(counts[inverse] > 1):
            out[int(document)].append(used + int(inverse[document]))
        used += len(counts)
    return out

"""The pass over all sources together: which documents are copies of earlier ones.

Sources are taken in the order of the configuration, so the first named keeps what two of them share. Copies with equal text
go first (all sources but those with dedup = "none"), then near-duplicates (those with "near"); dedup.py has the method.
The result is one byte a document: 0 stays, 1 equal, 2 similar.

Two documents that have the same words and differ in their signs are not similar, however long they are: that is one program
with another operator, one table with another minus. Which signs count depends on the kind of text (kinds.py).

What it gives up: signatures of all documents are in memory at once, 480 bytes each; past some ten million documents the same
steps run as datatrove pipelines (cluster.py).
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao.atomic import new_folder, write_json
from gangpao.data.cleaning.dedup import MinHash, exact_duplicates, jaccard, near_duplicates
from gangpao.data.cleaning.ngrams import U64, shingles, units
from gangpao.data.cleaning.prepare import Prepared, signs_of
from gangpao.data.config import Dedup
from gangpao.data.sources.forms import Document

STAYS, EQUAL, SIMILAR = range(3)
_EXAMPLES = 10
_CACHED = 2048  # shingle sets; a large document's set is a megabyte

Flags = npt.NDArray[np.uint8]


class _Seen(NamedTuple):
    """What is compared of a document: its set of runs, and hashes of all its words, without and with the signs that count."""

    runs: U64
    words: bytes
    signs: bytes


def mark(prepared: Sequence[Prepared], options: Dedup, target: Path) -> None:
    """Write NAME.bin, a byte a document, for every source, and report.json with counts and examples."""
    sizes = [len(p.places()) for p in prepared]
    bases = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    corpus = _Corpus(prepared, bases, options)
    flags: Flags = np.zeros(int(bases[-1]), np.uint8)
    equal = corpus.equal()
    flags[list(equal)] = EQUAL
    similar = corpus.similar(flags)
    flags[list(similar)] = SIMILAR
    with new_folder(target) as folder:
        report: dict[str, Any] = {"sources": {}, "examples": corpus.examples(similar)}
        for p, base, size in zip(prepared, bases, sizes, strict=False):
            mine = flags[base : base + size]
            mine.tofile(folder / f"{p.name}.bin")
            report["sources"][p.name] = {
                "duplicate": int((mine == EQUAL).sum()),
                "near duplicate": int((mine == SIMILAR).sum()),
            }
        write_json(folder / "report.json", report)


def load(folder: Path, name: str) -> Flags:
    """One source's bytes."""
    return np.fromfile(folder / f"{name}.bin", np.uint8)


class _Corpus:
    """Documents of all sources under one running number."""

    def __init__(self, prepared: Sequence[Prepared], bases: npt.NDArray[np.int64], options: Dedup) -> None:
        self._prepared, self._bases, self._options = prepared, bases, options
        self._readers = [functools.cache(p.reader) for p in prepared]
        self._seen = functools.lru_cache(_CACHED)(self._look)

    def _numbers(self, *modes: str) -> npt.NDArray[np.int64]:
        parts = [
            np.arange(self._bases[i], self._bases[i + 1])
            for i, p in enumerate(self._prepared)
            if p.source.dedup_mode in modes
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def equal(self) -> dict[int, int]:
        """dropped -> kept."""
        numbers = self._numbers("near", "exact")
        if not len(numbers):
            return {}
        digests = np.concatenate([p.digests() for p in self._prepared if p.source.dedup_mode in ("near", "exact")])
        return {int(numbers[i]): int(numbers[j]) for i, j in exact_duplicates(digests).items()}

    def similar(self, flags: Flags) -> dict[int, int]:
        """dropped -> kept among those that flags leave."""
        numbers = self._numbers("near")
        if not len(numbers):
            return {}
        hasher = MinHash(self._options.bands, self._options.rows)
        width = self._options.bands * self._options.rows
        signatures = np.concatenate([p.signatures(width) for p in self._prepared if p.source.dedup_mode == "near"])
        assert len(signatures) == len(numbers)
        left = flags[numbers] == STAYS
        numbers, signatures = numbers[left], signatures[left]
        found = near_duplicates(
            signatures, hasher, self._options.threshold, lambda i, j: self.similarity(int(numbers[i]), int(numbers[j]))
        )
        return {int(numbers[i]): int(numbers[j]) for i, j in found.items()}

    def similarity(self, i: int, j: int) -> float:
        """Exact; 0 for the same words with other signs."""
        one, other = self._seen(i), self._seen(j)
        if one.words == other.words and one.signs != other.signs:
            return 0.0
        return jaccard(one.runs, other.runs)

    def _look(self, i: int) -> _Seen:
        document = self._document(i)
        text, signs = document.contents(), signs_of(document)
        words = units(text)
        found = units(text, signs)
        hashes = (hashlib.blake2b(part.tobytes(), digest_size=16).digest() for part in (words, found))
        return _Seen(shingles(found, self._options.ngram), *hashes)

    def _document(self, i: int) -> Document:
        return self._readers[self._source(i)]()(i - int(self._bases[self._source(i)]))

    def text(self, i: int) -> str:
        """What document i says."""
        return self._document(i).contents()

    def _source(self, i: int) -> int:
        return int(np.searchsorted(self._bases, i, "right")) - 1

    def examples(self, similar: dict[int, int]) -> list[dict[str, Any]]:
        """A few pairs, spread over all, for somebody to look at."""
        pairs = list(similar.items())
        return [
            {
                "dropped": f"{self._prepared[self._source(i)].name}: {self.text(i)[:120]}",
                "like": f"{self._prepared[self._source(j)].name}: {self.text(j)[:120]}",
                "similarity": round(self.similarity(i, j), 3),
            }
            for i, j in pairs[:: max(1, len(pairs) // _EXAMPLES)][:_EXAMPLES]
        ]

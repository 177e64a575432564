"""Keep evaluation sets out of training: find documents that quote their items, drop them, say which and how many.

Every text in a row of an evaluation file (a question, a passage, an answer) that has at least `ngram` units is an item. A
document is contaminated when it contains a large part of one item: `share` of the item's runs of `ngram` units, or
`enough` of them where the item is long. One shared run is not enough, because names of institutions and quotations of
statutes are longer than 13 Chinese characters; runs that occur in more than `max_items` items are the wording of
the test, not its content, and do not count.

The index is three sorted arrays; a document is looked up in one numpy pass, after a table of 2^24 bits has thrown out nearly
everything. What it gives up: items shorter than `ngram` units (counted in the report), paraphrases, translations.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.data.cleaning.ngrams import U64, runs, units

_TABLE_BITS = 24
_NOTHING = np.empty(0, np.uint64)
MAX_EXAMPLES = 20


@dataclass(slots=True)
class Index:
    """The items of all evaluation files. Pairs (run, item) sorted by run; need: runs of an item that make a hit."""

    hashes: U64
    items: npt.NDArray[np.int64]
    need: npt.NDArray[np.int64]
    item_file: npt.NDArray[np.int64]
    item_row: npt.NDArray[np.int64]
    files: list[str]
    too_short: list[int]
    ngram: int
    _table: npt.NDArray[np.bool_] | None = field(default=None)

    @classmethod
    def build(
        cls,
        files: Iterable[tuple[str, Iterable[Any]]],
        *,
        ngram: int = 13,
        share: float = 0.5,
        enough: int = 25,
        max_items: int = 10,
    ) -> "Index":
        """files: (name, parsed rows). ngram: units in a run; the others as the module says."""
        names: list[str] = []
        short: list[int] = []
        found: list[U64] = []
        origin: list[tuple[int, int]] = []
        for name, rows in files:
            names.append(name)
            short.append(0)
            for number, row in enumerate(rows):
                for text in leaves(row):
                    # Most texts are answers of a word or two; an ASCII unit needs a sign between it and the next.
                    least = 2 * ngram - 1 if text.isascii() else ngram
                    hashes = np.unique(runs(units(text), ngram)) if len(text) >= least else _NOTHING
                    if len(hashes):
                        found.append(hashes)
                        origin.append((len(names) - 1, number))
                    else:
                        short[-1] += 1
        sizes = np.array([len(h) for h in found], np.int64)
        hashes = np.concatenate(found) if found else np.empty(0, np.uint64)
        items = np.repeat(np.arange(len(sizes)), sizes)
        order = np.argsort(hashes, kind="stable")
        hashes, items = hashes[order], items[order]
        if len(hashes):
            _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
            telling = counts[inverse.reshape(-1)] <= max_items
            hashes, items = hashes[telling], items[telling]
        left = np.bincount(items, minlength=len(sizes))
        need = np.maximum(1, np.minimum(np.ceil(share * left), enough)).astype(np.int64)
        where = np.array(origin, np.int64).reshape(-1, 2)
        return cls(hashes, items, need, where[:, 0], where[:, 1], names, short, ngram)

    def save(self, folder: Path) -> None:
        """Write the index into an existing folder."""
        np.savez(
            folder / "index.npz", hashes=self.hashes, items=self.items, need=self.need, item_file=self.item_file,
            item_row=self.item_row, files=np.array(self.files, dtype=np.str_), too_short=np.array(self.too_short, np.int64),
            ngram=np.array(self.ngram),
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """What `save` wrote."""
        with np.load(folder / "index.npz", allow_pickle=False) as data:
            return cls(
                data["hashes"], data["items"], data["need"], data["item_file"], data["item_row"],
                [str(name) for name in data["files"]], [int(n) for n in data["too_short"]], int(data["ngram"]),
            )  # fmt: skip

    def hits(self, found: U64) -> list[int]:
        """The items that a document with these units (ngrams.units) contains."""
        table = self._lookup()
        mine = runs(found, self.ngram)
        mine = np.unique(mine[table[(mine >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)]])
        if not len(mine):
            return []
        left = np.searchsorted(self.hashes, mine, "left")
        right = np.searchsorted(self.hashes, mine, "right")
        touched = [self.items[a:b] for a, b in zip(left, right, strict=True) if b > a]
        if not touched:
            return []
        items, counts = np.unique(np.concatenate(touched), return_counts=True)
        return [int(item) for item in items[counts >= self.need[items]]]

    def _lookup(self) -> npt.NDArray[np.bool_]:
        if self._table is None:
            self._table = np.zeros(1 << _TABLE_BITS, np.bool_)
            self._table[(self.hashes >> np.uint64(64 - _TABLE_BITS)).astype(np.int64)] = True
        return self._table

    def where(self, item: int) -> str:
        """The evaluation file and row of an item."""
        return f"{self.files[self.item_file[item]]} row {self.item_row[item]}"

    def sizes(self) -> dict[str, dict[str, int]]:
        """By file: how many items are looked for, and how many texts are too short to be."""
        counts = Counter(int(i) for i in self.item_file)
        return {name: {"items": counts[i], "too_short": self.too_short[i]} for i, name in enumerate(self.files)}


@dataclass(slots=True)
class Findings:
    """What decontamination found in one source: documents by evaluation file, items hit, and a few examples."""

    documents: Counter[str] = field(default_factory=Counter)
    items: set[int] = field(default_factory=set)
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, index: Index, hit: list[int], text: str) -> None:
        """Note a contaminated document."""
        self.documents.update({index.files[index.item_file[item]] for item in hit})
        self.items.update(hit)
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append({"item": index.where(hit[0]), "document": " ".join(text[:200].split())})

    def report(self, index: Index) -> dict[str, Any]:
        """As JSON."""
        items = Counter(index.files[index.item_file[item]] for item in self.items)
        return {"documents": dict(self.documents), "items": dict(items), "examples": self.examples}


def leaves(row: Any) -> Iterator[str]:
    """Every text in a parsed JSON row, however deep (but not absurdly so)."""
    waiting = [(row, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list) and depth < 20:
            inner = value.values() if isinstance(value, dict) else value
            waiting.extend((child, depth + 1) for child in inner)

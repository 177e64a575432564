"""Which items of the tasks are in a training corpus: the search that keeps them out when a corpus is built, and one for short ones.

An item counts as found when one document holds a large part of its question (`data/cleaning/decontaminate.py` has the rule and
what it gives up). A question that is too short for that rule, or empty, as WinoGrande's, is looked for together with what belongs
to it, its right choice or its answer: each of these parts has to be in the document, a long one by the same rule and a short one
word by word. Scores are then also given without the items that were found.

What it gives up: items whose parts have too few units to tell them from other texts. They are counted, and never taken for clean.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gangpao.data.cleaning.decontaminate import Index, leaves
from gangpao.data.cleaning.ngrams import U64, runs, units
from gangpao.data.sources.files import format_of, read_rows, read_text
from gangpao.evaluate.tasks.docs import Doc
from gangpao.progress import Progress

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".md", ".zst", ".gz", ".bz2", ".xz")
_NGRAM = 13  # units from which on a text is looked for by its runs
_TELLING = 4  # units from which on a part says anything of its own
_ENOUGH = 8  # units that the telling parts of an item need together


@dataclass(frozen=True, slots=True)
class Searched:
    """Places of docs of one task. found: in the corpus; too_short: not looked for."""

    found: set[int] = field(default_factory=set)
    too_short: set[int] = field(default_factory=set)


def contaminated(docs: Mapping[str, Sequence[Doc]], corpus: Path, progress: Progress) -> dict[str, Searched]:
    """By task, which docs a document of the corpus (a file, or a folder of them) holds. Raises ValueError where nothing is read."""
    files = _files(corpus)
    search = _Search(docs)
    progress.start("looking for items in the corpus", len(files))
    texts = 0
    for number, path in enumerate(files, 1):
        for text in _texts(path):
            found = units(text)
            texts += len(found) > 0
            search.look(found)
        progress.update(number)
    if not texts:
        raise ValueError(
            f"--corpus {corpus}: no text in it ({len(files)} files were read); nothing can be looked for there"
        )
    return search.searched


def parts_of(doc: Doc) -> list[str]:
    """What makes an item what it is: its question, and its right choice or its answer."""
    choices = doc.get("choices")
    if not choices:
        return [doc["query"], str(doc.get("target") or doc.get("solution") or "")]
    right = str(choices[doc["gold"]])
    if doc["query"]:
        return [doc["query"], right]
    # Two beginnings of one end differ in a word or two; what is before them is there in every form of the row.
    words = [str(choice).split() for choice in choices]
    same = list(itertools.takewhile(lambda those: len(set(those)) == 1, zip(*words, strict=False)))
    return [" ".join(those[0] for those in same), " ".join(right.split()[len(same) :]), str(doc.get("target", ""))]


class _Search:
    """The items' parts, by runs of units and word by word."""

    def __init__(self, docs: Mapping[str, Sequence[Doc]]) -> None:
        self.searched = {task: Searched() for task in docs}
        self._parts: dict[tuple[str, int], list[U64]] = {}
        self._long: dict[str, list[str]] = {}
        self._short: dict[int, dict[int, list[tuple[str, int]]]] = defaultdict(lambda: defaultdict(list))
        for task, rows in docs.items():
            for place, doc in enumerate(rows):
                self._add(task, place, parts_of(doc))
        self._index = Index.build((name, ({"part": text} for text in texts)) for name, texts in self._long.items())
        looked = np.bincount(self._index.items, minlength=len(self._index.item_file))
        self._never = {
            self._where(item) for item in np.flatnonzero(looked == 0)
        }  # all its runs are those of many items
        for item in self._parts:
            self._prepare(item)
        self._tables = {length: np.array(sorted(known), np.uint64) for length, known in self._short.items()}

    def _add(self, task: str, place: int, parts: Sequence[str]) -> None:
        found = self._parts[task, place] = [units(part) for part in parts]
        for number, (text, one) in enumerate(zip(parts, found, strict=True)):
            self._long.setdefault(f"{number} {task}", []).append(text if len(one) >= _NGRAM else "")

    def _prepare(self, item: tuple[str, int]) -> None:
        """Say what leads to an item: its question, another long part of it, or the longest of the short ones."""
        found = self._parts[item]
        long = [
            number for number, part in enumerate(found) if len(part) >= _NGRAM and (*item, number) not in self._never
        ]
        short = [part for part in found if len(part) < _NGRAM]
        telling = sum(len(part) for part in short if len(part) >= _TELLING)
        if len(found[0]) >= _NGRAM:
            if 0 not in long:
                self.searched[item[0]].too_short.add(item[1])
        elif not long and telling < _ENOUGH:
            self.searched[item[0]].too_short.add(item[1])
        elif not long:
            longest = max(short, key=len)
            self._short[len(longest)][int(runs(longest, len(longest))[0])].append(item)

    def _where(self, item: Any) -> tuple[str, int, int]:
        number, _, task = self._index.files[self._index.item_file[item]].partition(" ")
        return task, int(self._index.item_row[item]), int(number)

    def look(self, document: U64) -> None:
        """Note the items that a document with these units holds."""
        held = {self._where(item) for item in self._index.hits(document)}
        wanted = {(task, place) for task, place, _ in held}
        for length, table in self._tables.items():
            for known in np.intersect1d(runs(document, length), table):
                wanted.update(self._short[length][int(known)])
        made: dict[int, set[int]] = {}
        for task, place in wanted:
            item = task, place
            if place in self.searched[task].found or place in self.searched[task].too_short:
                continue
            if (*item, 0) in held or (len(self._parts[item][0]) < _NGRAM and self._whole(item, document, held, made)):
                self.searched[task].found.add(place)

    def _whole(
        self, item: tuple[str, int], document: U64, held: set[tuple[str, int, int]], made: dict[int, set[int]]
    ) -> bool:
        """Whether every part is there; made: the document's runs by their length, as far as they were wanted."""
        for number, part in enumerate(self._parts[item]):
            length = len(part)
            if length >= _NGRAM:
                if (*item, number) not in held and (*item, number) not in self._never:
                    return False
            elif length:
                if length not in made:
                    made[length] = set(runs(document, length).tolist())
                if int(runs(part, length)[0]) not in made[length]:
                    return False
        return True


def _files(corpus: Path) -> list[Path]:
    if corpus.is_file():
        return [corpus]
    files = sorted(p for p in corpus.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"--corpus {corpus}: no files of text there ({' '.join(SUFFIXES)})")
    return files


def _texts(path: Path) -> Iterator[str]:
    """Documents: all texts of a row together, since a question and its answer may be apart."""
    form = format_of(path)
    rows: Any = [read_text(path)] if form == "txt" else read_rows(path, form)
    for row in rows:
        if row.wrong:
            raise ValueError(f"{path}:{row.number}: {row.wrong}")
        yield "\n".join(leaves(row.value))

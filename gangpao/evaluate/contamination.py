"""Which items of the tasks are in a training corpus: the same search that keeps them out when a corpus is built.

An item counts as found when a document holds a large part of its question (`data/cleaning/decontaminate.py` has the rule and
what it gives up). Scores are then also given without those items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gangpao.data.cleaning.decontaminate import Index, leaves
from gangpao.data.cleaning.ngrams import units
from gangpao.data.sources.files import format_of, read_rows, read_text
from gangpao.evaluate.tasks.docs import Doc
from gangpao.progress import Progress

Found = dict[str, set[int]]  # by task: places of docs
SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".txt", ".md", ".zst", ".gz", ".bz2", ".xz")


def contaminated(docs: Mapping[str, Sequence[Doc]], corpus: Path, progress: Progress) -> Found:
    """Docs whose question a document of the corpus (a file, or a folder of them) holds. Raises ValueError where nothing is read."""
    index = Index.build([(task, ({"question": doc["query"]} for doc in rows)) for task, rows in docs.items()])
    found: Found = defaultdict(set)
    files = _files(corpus)
    progress.start("looking for items in the corpus", len(files))
    for number, path in enumerate(files, 1):
        for text in _texts(path):
            for item in index.hits(units(text)):
                found[index.files[index.item_file[item]]].add(int(index.item_row[item]))
        progress.update(number)
    return found


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

"""The same cleaning past one machine: our steps as datatrove pipeline blocks, for its local, Slurm and Ray executors.

The idea: a block is a function from documents to documents, and ours decide about one document with the same code as `build`
(clean.py, decontaminate.py), so a corpus cleaned on a hundred machines has the documents that one machine would have kept.
What needs all documents at once, near-duplicates, is datatrove's own MinHash stages. A run writes JSON lines, which are then
a source of `gangpao data build`.

What it gives up: conversations (they fit on one machine), and equal results for near-duplicates, where hash functions differ.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gangpao.data.cleaning.clean import normalise, reject
from gangpao.data.cleaning.decontaminate import Index
from gangpao.data.cleaning.ngrams import units
from gangpao.data.config import Clean, TextKind
from gangpao.optional import need


def cleaning_step(
    options: Clean, language: str = "", index: Path | None = None, kind: TextKind = "auto"
) -> Callable[[Iterable[Any], int, int], Iterator[Any]]:
    """A pipeline block for datatrove: tidies `document.text`, drops what `build` would drop.

    A function (data, rank, world_size) -> data is a block there. index: a folder that decontaminate.Index.save wrote, on
    a disk that every worker sees. kind: as a source's text_kind.
    """
    return _Step(options, language, index, kind)


class _Step:
    """A class, because executors send their blocks to other processes and a closure cannot be sent."""

    def __init__(self, options: Clean, language: str, index: Path | None, kind: TextKind) -> None:
        self._options, self._language, self._index, self._kind = options, language, index, kind

    def __call__(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        index = Index.load(self._index) if self._index else None
        for document in data or ():
            document.text = normalise(document.text, self._kind)
            if reject(document.text, self._options, self._language):
                continue
            if index is not None and index.hits(units(document.text)):
                continue
            yield document


def clean_locally(
    source: Path, target: Path, options: Clean, *, language: str = "", index: Path | None = None, tasks: int = 1
) -> None:
    """Clean a folder of JSON lines with datatrove's local executor. For a cluster give `cleaning_step` to its own.

    Raises ValueError when datatrove is not installed.
    """
    executor = need("datatrove.executor", "cleaning with datatrove")
    readers = need("datatrove.pipeline.readers", "cleaning with datatrove")
    writers = need("datatrove.pipeline.writers.jsonl", "cleaning with datatrove")
    pipeline = [
        readers.JsonlReader(str(source), glob_pattern="*.jsonl"),
        cleaning_step(options, language, index),
        writers.JsonlWriter(str(target), compression=None),
    ]
    executor.LocalPipelineExecutor(
        pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(target / "logs"), skip_completed=True
    ).run()

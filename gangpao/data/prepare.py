"""The first pass over one source: read, tidy, reject, decontaminate, fingerprint; the documents that stay go to a work folder.

    documents.jsonl   one document a line, tidied
    ends.bin          uint64 each: where its line ends
    digests.bin       16 bytes each: a hash of the text without white space, for exact duplicates
    places.bin        uint64 each: a hash that decides, whatever else is in the corpus, who is held out
    signatures.bin    uint32[bands * rows] each, where near-duplicates are looked for
    report.json       what was read, and what was dropped why

The idea: everything that looks at one document alone happens here, once, and source by source in processes of their own. The
order of the checks is the order of the report. It gives up disk: the text lies in the work folder once more, until the next
build with other settings or until somebody deletes it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.atomic import new_folder, read_json, write_json
from gangpao.data.clean import normalise, reject
from gangpao.data.config import Dedup, Source
from gangpao.data.decontaminate import Findings, Index
from gangpao.data.dedup import MinHash
from gangpao.data.ngrams import runs, units
from gangpao.data.source import Document, read
from gangpao.text.chat import Message

Tick = Callable[[int], None]
_CONVERSATION_HEAD = 200  # characters of a conversation's first message that decide whether it is held out
_TICK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Job:
    """One source to prepare. index: folder of the evaluation index, or None. Plain data, for another process."""

    name: str
    source: Source
    files: tuple[Path, ...]
    dedup: Dedup
    index: Path | None
    target: Path


@dataclass(slots=True)
class _Counts:
    read: int = 0
    read_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_bytes: int = 0
    stopped: bool = False


def prepare(job: Job, tick: Tick | None = None) -> dict[str, Any]:
    """Do the job and return its report. tick gets the bytes of text read so far."""
    index = Index.load(job.index) if job.index else None
    findings = Findings()
    counts = _Counts()
    hasher = MinHash(job.dedup.bands, job.dedup.rows) if job.source.dedup_mode == "near" else None
    with new_folder(job.target) as folder:
        with (
            (folder / "documents.jsonl").open("wb") as documents,
            (folder / "ends.bin").open("wb") as ends,
            (folder / "digests.bin").open("wb") as digests,
            (folder / "places.bin").open("wb") as places,
            (folder / "signatures.bin").open("wb") as signatures,
        ):
            for document, text, found in _kept(job, index, findings, counts, tick):
                documents.write(_line(document))
                ends.write(documents.tell().to_bytes(8, "little"))
                digests.write(digest(text))
                places.write(place(document).to_bytes(8, "little"))
                if hasher is not None:
                    length = min(job.dedup.ngram, max(1, len(found)))
                    signatures.write(hasher.signature(np.unique(runs(found, length))).tobytes())
        report = _report(counts)
        report["contaminated"] = findings.report(index) if index else {}
        write_json(folder / "report.json", report)
    return report


def _kept(
    job: Job, index: Index | None, findings: Findings, counts: _Counts, tick: Tick | None
) -> Iterator[tuple[Document, str, npt.NDArray[np.uint64]]]:
    source = job.source
    ticked = 0
    for raw in read(source, job.files):
        if (source.max_documents and counts.kept >= source.max_documents) or (
            source.max_bytes and counts.kept_bytes >= source.max_bytes
        ):
            counts.stopped = True
            return
        document = tidy(raw) if raw is not None else None
        text = document.contents() if document else ""
        size = len(text.encode())
        counts.read += 1
        counts.read_bytes += size
        if tick and counts.read_bytes - ticked >= _TICK_BYTES:
            ticked = counts.read_bytes
            tick(ticked)
        found = np.empty(0, np.uint64)
        if document is None:
            reason = "malformed"
        elif source.share < 1 and _share_of(text) >= source.share:
            reason = "not sampled"
        else:
            reason = reject(text, source.clean, source.language) or ""
            if not reason and (index is not None or source.dedup_mode == "near"):
                found = units(text)
            if not reason and index is not None and (hit := index.hits(found)):
                findings.add(index, hit, text)
                reason = "contaminated"
        if reason or document is None:
            counts.dropped[reason] += 1
            counts.dropped_bytes += size
            continue
        counts.kept += 1
        counts.kept_bytes += size
        yield document, text, found


def _report(counts: _Counts) -> dict[str, Any]:
    return {
        "read": counts.read,
        "read_bytes": counts.read_bytes,
        "kept": counts.kept,
        "kept_bytes": counts.kept_bytes,
        "dropped": dict(counts.dropped),
        "dropped_bytes": counts.dropped_bytes,
        "stopped": counts.stopped,
    }


def tidy(document: Document) -> Document:
    """The document with every text in it normalised."""
    if not document.messages:
        return Document(normalise(document.text))
    messages: list[Message] = [{"role": m["role"], "content": normalise(m["content"])} for m in document.messages]
    return Document(messages=tuple(messages))


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in white space and case only."""
    return hashlib.blake2b("".join(text.split()).lower().encode(), digest_size=16).digest()


def place(document: Document) -> int:
    """64 bits from the document alone. Conversations that start alike have the same, so that questions about one passage
    do not end up on both sides of the border."""
    text = document.messages[0]["content"][:_CONVERSATION_HEAD] if document.messages else document.text
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"held out").digest(), "little")


def _share_of(text: str) -> float:
    found = hashlib.blake2b(text.encode(), digest_size=8, person=b"sample").digest()
    return int.from_bytes(found, "little") / 2**64


def _line(document: Document) -> bytes:
    value = {"messages": document.messages} if document.messages else {"text": document.text}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A finished work folder."""

    name: str
    source: Source
    path: Path

    def report(self) -> dict[str, Any]:
        """What `prepare` returned."""
        found = read_json(self.path / "report.json")
        assert isinstance(found, dict)
        return found

    def digests(self) -> npt.NDArray[np.uint64]:
        """[documents, 2]."""
        return np.fromfile(self.path / "digests.bin", "<u8").reshape(-1, 2)

    def places(self) -> npt.NDArray[np.uint64]:
        """[documents]."""
        return np.fromfile(self.path / "places.bin", "<u8")

    def signatures(self, width: int) -> npt.NDArray[np.uint32]:
        """[documents, width], or [0, width] where none were made."""
        return np.fromfile(self.path / "signatures.bin", "<u4").reshape(-1, width)

    def documents(self) -> Iterator[Document]:
        """All of them, in order."""
        with (self.path / "documents.jsonl").open("rb") as file:
            for line in file:
                yield _parsed(line)

    def reader(self) -> Callable[[int], Document]:
        """Documents by number, read from the disk one at a time."""
        path = self.path / "documents.jsonl"
        ends = np.fromfile(self.path / "ends.bin", "<u8")

        def document(i: int) -> Document:
            start, stop = int(ends[i - 1]) if i else 0, int(ends[i])
            with path.open("rb") as file:
                file.seek(start)
                return _parsed(file.read(stop - start))

        return document


def _parsed(line: bytes) -> Document:
    value = json.loads(line)
    return Document(messages=tuple(value["messages"])) if "messages" in value else Document(value["text"])

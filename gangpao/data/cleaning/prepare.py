"""The first pass over one source: read, tidy, reject, decontaminate, fingerprint; the documents that stay go to a work folder.

    documents.jsonl   one document a line, tidied
    ends.bin          uint64 each: where its line ends
    digests.bin       16 bytes each: a hash of the text without white space, for exact duplicates
    places.bin        three uint64 each: hashes that decide, whatever else is in the corpus, who is held out
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
from gangpao.data.cleaning.clean import normalise, reject
from gangpao.data.cleaning.decontaminate import Findings, Index
from gangpao.data.cleaning.dedup import MinHash
from gangpao.data.cleaning.kinds import is_code
from gangpao.data.cleaning.ngrams import Signs, shingles, units
from gangpao.data.config import Dedup, Source, TextKind
from gangpao.data.sources.forms import Document, Malformed, said
from gangpao.data.sources.source import explain, read

Tick = Callable[[int], None]
_TICK_BYTES = 1 << 18
_QUESTION_HEAD = 200  # characters of a conversation's first question that decide whether it is held out
PLACES = 3
_EXAMPLES = 5
_UNDECODABLE = 0.1  # more of the rows than this in another encoding: the source is, not a few damaged rows


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
    undecodable: int = 0
    malformed: list[Malformed] = field(default_factory=list)

    def note(self, row: Malformed) -> None:
        """Remember the first rows that are no documents, those whose bytes are the reason before others."""
        self.undecodable += row.encoding
        if len(self.malformed) < _EXAMPLES:
            self.malformed.append(row)


def prepare(job: Job, tick: Tick | None = None) -> dict[str, Any]:
    """Do the job and return its report. tick gets the bytes of text read so far.

    Raises ValueError when no row of the source is a document, or many are in another encoding.
    """
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
            for document, text in _kept(job, index, findings, counts, tick):
                documents.write(_line(document))
                ends.write(documents.tell().to_bytes(8, "little"))
                digests.write(digest(text))
                places.write(np.array(places_of(document), "<u8").tobytes())
                if hasher is not None:
                    found = units(text, signs_of(document))
                    signatures.write(hasher.signature(shingles(found, job.dedup.ngram)).tobytes())
        _refuse_empty(job, counts)
        report = _report(counts)
        report["contaminated"] = findings.report(index) if index else {}
        write_json(folder / "report.json", report)
    return report


def _kept(
    job: Job, index: Index | None, findings: Findings, counts: _Counts, tick: Tick | None
) -> Iterator[tuple[Document, str]]:
    """Documents that stay, and what they say."""
    source = job.source
    ticked = 0
    for raw in read(source, job.files):
        if (source.max_documents and counts.kept >= source.max_documents) or (
            source.max_bytes and counts.kept_bytes >= source.max_bytes
        ):
            counts.stopped = True
            return
        document = tidy(raw, source.text_kind) if isinstance(raw, Document) else None
        text = document.contents() if document else ""
        size = len(text.encode())
        counts.read += 1
        counts.read_bytes += size
        if tick and counts.read_bytes - ticked >= _TICK_BYTES:
            ticked = counts.read_bytes
            tick(ticked)
        if isinstance(raw, Malformed):
            counts.note(raw)
            reason = "malformed"
        elif source.share < 1 and _share_of(text) >= source.share:
            reason = "not sampled"
        else:
            reason = reject(text, source.clean, source.language) or ""
            if not reason and index is not None and (hit := index.hits(units(text))):
                findings.add(index, hit, text)
                reason = "contaminated"
        if reason or document is None:
            counts.dropped[reason] += 1
            counts.dropped_bytes += size
            continue
        counts.kept += 1
        counts.kept_bytes += size
        yield document, text


def _refuse_empty(job: Job, counts: _Counts) -> None:
    if counts.undecodable > _UNDECODABLE * counts.read:
        first = next(row for row in counts.malformed if row.encoding)
        of = f"{counts.undecodable} of {counts.read} rows"
        raise ValueError(f"source {job.name}: {of} are not {job.source.encoding}; {first.where}: {first.why}")
    if counts.read and counts.dropped["malformed"] == counts.read:
        raise ValueError(f"source {job.name}: {explain(job.source, job.files, counts.read)}")


def _report(counts: _Counts) -> dict[str, Any]:
    return {
        "read": counts.read,
        "read_bytes": counts.read_bytes,
        "kept": counts.kept,
        "kept_bytes": counts.kept_bytes,
        "dropped": dict(counts.dropped),
        "dropped_bytes": counts.dropped_bytes,
        "stopped": counts.stopped,
        "malformed": [{"where": row.where, "why": row.why} for row in counts.malformed],
    }


def tidy(document: Document, kind: TextKind = "auto") -> Document:
    """The document with every text in it normalised, and with what kind of text it is."""
    code = is_code(document.contents(), kind)
    if not document.messages:
        return Document(normalise(document.text, "code" if code else "prose"), code=code)
    turns = tuple({**turn, "content": normalise(turn["content"], kind)} for turn in document.messages)
    return Document(messages=turns, tools=document.tools, code=code)


def signs_of(document: Document) -> Signs:
    """Which signs distinguish a document from similar ones: those of code, else of numbers, and emoji."""
    return "all" if document.code else "few"


def digest(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in white space and case only."""
    return hashlib.blake2b("".join(text.split()).lower().encode(), digest_size=16).digest()


def places_of(document: Document) -> tuple[int, int, int]:
    """Three times 64 bits from the document alone, each of more of it than the one before.

    Conversations whose first questions start alike have the same first place, so that questions about one passage do not
    end up on both sides of the border; the second is the whole question's, for prompts that all start alike, the third the
    whole document's. What a system prompt says does not count.
    """
    whole = document.contents()
    asked = next((said(turn) for turn in document.messages if turn["role"] == "user"), whole)
    one, two, three = (_hash(text, b"held out") for text in (asked[:_QUESTION_HEAD], asked, whole))
    return (one, two, three) if document.messages else (three, three, three)


def _hash(text: str, purpose: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=purpose).digest(), "little")


def _share_of(text: str) -> float:
    return _hash(text, b"sample") / 2**64


def _line(document: Document) -> bytes:
    value: dict[str, Any] = {"messages": document.messages, "tools": document.tools, "code": document.code}
    if not document.messages:
        value = {"text": document.text, "code": document.code}
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
        """[documents, PLACES]."""
        return np.fromfile(self.path / "places.bin", "<u8").reshape(-1, PLACES)

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
    if "messages" in value:
        return Document(messages=tuple(value["messages"]), tools=tuple(value["tools"]), code=value["code"])
    return Document(value["text"], code=value["code"])

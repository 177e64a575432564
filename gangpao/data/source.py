"""Documents out of files: JSON lines (plain or under zstd), parquet, text files, data sets of a hub, and our own generator.

One function, `read`, yields a document for every row, or None for a row that is none (no such key, no text, wrong roles), so
that the caller can count what was lost. Files are read as streams: memory is one row, a line is at most 64 MiB, and a
compressed file that was cut short is an error, not a short corpus.

What it gives up: rows that need more than a key to become text.
"""

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gangpao.data.config import Source
from gangpao.data.generated import chats, texts
from gangpao.data.needs import need
from gangpao.text.chat import Message

MAX_LINE = 64 << 20
# A block of zstd can stand for 128 KiB in four bytes, so what one piece of input may become is bounded by its size.
_ZST_CHUNK = 4096
_CHUNK = 1 << 20

SUFFIXES = {
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".zst": "jsonl.zst", ".parquet": "parquet", ".txt": "txt",
    ".md": "txt",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a conversation."""

    text: str = ""
    messages: tuple[Message, ...] = ()

    def contents(self) -> str:
        """Everything that is said, as one text: what filters and duplicates are about."""
        return "\n".join(message["content"] for message in self.messages) if self.messages else self.text


def files_of(source: Source, root: Path) -> list[Path]:
    """The files behind a source, in order. Fetches those of a hub's data set. Raises ValueError when there are none."""
    if source.format == "generated":
        return []
    if source.format == "huggingface":
        return _from_hub(source)
    return matching(root, source.path)


def matching(root: Path, pattern: str) -> list[Path]:
    """Files below `root` that a relative path or pattern names. Raises ValueError when there are none."""
    base = Path(pattern).expanduser() if Path(pattern).expanduser().is_absolute() else root / pattern
    if base.is_file():  # first, so that a name with brackets in it needs no escaping
        return [base]
    found = sorted(Path(name) for name in glob.glob(str(base), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise ValueError(f"{base}: there is no such file; check the path, or set another root with --set root=FOLDER")
    return files


def format_of(source: Source, path: Path) -> str:
    """The format of one file. Raises ValueError for an unknown suffix."""
    if source.format not in ("auto", "huggingface"):
        return source.format
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ValueError(f"{path}: unknown suffix; set format to jsonl, jsonl.zst, parquet or txt")
    return found


def read(source: Source, files: Iterable[Path]) -> Iterator[Document | None]:
    """All documents of a source in order; None for rows that are none."""
    if source.format == "generated":
        if source.kind == "chat":
            yield from (Document(messages=tuple(chat)) for chat in chats(source.documents, source.seed))
        else:
            yield from (Document(text) for text in texts(source.kind, source.documents, source.seed))
        return
    key = source.messages or source.text
    for path in files:
        if format_of(source, path) == "txt":
            yield Document(path.read_bytes().decode("utf-8", "replace"))
            continue
        for row in rows(path, format_of(source, path), key):
            yield _document(row, source)


def rows(path: Path, form: str, key: str = "") -> Iterator[Any]:
    """Parsed rows of a file, None where a line is no JSON. key: the one column that parquet need be read for."""
    if form == "parquet":
        yield from _parquet(path, key)
        return
    with path.open("rb") as file:
        chunks = _zst_chunks(file, path) if form == "jsonl.zst" else iter(lambda: file.read(_CHUNK), b"")
        for line in _lines(chunks, path):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):  # counted by the caller as a row that is no document
                yield None


def _document(row: Any, source: Source) -> Document | None:
    if not isinstance(row, dict):
        return None
    if not source.messages:
        text = row.get(source.text)
        return Document(text) if isinstance(text, str) else None
    found = row.get(source.messages)
    if not isinstance(found, list) or not found:
        return None
    out: list[Message] = []
    for message in found:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            return None
        out.append({"role": role, "content": content})
    # Without an answer there is nothing to learn.
    return Document(messages=tuple(out)) if any(m["role"] == "assistant" for m in out) else None


def _lines(chunks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []
    waiting = number = 0
    for chunk in chunks:
        first, found, tail = chunk.partition(b"\n")
        rest.append(first)
        waiting += len(first)
        if waiting > MAX_LINE:
            raise ValueError(f"{path}: line {number + 1} is longer than {MAX_LINE >> 20} MiB; is this JSON lines?")
        if not found:
            continue
        whole = b"".join(rest) + b"\n" + tail
        *complete, last = whole.split(b"\n")
        yield from complete
        number += len(complete)
        rest, waiting = [last], len(last)
    if waiting:
        yield b"".join(rest)


def _zst_chunks(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The content of one or more zstd frames. Raises ValueError when the file is damaged or ends inside a frame."""
    zstandard = need("zstandard", f"reading {path.name}")
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    stream = decompressor.decompressobj()
    fresh = True
    while chunk := file.read(_ZST_CHUNK):
        while chunk:
            if stream.eof:
                stream, fresh = decompressor.decompressobj(), True
            try:
                data = stream.decompress(chunk)
            except zstandard.ZstdError as error:
                raise ValueError(f"{path}: damaged, or not a zstd file: {error}") from error
            fresh = False
            chunk = stream.unused_data if stream.eof else b""
            if data:
                yield data
    if not fresh and not stream.eof:
        raise ValueError(f"{path}: the file was cut short; get it again")


def _parquet(path: Path, key: str) -> Iterator[Any]:
    parquet = need("pyarrow.parquet", f"reading {path.name}")
    arrow = need("pyarrow", f"reading {path.name}")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if key and key not in names:
                raise ValueError(f"{path}: there is no column {key!r}; it has {', '.join(names)}")
            for batch in file.iter_batches(batch_size=256, columns=[key] if key else None):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a parquet file: {error}") from error


def _from_hub(source: Source) -> list[Path]:
    """Files of a data set on the Hugging Face hub, through its client's cache; nothing in them is executed."""
    hub = need("huggingface_hub", f"the data set {source.path}")
    try:
        folder = hub.snapshot_download(
            source.path, repo_type="dataset", revision=source.revision, allow_patterns=[source.files]
        )
    except Exception as error:  # the client's own errors have no common base and change with its version
        raise ValueError(f"the data set {source.path} could not be fetched: {error}") from error
    return matching(Path(folder), source.files)

"""Rows out of files: JSON lines, JSON arrays, parquet and texts, compressed or not, in any encoding that is named.

Files are read as streams: memory is one row, a row is at most 64 MiB, and a compressed file that was cut short is an error,
not a short corpus. `.json` may be lines, one array on one line, or values that are spread over lines: what stands first tells.

What it gives up: going on behind damage inside an array, because nothing says where the next row begins; lines go on.
"""

import bz2
import codecs
import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gangpao.optional import need

MAX_LINE = 64 << 20
# A block of zstd can stand for 128 KiB in four bytes, so what one piece of input may become is bounded by its size.
_ZST_CHUNK = 4096
_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_GUESSES = ("gb18030", "big5", "shift_jis", "cp1252")

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SUFFIXES = {
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "txt", ".md": "txt",
}  # fmt: skip


class Row(NamedTuple):
    """One row: the line it begins in (parquet: its number, from 1), its value, or what is wrong with it.

    element: of an array with several values in a line, which it is, from 1; 0 for all others, whose line says enough.
    """

    number: int
    value: Any
    wrong: str = ""
    encoding: bool = False  # whether its bytes are what is wrong
    element: int = 0


def format_of(path: Path, given: str = "auto") -> str:
    """jsonl, parquet or txt: as given, or by the suffix in front of a compression's. Raises ValueError for an unknown one."""
    if given not in ("auto", "huggingface", "public"):
        return given.partition(".")[0]
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in (*_OPENERS, ".zst")
    last = suffixes[-2:-1] if packed else suffixes[-1:]
    found = _SUFFIXES.get(last[0]) if last else None
    if packed and found is None:
        return "jsonl"  # what is compressed and does not say more
    if found is None:
        raise ValueError(f"{path}: unknown suffix; set format to jsonl, parquet or txt")
    return found


def read_text(path: Path, encoding: str = "utf-8") -> Row:
    """A whole file as one text; a mark of its byte order is no part of it."""
    data = b"".join(_chunks(path))
    try:
        return Row(1, data.decode(encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        return Row(1, None, undecodable(data, error), encoding=True)


def read_rows(path: Path, form: str, encoding: str = "utf-8", columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a JSON or parquet file. columns: all that parquet need be read for; None: all.

    Raises ValueError for a file that is damaged as a whole, or not in `encoding` where that is not UTF-8.
    """
    if form == "parquet":
        for number, value in enumerate(_parquet(path, columns), 1):
            yield Row(number, value)
        return
    chunks = _chunks(path)
    if codecs.lookup(encoding).name != "utf-8":
        chunks = (text.encode("utf-8", "surrogatepass") for text in _decoded(chunks, path, encoding))
    first = next(chunks, b"").removeprefix(codecs.BOM_UTF8)
    rest = itertools.chain([first], chunks)
    yield from _values(_decoded(rest, path, "utf-8"), path) if _spread(first) else _json_lines(rest, path)


def undecodable(data: bytes, error: UnicodeDecodeError, before: int = 0) -> str:
    """Which byte is wrong, `before` of them in front of data, and in what encoding the text might be."""
    where = f"byte {before + error.start + 1} (0x{error.object[error.start]:02x}) is not {error.encoding.upper()}"
    return f"{where}; {_way_out(data)}"


def _way_out(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return 'it begins as UTF-16 does: set encoding = "utf-16" in the source'
    for name in _GUESSES:
        try:
            data[: 1 << 16].decode(name)
        except UnicodeDecodeError:
            continue
        return f'if that is its encoding, set encoding = "{name}" in the source'
    return 'name its encoding in the source: encoding = "..."'


def _json_lines(chunks: Iterator[bytes], path: Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(chunks, path), 1):
        if not line.strip():
            continue
        try:
            yield Row(number, json.loads(line.decode()))
        except UnicodeDecodeError as error:
            yield Row(number, None, undecodable(line, error), encoding=True)
        except RecursionError:
            yield Row(number, None, "is nested too deep")
        except ValueError as error:
            yield Row(number, None, f"is no JSON: {error}")


def _spread(head: bytes) -> bool:
    """Whether JSON that begins so is one array, or values spread over lines, rather than a value a line."""
    text = head.decode("utf-8", "ignore").lstrip(_SPACE)
    line, found, rest = text.partition("\n")
    rest = rest.lstrip(_SPACE)
    try:
        return isinstance(json.loads(line), list) and not rest
    except (ValueError, RecursionError):
        if line.startswith("["):
            return not found or not rest.startswith("[")
        return line.startswith("{") and rest[:1] in ('"', "}")


def _values(chunks: Iterator[str], path: Path) -> Iterator[Row]:
    """The elements of an array, or values one after the other; commas between them do not matter."""
    decoder = json.JSONDecoder()
    text, at, line, ended, inside = "", 0, 1, False, None
    count, before = 0, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            line, at = line + (text[at] == "\n"), at + 1
        if inside is None and at < len(text):
            inside = text[at] == "["
            at += inside
            continue
        if inside and text[at : at + 1] == "]":
            return
        try:
            value, end = decoder.raw_decode(text, at)
            # A number may go on in what has not been read; everything else says where it ends.
            if end < len(text) or ended:
                count += 1
                neighbour = line == before or bool(text[end : end + 64].partition("\n")[0].strip(" \t\r,]"))
                before = line + text.count("\n", at, end)
                yield Row(line, value, element=count if inside and neighbour else 0)
                line, at = before, end
                continue
        except (ValueError, RecursionError) as error:
            if ended and at < len(text):
                raise ValueError(f"{path}: damaged JSON in the value that begins in line {line}: {error}") from error
        if ended:
            if inside:
                raise ValueError(f"{path}: the file was cut short: its array has no end; get it again")
            return
        text, at = text[at:], 0
        if len(text) > MAX_LINE:
            raise ValueError(f"{path}: the value that begins in line {line} is longer than {MAX_LINE >> 20} MiB")
        chunk = next(chunks, "")
        # As much again as there is, so that a long value is not tried once for every chunk.
        while len(chunk) < len(text) and (more := next(chunks, "")):
            chunk += more
        text, ended = text + chunk, not chunk


def _lines(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
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


def _decoded(chunks: Iterable[bytes], path: Path, encoding: str) -> Iterator[str]:
    """The same as text. Raises ValueError naming the byte that is not in the encoding."""
    decoder, done = codecs.getincrementaldecoder(encoding)(), 0
    for chunk in itertools.chain(chunks, [b""]):
        waiting = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = done - len(waiting)
            raise ValueError(f"{path}: {undecodable(waiting + chunk, error, at)}") from error
        if text:
            yield text
        done += len(chunk)


def _chunks(path: Path) -> Iterator[bytes]:
    """The content of a file, unpacked. Raises ValueError when it is damaged or was cut short."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        with path.open("rb") as file:
            yield from _zst_chunks(file, path)
        return
    try:
        with _OPENERS.get(suffix, Path.open)(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except EOFError as error:
        raise ValueError(f"{path}: the file was cut short; get it again") from error
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}: damaged, or not a {suffix} file: {error}") from error


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


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    parquet = need("pyarrow.parquet", f"reading {path.name}")
    arrow = need("pyarrow", f"reading {path.name}")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if columns and columns[0] not in names:
                raise ValueError(f"{path}: there is no column {columns[0]!r}; it has {', '.join(names)}")
            wanted = [name for name in columns if name in names] if columns else None
            for batch in file.iter_batches(batch_size=256, columns=wanted):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a parquet file: {error}") from error

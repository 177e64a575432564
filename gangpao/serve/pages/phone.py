"""What a phone needs of this server to run a model by itself: the model in pieces that a browser can hold, and an address.

A browser keeps no file of some gigabytes in one buffer, so a GGUF file larger than MAX_PIECE is offered as the split files
that llama.cpp's own loader joins again: the first has all the metadata and the first tensors, the others only tensors. The
idea: no piece is ever written. A piece is a small header of ours followed by spans of the model's file, and any range of
it is read from there when it is asked for.

What it gives up: a tensor is never cut, so a piece is larger than MAX_PIECE where one tensor is; a file that changes while
somebody fetches it gets another ETag, and the phone starts over.
"""

import functools
import hashlib
import io
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import GGUF, ModelFileError, TensorInfo
from gangpao.log import show_bytes

MAX_PIECE = 512_000_000
CHUNK = 1 << 20
LIBRARY_BYTES = 3_000_000  # what the browser library and our page take on the way, packed
_ALIGNMENT = 32  # what a file without general.alignment has; the pieces behind the first are such
_UINT16, _INT32 = 2, 5


@dataclass(frozen=True, slots=True)
class Piece:
    """One file as a phone sees it: `header`, then `spans` (offset, size, padding behind) of the model's file."""

    name: str
    header: bytes
    spans: tuple[tuple[int, int, int], ...]
    etag: str

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + sum(size + padding for _, size, padding in self.spans)


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as a phone gets it. memory: bytes it takes there, about."""

    path: Path
    pieces: tuple[Piece, ...]
    architecture: str
    context: int

    @property
    def size(self) -> int:
        """Bytes of the whole download."""
        return sum(piece.size for piece in self.pieces)


def offer(path: Path) -> Offer:
    """The pieces of a model file as it is now. Raises ModelFileError, or OSError where it cannot be read."""
    found = path.stat()
    return _offer(path, found.st_size, found.st_mtime_ns, MAX_PIECE)


@functools.lru_cache(maxsize=64)
def _offer(path: Path, size: int, stamp: int, limit: int) -> Offer:
    with GGUF.open(path) as model:
        if len(model.paths) > 1:
            raise ModelFileError(
                f"{path}: a phone takes a model of one file, and this one has {len(model.paths)} parts"
            )
        architecture = model.get_str("general.architecture")
        context = model.get_int(f"{architecture}.context_length", 0)
        mark = hashlib.blake2b(f"{path.name} {size} {stamp} {limit}".encode(), digest_size=12).hexdigest()
        if size <= limit or "split.count" in model.metadata:  # a file that says it is the only part stays one
            pieces: tuple[Piece, ...] = (Piece(path.name, b"", ((0, size, 0),), f'"{mark}"'),)
        else:
            pieces = split(model, limit, mark)
    return Offer(path, pieces, architecture, context)


def split(model: GGUF, limit: int, mark: str) -> tuple[Piece, ...]:
    """The pieces of an open model, each of about `limit` bytes at most. `mark` begins their ETags."""
    tensors = list(model.tensors.values())
    groups: list[list[TensorInfo]] = [[]]
    used = model.metadata_end
    for tensor in tensors:
        if groups[-1] and used + tensor.nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes + len(tensor.name.encode()) + 64 + _ALIGNMENT  # its entry in the header, and padding
    with model.path.open("rb") as file:
        file.seek(24)
        metadata = file.read(model.metadata_end - 24)
    alignment = model.get_int("general.alignment", _ALIGNMENT)
    stem = model.path.name.removesuffix(".gguf")
    out = []
    for index, group in enumerate(groups):
        name = f"{stem}-{index + 1:05}-of-{len(groups):05}.gguf"
        keys = _split_keys(index, len(groups), len(tensors))
        first = index == 0
        header, spans = _layout(
            group, (metadata if first else b"") + keys, (len(model.metadata) if first else 0) + 3,
            alignment if first else _ALIGNMENT,
        )  # fmt: skip
        out.append(Piece(name, header, spans, f'"{mark}-{index + 1}"'))
    return tuple(out)


def _split_keys(index: int, count: int, tensors: int) -> bytes:
    """The three entries that llama.cpp's loader joins the files by."""
    entries = (
        ("split.no", _UINT16, "H", index),
        ("split.count", _UINT16, "H", count),
        ("split.tensors.count", _INT32, "i", tensors),
    )
    return b"".join(_text(key) + struct.pack(f"<I{code}", kind, value) for key, kind, code, value in entries)


def _layout(
    group: Sequence[TensorInfo], metadata: bytes, num_keys: int, alignment: int
) -> tuple[bytes, tuple[tuple[int, int, int], ...]]:
    """Header and spans of a file of these tensors, each padded to the alignment, the last one too."""
    out = io.BytesIO()
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(group), num_keys) + metadata)
    spans, offset = [], 0
    for tensor in group:
        shape = tensor.shape[::-1]
        out.write(_text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        out.write(struct.pack("<IQ", BY_NAME[tensor.type].id, offset))
        padding = -tensor.nbytes % alignment
        spans.append((tensor.offset, tensor.nbytes, padding))
        offset += tensor.nbytes + padding
    out.write(bytes(-out.tell() % alignment))
    return out.getvalue(), tuple(spans)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def read(path: Path, piece: Piece, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a piece, some at a time."""
    with path.open("rb") as file:
        yield from _slice(piece.header, start, stop)
        at = len(piece.header)
        for offset, size, padding in piece.spans:
            low, high = max(start, at), min(stop, at + size)
            while low < high:
                file.seek(offset + low - at)
                chunk = file.read(min(CHUNK, high - low))
                if not chunk:
                    raise OSError(f"{path}: shorter than it was")
                yield chunk
                low += len(chunk)
            at += size
            yield from _slice(bytes(padding), start - at, stop - at)
            at += padding


def _slice(data: bytes, start: int, stop: int) -> Iterator[bytes]:
    cut = data[max(0, start) : max(0, stop)]
    if cut:
        yield cut


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, stop) that a Range header asks for; None: everything (no header, several ranges, or not in bytes).

    Raises ValueError where the range lies outside.
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip())
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start = int(found[1])
        stop = min(size, int(found[2]) + 1) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None  # not a range at all, says the standard
    if start >= stop:
        raise ValueError(f"the range {header} lies outside of the {size} bytes")
    return start, stop


def offers(models: dict[str, Path]) -> Iterator[tuple[str, Offer]]:
    """Those of the models that a phone can get, by name; what is no readable GGUF file is left out."""
    for name, path in models.items():
        if path.is_file() and os.access(path, os.R_OK):
            try:
                yield name, offer(path)
            except ModelFileError:
                continue


def describe(name: str, found: Offer) -> dict[str, Any]:
    """A model in the list that the phone page reads: sizes in bytes, addresses of the pieces."""
    return {
        "name": name,
        "bytes": found.size,
        "architecture": found.architecture,
        "context": found.context,
        "pieces": [
            {
                "url": f"/phone/models/{quote(name, safe='')}/{index}",
                "name": piece.name,
                "bytes": piece.size,
                "etag": piece.etag.strip('"'),
            }
            for index, piece in enumerate(found.pieces, 1)
        ],
    }


def notice(url: str, models: dict[str, Path], *, authority: bool = False) -> str:
    """What is printed for a phone: a QR code of the page's address, the address, and what will be downloaded.

    authority: the phone does not trust the server's certificate before it has installed /ca.crt.
    """
    import segno

    page = url.rstrip("/") + "/phone"
    code = io.StringIO()
    segno.make(page, error="m").terminal(code, compact=True, border=2)
    lines = [code.getvalue().rstrip("\n"), f"on the phone: {page}"]
    for name, found in offers(models):
        pieces = f" in {len(found.pieces)} files" if len(found.pieces) > 1 else ""
        lines.append(
            f"  {name}: a download of {show_bytes(found.size + LIBRARY_BYTES)}{pieces}, once; then it needs no network"
        )
    if url.startswith("http:"):
        lines.append(
            "  over plain http only a browser on this machine keeps a model: for a phone start with --tls --host 0.0.0.0"
        )
    if authority:
        lines.append(
            f"  to keep the page itself for the time without a network, install {url.rstrip('/')}/ca.crt there first"
        )
    return "\n".join(lines)

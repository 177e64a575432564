"""What a phone needs of this server to run a model by itself: the model in pieces that a browser can hold, and an address.

A browser keeps no file of some gigabytes in one buffer, so a GGUF file larger than MAX_PIECE is offered in pieces
(formats/gguf_split.py), which are read out of it when they are asked for.

What it gives up: a file that changes while somebody fetches it gets another ETag, and the phone starts over.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gangpao.formats import gguf_split
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.formats.gguf_split import Piece
from gangpao.units import show_bytes

MAX_PIECE = 512_000_000
LIBRARY_BYTES = 3_000_000  # what the browser library and our page take on the way, packed


@dataclass(frozen=True, slots=True)
class Offer:
    """A model as a phone gets it. mark: changes with the file."""

    path: Path
    pieces: tuple[Piece, ...]
    architecture: str
    context: int
    mark: str

    @property
    def size(self) -> int:
        """Bytes of the whole download."""
        return sum(piece.size for piece in self.pieces)

    def etag(self, number: int) -> str:
        """What names the bytes of piece `number` (from 1), without quotes."""
        return f"{self.mark}-{number}"


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
            pieces: tuple[Piece, ...] = (gguf_split.whole(path),)
        else:
            pieces = gguf_split.split(model, limit)
    return Offer(path, pieces, architecture, context, mark)


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
                "etag": found.etag(index),
            }
            for index, piece in enumerate(found.pieces, 1)
        ],
    }


def notice(url: str, models: dict[str, Path], *, authority: bool = False) -> str:
    """What is printed for a phone: a QR code of the page's address (where segno is installed), the address, and what will be
    downloaded.

    authority: the phone does not trust the server's certificate before it has installed /ca.crt.
    """
    page = url.rstrip("/") + "/phone"
    lines = [f"on the phone: {page}"]
    with contextlib.suppress(ImportError):
        import segno

        code = io.StringIO()
        segno.make(page, error="m").terminal(code, compact=True, border=2)
        lines.insert(0, code.getvalue().rstrip("\n"))
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

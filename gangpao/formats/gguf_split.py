"""A GGUF file as the split files that llama.cpp's own loader joins again, without writing any of them.

The first piece has all the metadata and the first tensors, the others only tensors. A piece is a small header of ours followed
by spans of the model's file, and any range of it is read from there when it is asked for.

What it gives up: a tensor is never cut, so a piece is larger than the limit where one tensor is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gangpao.formats import gguf_write
from gangpao.formats.gguf import GGUF, TensorInfo
from gangpao.formats.gguf_write import ALIGNMENT
from gangpao.formats.split_names import part_name

CHUNK = 1 << 20
_ENTRY = 64  # a tensor's entry in the header besides its name, about
_START = 24  # where the metadata of a file begins


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the split files: `header`, then `spans` (offset, size, padding behind) of the model's file."""

    name: str
    header: bytes
    spans: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.header) + sum(size + padding for _, size, padding in self.spans)


def whole(path: Path) -> Piece:
    """A file as it is, as its only piece. Raises OSError where it cannot be looked at."""
    return Piece(path.name, b"", ((0, path.stat().st_size, 0),))


def split(model: GGUF, limit: int) -> tuple[Piece, ...]:
    """The pieces of an open model of one file, each of about `limit` bytes at most."""
    groups = _groups(model, limit)
    with model.path.open("rb") as file:
        file.seek(_START)
        own = file.read(model.metadata_end - _START)
    alignment = model.get_int("general.alignment", ALIGNMENT)
    stem = model.path.name.removesuffix(".gguf")
    out = []
    for index, group in enumerate(groups):
        first = index == 0
        joins = {
            "split.no": np.uint16(index),
            "split.count": np.uint16(len(groups)),
            "split.tensors.count": np.int32(len(model.tensors)),
        }
        metadata = (own if first else b"") + gguf_write.metadata(joins)
        keys = (len(model.metadata) if first else 0) + len(joins)
        name = part_name(stem, index + 1, len(groups))
        out.append(_piece(name, group, metadata, keys, alignment if first else ALIGNMENT))
    return tuple(out)


def _groups(model: GGUF, limit: int) -> list[list[TensorInfo]]:
    """The tensors of each piece."""
    groups: list[list[TensorInfo]] = [[]]
    used = model.metadata_end
    for tensor in model.tensors.values():
        if groups[-1] and used + tensor.nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes + len(tensor.name.encode()) + _ENTRY + ALIGNMENT
    return groups


def _piece(name: str, group: Sequence[TensorInfo], metadata: bytes, keys: int, alignment: int) -> Piece:
    """A file of these tensors, each padded to the alignment, the last one too."""
    spans = tuple((t.offset, t.nbytes, gguf_write.padding(t.nbytes, alignment)) for t in group)
    return Piece(name, gguf_write.header(group, metadata, keys, alignment), spans)


def read(path: Path, piece: Piece, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a piece, some at a time. Raises OSError where the file became shorter."""
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

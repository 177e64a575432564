"""Importance matrices, as llama.cpp's programs keep them: for every weight, how large the inputs of its columns are.

An entry is the sum of the squared inputs of every column over all tokens, and over how many tokens; `of` gives the mean, which is
what a column's rounding error counts for. Two forms:

    gguf   tensors NAME.in_sum2 [matrices, columns] and NAME.counts [matrices, 1], both F32; keys imatrix.datasets,
           imatrix.chunk_count, imatrix.chunk_size. Other tensors of an entry (.in_sum, .stats) are left aside
    dat    the form before: count of entries, then length and name, calls, count of values, sums divided by the tokens of a call;
           at the end the count of chunks and one data set. Little-endian, 32 bits each

A file comes from a stranger: every count is checked against the bytes that are there before anything is allocated.

What it gives up: which experts a dat file's entry has seen (its writer puts ones there), and signs of activations.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao.formats.gguf import GGUF, MAX_ENTRIES, MAX_TENSOR_NAME
from gangpao.formats.gguf_write import header, metadata, padding

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Form = Literal["gguf", "dat"]
FORMS: tuple[Form, ...] = ("gguf", "dat")

_SQUARES, _COUNTS = ".in_sum2", ".counts"
_MAX_COUNT = float(2**53)


@dataclass(frozen=True)
class Importance:
    """sums: of squared inputs by GGUF tensor name, float32 [C], of a tensor of experts [E, C] (in a dat file [E * C]); counts: the
    tokens behind them, int64 [1] or [E]; chunks of chunk_size tokens were computed (0: not known), of these data sets."""

    sums: Mapping[str, Floats]
    counts: Mapping[str, Counts]
    chunks: int = 0
    datasets: tuple[str, ...] = field(default=())
    chunk_size: int = 0

    def of(self, name: str) -> Floats | None:
        """Mean squared input of every column, float32 in the shape of the sums; None where nothing was collected. An expert that
        saw no token has ones."""
        sums, counts = self.sums.get(name), self.counts.get(name)
        if sums is None or counts is None or not counts.any():
            return None
        if len(counts) == 1:
            return sums / np.float32(counts[0])
        out = np.ones_like(sums)
        seen = counts > 0
        out[seen] = sums[seen] / counts[seen, None].astype(np.float32)
        return out

    def digest(self, names: Iterable[str]) -> str:
        """What tells what it says of these tensors from what others say, in their order."""
        found = hashlib.sha256()
        for name in names:
            values = self.of(name)
            found.update(b"-" if values is None else values.tobytes())
        return found.hexdigest()


def read_imatrix(path: str | os.PathLike[str]) -> Importance:
    """A file of either form. Raises ValueError for what is damaged or none of them, OSError where it cannot be opened."""
    path = Path(path)
    with path.open("rb") as file:
        begin = file.read(4)
    found = _read_gguf(path) if begin == b"GGUF" else _read_dat(path)
    for name, sums in found.sums.items():
        if not np.isfinite(sums).all() or (sums < 0).any():
            raise _damaged(path, f"{name} has sums of squares that are negative or no numbers")
    return found


def write_imatrix(path: str | os.PathLike[str], importance: Importance, form: Form = "gguf") -> None:
    """A file that llama-quantize reads, entries sorted by name. Raises ValueError for an importance without entries."""
    if not importance.sums:
        raise ValueError(f"{path}: there is nothing to write: no tensor has an importance")
    if form not in FORMS:
        raise ValueError(f"{form!r:.20} is no form of an importance matrix; choose gguf or dat")
    pieces = _gguf(importance) if form == "gguf" else _dat(importance)
    with Path(path).open("wb") as file:
        for piece in pieces:
            file.write(piece)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: {what}; the file is damaged or no importance matrix, make it again with `gangpao imatrix`"
    )


# --- the form in GGUF


def _read_gguf(path: Path) -> Importance:
    with GGUF.open(path) as file:
        sums: dict[str, Floats] = {}
        counts: dict[str, Counts] = {}
        for tensor in file.tensors:
            name = tensor.removesuffix(_SQUARES)
            if name != tensor:
                if name + _COUNTS not in file.tensors:
                    raise _damaged(path, f"{name} has sums and no counts")
                sums[name], counts[name] = _entry(path, file, name)
        if not sums:
            raise _damaged(path, f"no tensor of it is called NAME{_SQUARES}")
        datasets = file.metadata.get("imatrix.datasets", [])
        known = isinstance(datasets, list) and all(isinstance(one, str) for one in datasets)
        numbers = [file.get_int(f"imatrix.{key}", 0) for key in ("chunk_count", "chunk_size")]
    return Importance(sums, counts, numbers[0], tuple(datasets) if known else (), numbers[1])


def _entry(path: Path, file: GGUF, name: str) -> tuple[Floats, Counts]:
    for tensor in (name + _SQUARES, name + _COUNTS):
        if (kind := file.info(tensor).type) != "F32":
            raise _damaged(path, f"{tensor} is of type {kind}, it must be F32")
    found = file.array(name + _COUNTS).reshape(-1)
    if not (np.isfinite(found).all() and (found >= 0).all() and (found < _MAX_COUNT).all()):
        raise _damaged(path, f"{name} was counted over a number of tokens that is none")
    sums, matrices = file.array(name + _SQUARES), len(found)
    if not sums.size or not matrices or sums.size % matrices:
        raise _damaged(path, f"{name} has {sums.size} sums and {matrices} counts, which do not fit together")
    shape = (-1,) if matrices == 1 else (matrices, -1)
    return sums.reshape(shape), np.rint(found).astype(np.int64)


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    values: Floats


def _gguf(importance: Importance) -> list[bytes]:
    tensors = []
    for name, sums in sorted(importance.sums.items()):
        counts = importance.counts[name].astype(np.float32).reshape(-1, 1)
        for suffix, values in ((_SQUARES, sums.reshape(len(counts), -1)), (_COUNTS, counts)):
            values = np.ascontiguousarray(values, dtype="<f4")
            tensors.append(_Tensor(name + suffix, values.shape, "F32", values.nbytes, values))
    fields: dict[str, object] = {
        "general.type": "imatrix",
        "imatrix.datasets": list(importance.datasets) or ["unknown"],
        "imatrix.chunk_count": importance.chunks,
        "imatrix.chunk_size": importance.chunk_size or 1,
    }
    data = [tensor.values.tobytes() + bytes(padding(tensor.nbytes)) for tensor in tensors]
    return [header(tensors, metadata(fields), len(fields)), *data]


# --- the form before


class _Numbers:
    """Reads forward through the bytes of a file, never past their end."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left:
            raise _damaged(self.path, f"{what} needs {count} bytes, {self.left} are left (at byte {self.at})")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def name(self, most: int, what: str) -> str:
        length = self.number(f"the length of {what}")
        if length > most:
            raise _damaged(
                self.path, f"{what} would have {length} bytes, at most {most} are possible (at byte {self.at})"
            )
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise _damaged(self.path, f"{what} is not UTF-8 (at byte {self.at - length})") from None


def _read_dat(path: Path) -> Importance:
    numbers = _Numbers(path)
    entries = numbers.number("the number of entries")
    if not 0 < entries <= min(MAX_ENTRIES, numbers.left // 16):
        raise _damaged(path, f"it would have {entries} entries in {len(numbers.data)} bytes")
    sums: dict[str, Floats] = {}
    counts: dict[str, Counts] = {}
    for _ in range(entries):
        name = numbers.name(MAX_TENSOR_NAME, "the name of an entry")
        if not name.isprintable() or name in sums:
            raise _damaged(path, f"an entry is called {name!r:.60}, which is not printable or comes twice")
        calls, size = numbers.number(f"calls of {name}"), numbers.number(f"size of {name}")
        if calls < 0 or size < 1:
            raise _damaged(path, f"{name} has {size} values of {calls} calls")
        sums[name] = np.frombuffer(numbers.take(4 * size, name), "<f4").astype(np.float32)
        counts[name] = np.array([max(calls, 1)], np.int64)  # without calls its values are the means
    chunks = 0
    datasets: tuple[str, ...] = ()
    if numbers.left:
        chunks = max(0, numbers.number("the number of chunks"))
        if numbers.left:
            datasets = (numbers.name(numbers.left, "the name of the data"),)
    return Importance(sums, counts, chunks, tuple(filter(None, datasets)))


def _dat(importance: Importance) -> list[bytes]:
    out = [struct.pack("<i", len(importance.sums))]
    for name, sums in sorted(importance.sums.items()):
        raw, most = name.encode(), int(importance.counts[name].max(initial=0))
        calls = -(-most // (importance.chunk_size or 1)) or 1
        means = importance.of(name)
        values = (np.ones_like(sums) if means is None else means).reshape(-1) * np.float32(calls)
        out += [
            struct.pack("<i", len(raw)),
            raw,
            struct.pack("<ii", calls, values.size),
            values.astype("<f4").tobytes(),
        ]
    dataset = ", ".join(importance.datasets).encode()
    return [*out, struct.pack("<ii", importance.chunks, len(dataset)), dataset]

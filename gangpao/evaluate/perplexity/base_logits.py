"""llama.cpp's file of a model's log-probabilities (`llama-perplexity --kl-divergence-base`), read and written.

    "_logits_"   8 bytes
    context, vocabulary, windows    int32 each, little-endian
    ids          int32 [windows, context], as the text has them (BOS is not put in)
    rows         for each window and each id that counts (those from context // 2 + 1 on): float32 scale, float32 lowest, then
                 uint16 [vocabulary] (and one of padding where the vocabulary is odd); log-probability = scale * value + lowest

What a row gives up: 16 bits over at most 16 units below the likeliest token; what is less likely counts as e^-16 of it. A window of
512 ids of a vocabulary of 150,000 is 77 MB, so files are read and written window by window. Rows stand at places known before, so
that a run that was killed goes on; the file has its name when it is whole.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao import atomic, machine
from gangpao.evaluate.perplexity.windows import Ids
from gangpao.units import show_bytes

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.uint16]  # [rows, row_size]
MAGIC = b"_logits_"
REACH = 16.0  # how far below the likeliest token a row reaches
_HEAD = struct.Struct("<8siii")
_SLACK = 0.05  # of rounding, in log-probabilities
_SCALES = 4  # uint16 that scale and lowest take
_MOST_VOCABULARY = 2**18


class Shape(NamedTuple):
    """What a file's head says."""

    context: int
    vocabulary: int
    windows: int

    @property
    def counted(self) -> int:
        """Rows of a window."""
        return self.context - 1 - self.context // 2

    @property
    def row_size(self) -> int:
        """uint16 of a row."""
        return 2 * ((self.vocabulary + 1) // 2) + _SCALES

    @property
    def window_bytes(self) -> int:
        return 2 * self.counted * self.row_size

    @property
    def rows_begin(self) -> int:
        return _HEAD.size + 4 * self.context * self.windows

    @property
    def nbytes(self) -> int:
        """Of the whole file."""
        return self.rows_begin + self.window_bytes * self.windows


def packed(logits: Floats, norms: npt.NDArray[np.float64]) -> Rows:
    """Rows of the file for logits [R, V] with log(sum(e^logit)) [R]."""
    count, vocabulary = logits.shape
    shape = Shape(0, vocabulary, 0)
    out = np.zeros((count, shape.row_size), "<u2")
    for row, values, norm in zip(out, logits, norms, strict=True):
        peak = values.max()
        low = max(values.min(), np.float32(peak - np.float32(REACH)))
        scale = np.float32((peak - low) / np.float32(65535))
        row[:_SCALES] = np.array([scale, low - norm], "<f4").view("<u2")
        if scale > 0:
            steps = np.rint((values - low) * (np.float32(1) / scale))
            row[_SCALES : _SCALES + vocabulary] = np.clip(steps, 0, 65535)
    return out


def unpacked(row: npt.NDArray[np.uint16], vocabulary: int) -> Floats:
    """Log-probabilities [V] of a row."""
    scale, lowest = row[:_SCALES].view("<f4")
    return np.asarray(row[_SCALES : _SCALES + vocabulary] * scale + lowest, np.float32)


class BaseLogits:
    """A file that is read. `ids` [windows, context]. Raises ValueError for one that is damaged or of another kind, and `rows` for
    rows that are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file of log-probabilities; make one with --save")
        with path.open("rb") as file:
            self.shape = _shape_of(path, file.read(_HEAD.size))
            size = path.stat().st_size
            if size != self.shape.nbytes:
                there = max(0, size - self.shape.rows_begin) // self.shape.window_bytes
                raise ValueError(
                    f"{path}: {show_bytes(size)} where {show_bytes(self.shape.nbytes)} belong: rows of {there} of "
                    f"{self.shape.windows} windows are there; it was cut short, or llama-perplexity is still writing it"
                )
            ids = np.fromfile(file, "<i4", self.shape.context * self.shape.windows)
            self.ids: Ids = ids.reshape(self.shape.windows, self.shape.context).astype(np.int64)
        if self.ids.min() < 0 or self.ids.max() >= self.shape.vocabulary:
            raise ValueError(f"{path}: damaged: it holds ids outside its vocabulary of {self.shape.vocabulary}")

    def rows(self, window: int) -> Rows:
        """The rows of a window, from the disk."""
        shape = self.shape
        offset = shape.rows_begin + window * shape.window_bytes
        found = np.fromfile(self.path, "<u2", shape.counted * shape.row_size, offset=offset)
        rows = found.reshape(shape.counted, shape.row_size)
        self._check(rows, window)
        return rows

    def _check(self, rows: Rows, window: int) -> None:
        """Raises ValueError where a row holds no log-probabilities: they reach from 0 down to 16 below the likeliest token."""
        heads = np.ascontiguousarray(rows[:, :_SCALES]).view("<f4").astype(np.float64)
        scale, lowest = heads[:, 0], heads[:, 1]
        values = rows[:, _SCALES : _SCALES + self.shape.vocabulary]
        with np.errstate(invalid="ignore", over="ignore"):
            peak = scale * values.max(axis=1) + lowest
            good = (scale >= 0) & (scale * 65535 <= REACH + _SLACK) & (peak <= _SLACK)
            good &= lowest >= -REACH - np.log(self.shape.vocabulary) - _SLACK
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            raise ValueError(
                f"{self.path}: damaged: row {row} of window {window} holds no log-probabilities (scale {scale[row]:.6g}, lowest "
                f"{lowest[row]:.6g}); write the file again with --save"
            )

    def digest(self) -> str:
        """What tells the file from others without reading gigabytes: head, ids and the first window's rows."""
        with self.path.open("rb") as file:
            start = zlib.crc32(file.read(self.shape.rows_begin))
        return f"{start:08x}{zlib.crc32(self.rows(0).tobytes()):08x}"


def _shape_of(path: Path, head: bytes) -> Shape:
    if len(head) < _HEAD.size or not head.startswith(MAGIC):
        raise ValueError(
            f"{path}: not a file of log-probabilities; make one with --save, or with llama-perplexity --kl-divergence-base"
        )
    _, *numbers = _HEAD.unpack(head)
    shape = Shape(*numbers)
    if not (4 <= shape.context <= 1 << 20 and 2 <= shape.vocabulary <= _MOST_VOCABULARY and shape.windows >= 1):
        raise ValueError(f"{path}: damaged, or of no use: context, vocabulary and windows are {tuple(shape)}")
    return shape


class BaseLogitsWriter:
    """A file that grows window by window under a hidden name, and takes its own when it is whole.

    Raises ValueError where the disk has no room for it.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.path, self.shape = path, shape
        self._partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        there = self._partial.stat().st_size if self._partial.exists() else 0
        free = machine.free_disk(path.parent)
        if shape.nbytes - there > free:
            raise ValueError(
                f"{path}: {show_bytes(shape.nbytes)} for {shape.windows} windows, and the disk has {show_bytes(free)} free; "
                "take fewer (--limit)"
            )
        self._file: BinaryIO = self._partial.open("r+b" if there else "w+b")
        self._file.write(_HEAD.pack(MAGIC, *shape))

    def holds(self, window: int, crc: int) -> bool:
        """Whether the rows of a window are there from a run before."""
        self._file.seek(self.shape.rows_begin + window * self.shape.window_bytes)
        return zlib.crc32(self._file.read(self.shape.window_bytes)) == crc

    def write(self, window: int, ids: Ids, rows: Rows) -> int:
        """Put a window in its place; the checksum of its rows, for `holds`."""
        assert len(ids) == self.shape.context
        assert rows.shape == (self.shape.counted, self.shape.row_size)
        self._file.seek(_HEAD.size + 4 * self.shape.context * window)
        self._file.write(np.asarray(ids, "<i4").tobytes())
        data = rows.tobytes()
        self._file.seek(self.shape.rows_begin + window * self.shape.window_bytes)
        self._file.write(data)
        self._file.flush()
        return zlib.crc32(data)

    def finish(self) -> None:
        """Give the file its name. Every window must have been written."""
        self._file.truncate(self.shape.nbytes)
        self._file.close()
        atomic.sync(self._partial)
        self._partial.replace(self.path)
        atomic.sync(self.path.parent)

    def close(self) -> None:
        """Leave what is there for a later run. Harmless behind `finish`."""
        self._file.close()

    def discard(self) -> None:
        """Leave nothing that is not whole. Harmless behind `finish`."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

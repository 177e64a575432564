"""Positions of a prompt with pictures on one canvas (M-RoPE of MiniCPM-V 4.7): time, row and column of every token.

Text counts on in all three. A picture takes one time; rows and columns of its tokens are places on a canvas as large as its slices
together, the overview stretched over it and each slice in its corner, so that both have the same positions where they show the
same. Marks stand at the corners: <image> one before the canvas, </image> behind it, <slice> and </slice> in the corners of a slice,
a line break right of its row. Text goes on behind the longer side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MarkIds:
    """Token ids of the marks; config.json of a checkpoint has them (image_start_id ...)."""

    image_start: int
    image_end: int
    slice_start: int
    slice_end: int
    newline: int

    @property
    def all(self) -> frozenset[int]:
        return frozenset((self.image_start, self.image_end, self.slice_start, self.slice_end, self.newline))


@dataclass(frozen=True, slots=True)
class Crop:
    """The tokens of one piece: where they begin in the prompt, and their grid (of tokens, not of patches)."""

    start: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        return self.start + self.rows * self.columns


@dataclass(slots=True)
class _Frame:
    """An overview and its slices; end: behind the marks that close it."""

    overview: Crop
    slices: list[Crop] = field(default_factory=list)
    end: int = 0

    @property
    def last(self) -> Crop:
        return self.slices[-1] if self.slices else self.overview

    @property
    def columns(self) -> int:
        """Slices in a row: until the first gap that is wider than the two marks between neighbours."""
        pairs = enumerate(pairwise(self.slices))
        broken = next((i + 1 for i, (a, b) in pairs if b.start - a.end > 2), len(self.slices))
        return broken if len(self.slices) % max(broken, 1) == 0 else len(self.slices)


def canvas(ids: Sequence[int], crops: Sequence[Crop], marks: MarkIds) -> Positions:
    """int64 [3, len(ids)]: time, row, column. What is generated goes on from the largest of them + 1, in all three.

    crops: all pieces, in the order of the prompt, a picture's overview in front of its slices. Raises ValueError for crops that
    overlap, lie outside or have no mark in front of them.
    """
    _check(ids, crops)
    out = np.zeros((3, len(ids)), np.int64)
    position = at = 0
    for group in _groups(ids, crops, marks):
        start, end = group[0].overview.start - 1, group[-1].end
        position = _text(out, at, start, position)
        at = start
        for frame in group:
            begin = frame.overview.start - 1
            if begin > at:  # one more, or the next frame's first mark would stand on the last of these
                position = _text(out, at, begin, position) + 1
            at = min(frame.end, end)
            position = _place(out, frame, begin, at, position)
        position = _text(out, at, end, position)
        at = end
    _text(out, at, len(ids), position)
    return out


def _check(ids: Sequence[int], crops: Sequence[Crop]) -> None:
    behind = 0
    for crop in crops:
        if crop.rows < 1 or crop.columns < 1 or crop.start <= behind or crop.end > len(ids):
            raise ValueError(
                f"{crop.rows} x {crop.columns} tokens of a picture at {crop.start} do not fit in a prompt of {len(ids)} tokens "
                f"behind position {behind}, with a mark in front of them"
            )
        behind = crop.end


def _groups(ids: Sequence[int], crops: Sequence[Crop], marks: MarkIds) -> list[list[_Frame]]:
    """Frames with nothing but marks between them share a group."""
    groups: list[list[_Frame]] = []
    behind = 0
    for crop in crops:
        if groups and ids[crop.start - 1] == marks.slice_start:
            groups[-1][-1].slices.append(crop)
        elif groups and marks.all.issuperset(ids[behind : crop.start - 1]):
            groups[-1].append(_Frame(crop))
        else:
            groups.append([_Frame(crop)])
        behind = crop.end
    for frame in (frame for group in groups for frame in group):
        frame.end = frame.last.end
        while frame.end < len(ids) and ids[frame.end] in marks.all:
            frame.end += 1
    return groups


def _text(out: Positions, start: int, end: int, position: int) -> int:
    """Tokens that count on; the position behind them."""
    if end <= start:
        return position
    out[:, start:end] = np.arange(position, position + end - start)
    return position + end - start


def _place(out: Positions, frame: _Frame, begin: int, end: int, origin: int) -> int:
    """A frame on its canvas, marks included; the position behind it."""
    overview, slices, across = frame.overview, frame.slices, frame.columns
    rows, columns = overview.rows, overview.columns
    if slices:
        rows, columns = len(slices) // across * slices[0].rows, across * slices[0].columns
    out[:, begin:end] = origin
    out[1:, begin] = max(origin - 1, 0)
    if overview.end < end:
        out[1:, overview.end] = origin + rows, origin + columns
    _fill(out, overview, origin, _spread(overview.rows, rows), _spread(overview.columns, columns))
    for i, piece in enumerate(slices):
        top, left = i // across * slices[0].rows, i % across * slices[0].columns
        if piece.start > begin:
            out[1:, piece.start - 1] = origin + top, origin + left
        if piece.end < end:
            out[1:, piece.end] = origin + top + piece.rows - 1, origin + left + piece.columns - 1
        _fill(out, piece, origin, np.arange(piece.rows) + top, np.arange(piece.columns) + left)
    for i, (a, b) in enumerate(pairwise(slices)):
        if b.start - a.end > 2:  # </slice> line break <slice>
            bottom = (i // across + 1) * slices[0].rows - 1
            out[1, a.end + 1 : b.start - 1] = origin + bottom
            out[2, a.end + 1 : b.start - 1] = origin + across * slices[0].columns
    return origin + max(rows, columns) + 1


def _fill(out: Positions, crop: Crop, origin: int, rows: Positions, columns: Positions) -> None:
    out[0, crop.start : crop.end] = origin
    out[1, crop.start : crop.end] = origin + np.repeat(rows, crop.columns)
    out[2, crop.start : crop.end] = origin + np.tile(columns, crop.rows)


def _spread(count: int, over: int) -> Positions:
    """`count` places from 0 to over - 1 at equal distances; half to even, in float32 from both ends, as torch.linspace has it."""
    if count == 1:
        return np.zeros(1, np.int64)
    places = np.arange(count)
    step = np.float32(over - 1) / np.float32(count - 1)
    front = step * places.astype(np.float32)
    back = np.float32(over - 1) - step * (count - 1 - places).astype(np.float32)
    return np.rint(np.where(places < count // 2, front, back)).astype(np.int64)

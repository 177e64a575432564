"""A learned table of positions, brought to the grid of a picture.

Sums of products in float32, one operation at a time, so they have the same bits on every machine.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gangpao.formats.vision import Stretch
from gangpao.formats.vision.positions import nearest

Floats = npt.NDArray[np.float32]
Grid = tuple[int, int]


def stretched(table: Floats, size: Grid, grid: Grid, how: Stretch) -> Floats:
    """A table [rows * columns, D] of a square of `size` for the grid of a picture [grid rows * grid columns, D]."""
    if how == "nearest":
        rows, columns = (nearest(size[i], grid[i]) for i in (0, 1))
        return np.ascontiguousarray(table[(rows[:, None] * size[1] + columns).ravel()])
    if size == grid:
        return table
    square = table.reshape(*size, -1)
    square = _resized(square, grid[0], how)
    return _resized(square.swapaxes(0, 1), grid[1], how).swapaxes(0, 1).reshape(grid[0] * grid[1], -1)


def _resized(values: Floats, count: int, how: Stretch) -> Floats:
    """The first axis brought to `count` entries."""
    places, weights = _taps(len(values), count, how)
    out = np.zeros((count, *values.shape[1:]), np.float32)
    for tap in range(places.shape[1]):
        out += weights[:, tap, None, None] * values[places[:, tap]]
    return out


def _taps(size: int, count: int, how: Stretch) -> tuple[npt.NDArray[np.int64], Floats]:
    """Which entries each of `count` is made of, and their weights, [count, taps] each.

    With antialias: Pillow's filters, widened when a table shrinks, cut off at its ends. Without: four neighbours, repeated at
    the ends, and a = -0.75.
    """
    scale = size / count
    centers = (np.arange(count) + 0.5) * scale
    if how == "bicubic":
        first = np.floor(centers - 0.5).astype(np.int64)
        places = first[:, None] + np.arange(-1, 3)
        weights = _cubic(centers[:, None] - 0.5 - places, -0.75)
        return places.clip(0, size - 1), weights.astype(np.float32)
    widen = max(1.0, scale)
    support = (2 if how == "bicubic_antialias" else 1) * widen
    low = np.maximum(0, (centers - support + 0.5).astype(np.int64))
    high = np.minimum(size, (centers + support + 0.5).astype(np.int64))
    places = low[:, None] + np.arange(int((high - low).max()))
    distance = (places - centers[:, None] + 0.5) / widen
    weights = _cubic(distance, -0.5) if how == "bicubic_antialias" else np.maximum(0.0, 1 - np.abs(distance))
    weights = np.where(places < high[:, None], weights, 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # one after the other: np.sum has another order on another machine
    return places.clip(0, size - 1), weights.astype(np.float32)


def _cubic(x: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Keys' cubic filter."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))

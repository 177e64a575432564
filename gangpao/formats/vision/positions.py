"""Where a patch stands: the computed tables of positions, the same numbers for both halves.

    nearest(table, grid)      int [grid]: which entry of a learned table a place of a picture takes
    sines(width, places)      float32 [places, width]: sines, then cosines, of one axis
    sines_2d(width, rows, columns)   float32 [rows * columns, width]: the column's in the first half, the row's in the second
    windows(rows, columns)    int [rows * columns]: patches in the order of their 2 x 2 windows

All in float32, step by step as the checkpoints were trained (a table in float64 differs by 0.002 in the last rows).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

MAX_TABLE_BYTES = 512_000_000  # of one computed table; a grid that needs more is a mistake


def nearest(table: int, grid: int) -> NDArray[np.int64]:
    """floor(i * table / grid) for each place i of a grid, in whole numbers.

    MiniCPM-V's code compares float32 fractions, which for its 70 entries is the same in 4.6 and 4.7; that of 2.6 to 4.5 lets
    the rounding of the machine decide where i * 70 / grid is whole (grids of 25, 49, 50, 55 ...), one entry at most.
    """
    return np.arange(grid, dtype=np.int64) * table // grid


def sines(width: int, places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sines, then cosines, of a place at width / 2 frequencies from 1 to nearly 1 / 10,000. [places, width]."""
    half = width // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1.0) / np.power(np.float32(10_000.0), exponent)
    turned = np.asarray(places, dtype=np.float32)[:, None] * frequencies[None]
    return np.concatenate([np.sin(turned), np.cos(turned)], axis=1)


@lru_cache(maxsize=16)
def sines_2d(width: int, rows: int, columns: int) -> NDArray[np.float32]:
    """The table of a grid, row by row, read-only. Raises ValueError for a width that is no multiple of 4 or a giant grid."""
    if width % 4 or width <= 0:
        raise ValueError(f"a table of sines for two axes has a width that is a multiple of 4, not {width}")
    if rows * columns * width * 4 > MAX_TABLE_BYTES:
        raise ValueError(f"a grid of {rows} x {columns} patches is too large for a table of positions {width} wide")
    across = sines(width // 2, np.arange(columns, dtype=np.float32))
    down = sines(width // 2, np.arange(rows, dtype=np.float32))
    table = np.empty((rows, columns, width), np.float32)
    table[:, :, : width // 2] = across[None]
    table[:, :, width // 2 :] = down[:, None]
    table.flags.writeable = False
    return table.reshape(rows * columns, width)


def windows(rows: int, columns: int) -> NDArray[np.int64]:
    """The order that puts the 2 x 2 patches of a window one after another, windows row by row. ValueError for an odd grid."""
    if rows % 2 or columns % 2:
        raise ValueError(f"a grid of {rows} x {columns} patches has no whole windows of 2 x 2")
    places = np.arange(rows * columns, dtype=np.int64).reshape(rows // 2, 2, columns // 2, 2)
    return places.transpose(0, 2, 1, 3).reshape(-1)

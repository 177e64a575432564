"""Orders of q and k's rows: Hugging Face rotates the pairs (i, i + H/2) of a head, the files of some architectures (2i, 2i+1)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def pairs_apart(rows: Floats, heads: int) -> Floats:
    """Rows of every head from pairs (2i, 2i+1) back to halves (i, i + H/2)."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pairs_side_by_side(rows: Floats, heads: int) -> Floats:
    """Rows of every head from halves (i, i + H/2) to pairs (2i, 2i+1)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

"""Orders of rows: Hugging Face rotates the pairs (i, i + H/2) of a head, the files of some architectures (2i, 2i+1). Value heads
of Gated DeltaNet stand group by group (those of a key head together) there, and in GGUF one of each group after the other."""

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


def groups_apart(rows: Floats, groups: int, per_group: int) -> Floats:
    """Equal parts of the rows: from the first of each group, the second of each, ... back to group by group."""
    parts = rows.reshape(per_group, groups, -1, *rows.shape[1:])
    return parts.swapaxes(0, 1).reshape(rows.shape)


def groups_in_turns(rows: Floats, groups: int, per_group: int) -> Floats:
    """Equal parts of the rows: from group by group to the first of each group, the second of each, ..."""
    return groups_apart(rows, per_group, groups)

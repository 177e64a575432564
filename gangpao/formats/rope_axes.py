"""Positions with three numbers (M-RoPE): which of time, row and column each rotated pair of a head turns by."""

from __future__ import annotations

from collections.abc import Sequence


def axes_of_pairs(sections: Sequence[int], pairs: int) -> list[int]:
    """0 (time), 1 (row) or 2 (column) for each rotated pair, interleaved as in Qwen3-VL and Qwen3.5: t h w t h w ... t t.

    sections: pairs of each axis; pairs past all of them turn by time.
    """
    out = [0] * pairs
    for axis in (1, 2):
        for pair in range(axis, min(3 * sections[axis], pairs), 3):
            out[pair] = axis
    return out

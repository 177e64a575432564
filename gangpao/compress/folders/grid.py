"""Scales and integers of a matrix whose columns share a scale in groups: symmetric, the scale found by a search.

A group's largest value need not be kept: a scale that cuts it off may leave less error on all the others. Tried are shares of the
scale that keeps it, each error weighted with how much a column matters; what is chosen is never worse than the plain scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.formats.blocks import dequantize, quantize

Floats = npt.NDArray[np.float32]

_SHARES = np.linspace(1.0, 0.7, 31, dtype=np.float32)
_ROWS = 256  # at once: a search holds some copies of them


@dataclass(frozen=True, slots=True)
class Grid:
    """q int8 [R, C] in [-2^(bits-1), 2^(bits-1) - 1]; scale float32 [R, G], rounded as it is stored; w is near scale * q."""

    q: npt.NDArray[np.int8]
    scale: Floats


def to_bf16(values: Floats) -> Floats:
    """Rounded to bfloat16, to even."""
    return dequantize(quantize(values.reshape(1, -1), "BF16"), "BF16").reshape(values.shape)


def fit(weights: Floats, bits: int, group: int, importance: Floats | None = None) -> Grid:
    """The grid of a matrix [R, C]. group: columns that share a scale, 0 for whole rows; the last group may be short.

    importance: mean squared activation of every column [C]. Raises ValueError for values that are no finite numbers.
    """
    rows, cols = weights.shape
    width = group or cols
    groups = -(-cols // width)
    finite = np.isfinite(weights).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"row {int(np.argmin(finite))} holds a value that is no finite number: the checkpoint is damaged"
        )
    matters = np.ones(cols, np.float32) if importance is None else importance.astype(np.float32) + np.float32(1e-30)
    padded = np.pad(matters, (0, groups * width - cols)).reshape(groups, width)
    q = np.empty((rows, groups * width), np.int8)
    scale = np.empty((rows, groups), np.float32)
    for begin in range(0, rows, _ROWS):
        part = np.pad(weights[begin : begin + _ROWS], ((0, 0), (0, groups * width - cols))).astype(np.float32)
        found, chosen = _search(part.reshape(-1, groups, width), padded, bits)
        scale[begin : begin + _ROWS], q[begin : begin + _ROWS] = found, chosen.reshape(len(part), -1)
    return Grid(np.ascontiguousarray(q[:, :cols]), scale)


def _search(w: Floats, matters: Floats, bits: int) -> tuple[Floats, npt.NDArray[np.int8]]:
    """Scales [R, G] and integers [R, G, W] of groups [R, G, W]."""
    top = (1 << (bits - 1)) - 1
    largest = np.abs(w).max(axis=-1)
    best = np.full(largest.shape, np.inf, np.float32)
    scale = np.zeros_like(largest)
    for share in _SHARES if bits < 8 else _SHARES[:1]:
        tried = to_bf16(largest * (share / np.float32(top)))
        q = _rounded(w, tried, top)
        error = ((q * tried[..., None] - w) ** 2 * matters).sum(axis=-1)
        better = error < best
        best, scale = np.where(better, error, best), np.where(better, tried, scale)
    return scale, _rounded(w, scale, top).astype(np.int8)


def _rounded(w: Floats, scale: Floats, top: int) -> Floats:
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    out: Floats = np.clip(np.rint(w * inverse[..., None]), -top - 1, top)
    return out

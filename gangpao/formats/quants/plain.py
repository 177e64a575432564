"""Floats as shorter floats, and ggml's reference rounding of Q4_0, Q4_1 and Q8_0, which needs no search: the bytes of the `gguf`
package, bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gangpao.formats.quants.layout import Bytes, Floats, join_nibbles


class Unwritable(ValueError):
    """A value that has no place in a type: in which row of what was given, and what about it."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what


_SMALL = 32  # weights in a block of the types that are written
_LARGEST_F16 = 65504.0


def first_wrong(values: npt.NDArray[np.floating], wrong: npt.NDArray[np.bool_]) -> tuple[int, float]:
    """Row and value of the first wrong one in [R, ...]."""
    at = int(np.argmax(wrong))
    return at // (values.size // len(values)), float(values.flat[at])


def write_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    if (grown := (rounded & 0x7FFF) == 0x7F80).any():
        row, value = first_wrong(values, grown)
        raise Unwritable(row, f"a value of {value:g}, and BF16 ends at 3.39e38; take F32")
    return rounded.astype(np.uint16)


def write_f16(values: Floats, what: str = "value", advice: str = "BF16 or Q8_0") -> npt.NDArray[np.float16]:
    """As F16. Raises Unwritable for one past its end; `what` the values [R, ...] are."""
    if (grown := np.abs(values) > _LARGEST_F16).any():
        row, value = first_wrong(values, grown)
        raise Unwritable(row, f"a {what} of {value:g}, and F16 ends at 65,504; take {advice}")
    return values.astype(np.float16)


def _scales(values: Floats, rows: int) -> Bytes:
    """Scales of the blocks [N, 1] of so many rows, to bytes [N, 2]."""
    return write_f16(values.reshape(rows, -1), "scale of a block", "BF16 or F32").reshape(-1, 1).view(np.uint8)


def _blocks(values: Floats) -> Floats:
    return values.reshape(-1, _SMALL)


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 for 0 and for what is so small that there is none: the scale is 0 in F16."""
    fits = np.abs(scale) > np.float32(2.0**-126)
    return np.where(fits, np.float32(1) / np.where(fits, scale, np.float32(1)), np.float32(0)).astype(np.float32)


def _round_half_away(values: Floats) -> Floats:
    """Round half away from zero, as C's roundf."""
    whole = np.trunc(values)
    return whole + np.trunc(2 * (values - whole))


def write_q8_0(values: Floats) -> Bytes:
    b = _blocks(values)
    d = np.abs(b).max(axis=1, keepdims=True) / np.float32(127)
    q = _round_half_away(b * _inverse(d)).astype(np.int8)
    return np.concatenate([_scales(d, len(values)), q.view(np.uint8)], axis=1)


def write_q4_0(values: Floats) -> Bytes:
    b = _blocks(values)
    at = np.abs(b).argmax(axis=1)[:, None]
    d = np.take_along_axis(b, at, axis=1) / np.float32(-8)
    q = np.trunc(b * _inverse(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_scales(d, len(values)), join_nibbles(q)], axis=1)


def write_q4_1(values: Floats) -> Bytes:
    b = _blocks(values)
    low = b.min(axis=1, keepdims=True)
    d = (b.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.trunc((b - low) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    head = [_scales(d, len(values)), _scales(low, len(values))]
    return np.concatenate([*head, join_nibbles(q)], axis=1)

"""Floats to the weight blocks of GGUF files: the formats that need no search (F16, BF16, Q8_0, Q4_0, Q4_1).

The rounding is ggml's reference rounding, so bytes equal those of the `gguf` package (tested). Formats that look for better
scales (K-quants, importance matrices) belong to compress/. The inverse of each is in formats/blocks.py.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

BLOCK = 32
LARGEST_F16 = 65504.0
# Name -> number in general.file_type.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}


class Unwritable(ValueError):
    """A value that has no place in a type: in which row of what was given, and what about it."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(f"row {row}: {what}")
        self.row, self.what = row, what


def quantize(values: Floats, kind: str) -> Bytes:
    """Rows [R, C] to bytes [R, row bytes]. C must be a multiple of 32 for the Q types.

    Raises Unwritable for a value that is no finite number, and for one that the type cannot hold.
    """
    if kind not in _QUANTIZERS:
        raise ValueError(f"{kind!r:.40} is not a type we write; choose one of {', '.join(_QUANTIZERS)}")
    values = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        row, value = _first(values, ~finite)
        raise Unwritable(
            row, f"{value:g} is no number to compute with: the checkpoint is damaged or its training diverged"
        )
    with np.errstate(over="ignore"):  # what grew too large is found by _half and _bf16
        return np.ascontiguousarray(_QUANTIZERS[kind](values)).view(np.uint8).reshape(len(values), -1)


def _first(values: npt.NDArray[np.floating], wrong: npt.NDArray[np.bool_]) -> tuple[int, float]:
    """Row and value of the first wrong one in [R, ...]."""
    at = int(np.argmax(wrong))
    return at // (values.size // len(values)), float(values.flat[at])


# Type -> how far a value may move, as a share of the largest one in its block of 32 (rounding of the scale included).
STEPS = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 8, "Q4_1": 2 / 15}
SMALLEST = 5e-6  # and absolutely: 127 times the spacing of the smallest scales in F16


def first_far(values: Floats, read: Floats, kind: str) -> tuple[int, int] | None:
    """Row and column of the first value [R, C] that moved farther on its way through the type than rounding moves it."""
    block = BLOCK if values.shape[1] % BLOCK == 0 else values.shape[1]
    far = np.abs(values - read).reshape(len(values), -1, block)
    top = np.abs(values).reshape(far.shape).max(axis=-1, keepdims=True)
    wrong = ~(far <= top * np.float32(STEPS[kind] * 1.01) + np.float32(SMALLEST if STEPS[kind] else 0))
    if not wrong.any():
        return None
    row, column = np.unravel_index(int(np.argmax(wrong)), values.shape)
    return int(row), int(column)


def fits(cols: int, kind: str) -> bool:
    """Whether a row of this many columns is whole blocks."""
    return not kind.startswith("Q") or cols % BLOCK == 0


def _bf16(values: Floats) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    if (grown := (rounded & 0x7FFF) == 0x7F80).any():
        row, value = _first(values, grown)
        raise Unwritable(row, f"a value of {value:g}, and BF16 ends at 3.39e38; take F32")
    return rounded.astype(np.uint16)


def _half(values: Floats, what: str = "value", advice: str = "BF16 or Q8_0") -> npt.NDArray[np.float16]:
    """As F16. Raises Unwritable for one past its end; `what` the values [R, ...] are."""
    if (grown := np.abs(values) > LARGEST_F16).any():
        row, value = _first(values, grown)
        raise Unwritable(row, f"a {what} of {value:g}, and F16 ends at 65,504; take {advice}")
    return values.astype(np.float16)


def _scales(values: Floats, rows: int) -> Bytes:
    """Scales of the blocks [N, 1] of so many rows, to bytes [N, 2]."""
    return _half(values.reshape(rows, -1), "scale of a block", "BF16 or F32").reshape(-1, 1).view(np.uint8)


def _blocks(values: Floats) -> Floats:
    return values.reshape(-1, BLOCK)


def _inverse(scale: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale).astype(np.float32)


def _half_away(values: Floats) -> Floats:
    """Round half away from zero, as C's roundf."""
    whole = np.trunc(values)
    return whole + np.trunc(2 * (values - whole))


def _q8_0(values: Floats) -> Bytes:
    b = _blocks(values)
    d = np.abs(b).max(axis=1, keepdims=True) / np.float32(127)
    q = _half_away(b * _inverse(d)).astype(np.int8)
    return np.concatenate([_scales(d, len(values)), q.view(np.uint8)], axis=1)


def _nibbles(q: Bytes) -> Bytes:
    return q[:, : BLOCK // 2] | np.left_shift(q[:, BLOCK // 2 :], 4, dtype=np.uint8)


def _q4_0(values: Floats) -> Bytes:
    b = _blocks(values)
    at = np.abs(b).argmax(axis=1)[:, None]
    d = np.take_along_axis(b, at, axis=1) / np.float32(-8)
    q = np.trunc(b * _inverse(d) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_scales(d, len(values)), _nibbles(q)], axis=1)


def _q4_1(values: Floats) -> Bytes:
    b = _blocks(values)
    low = b.min(axis=1, keepdims=True)
    d = (b.max(axis=1, keepdims=True) - low) / np.float32(15)
    q = np.trunc((b - low) * _inverse(d) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    head = [_scales(d, len(values)), _scales(low, len(values))]
    return np.concatenate([*head, _nibbles(q)], axis=1)


_QUANTIZERS: dict[str, Callable[[Floats], npt.NDArray[np.generic]]] = {
    "F32": lambda x: x,
    "F16": _half,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
}

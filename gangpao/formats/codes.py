"""GGUF weights as the integers that are stored, for methods that choose these integers themselves.

`codes` takes rows of blocks apart and `pack` puts them together again, without loss. A method that rounds (GPTQ, learned rounding,
quantization-aware training) keeps `step` and `offset`, changes `values` among `levels` of the type, and packs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.formats.blocks import BY_NAME, BlockType
from gangpao.formats.quants.layout import Fields, Layout

Bytes = npt.NDArray[np.uint8]
Shorts = npt.NDArray[np.int16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codes:
    """A matrix [R, C] of a block type: w = d * scale * values - dmin * minimum.

    values int16 [R, C], the zero point off (of IQ4 types what the codebook says); scale and minimum int16 [R, C / group], ones and
    zeros where the type has none; d and dmin float32 [R, numbers of a row], each representable in F16.
    """

    kind: str
    values: Shorts
    scale: Shorts
    minimum: Shorts
    d: Floats
    dmin: Floats

    @property
    def group(self) -> int:
        """Weights that share a scale: 16 or 32."""
        return int(self.values.shape[1] // self.scale.shape[1])

    def step(self) -> Floats:
        """float32 [R, C]: how far two neighbouring integers are apart, d * scale."""
        return self._spread(self.d, self.scale)

    def offset(self) -> Floats:
        """float32 [R, C]: what is taken off, dmin * minimum."""
        return self._spread(self.dmin, self.minimum)

    def weights(self) -> Floats:
        """float32 [R, C], the same bits as `blocks.dequantize` gives."""
        out: Floats = self.step() * self.values.astype(np.float32) - self.offset()
        return out

    def _spread(self, floats: Floats, integers: Shorts) -> Floats:
        per_group = np.repeat(floats, integers.shape[1] // floats.shape[1], axis=1) * integers.astype(np.float32)
        return np.repeat(per_group, self.group, axis=1)


def codes(raw: Bytes, kind: str, cols: int) -> Codes:
    """Rows uint8 [R, row bytes] of `cols` weights as their integers and scales.

    Raises ValueError for a type of plain floats and for rows of another length.
    """
    block, layout = _block_type(kind)
    if raw.ndim != 2 or raw.dtype != np.uint8 or cols % block.block_size or raw.shape[1] != block.row_bytes(cols):
        need = f"{block.block_size} weights in {block.type_size} bytes"
        raise ValueError(f"{kind} rows of {cols} weights must be uint8 blocks of {need}, got {raw.dtype} {raw.shape}")
    fields = layout.unpack(np.ascontiguousarray(raw).reshape(-1, block.type_size))
    n = len(raw)
    values, scale, minimum = (x.reshape(n, -1) for x in (fields.values, fields.scale, fields.minimum))
    return Codes(kind, values, scale, minimum, fields.d.reshape(n, -1), fields.dmin.reshape(n, -1))


def pack(codes: Codes) -> Bytes:
    """The rows uint8 [R, row bytes], the inverse of `codes`. Raises ValueError for a value that the type does not have."""
    block, layout = _block_type(codes.kind)
    allowed = np.array(layout.levels, np.int16)
    at = np.searchsorted(allowed, codes.values).clip(max=len(allowed) - 1)
    if (wrong := allowed[at] != codes.values).any():
        row, column = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        found = codes.values[row, column]
        raise ValueError(f"row {row}, column {column}: {codes.kind} has no value {found} (see levels)")
    n = codes.values.size // block.block_size
    values, scale, minimum = (x.reshape(n, -1) for x in (codes.values, codes.scale, codes.minimum))
    raw = layout.pack(Fields(values, scale, minimum, codes.d.reshape(n, -1), codes.dmin.reshape(n, -1)))
    return np.ascontiguousarray(raw).reshape(len(codes.values), -1)


def levels(kind: str) -> Floats:
    """What a stored value may be, float32 [levels], rising."""
    return np.array(_block_type(kind)[1].levels, np.float32)


def group(kind: str) -> int:
    """Weights of a type that share an integer scale (or their only one): 16 or 32."""
    return _block_type(kind)[1].group


def _block_type(kind: str) -> tuple[BlockType, Layout]:
    block = BY_NAME.get(kind)
    if block is None or block.layout is None:
        known = ", ".join(t.name for t in BY_NAME.values() if t.layout)
        raise ValueError(f"{kind!r:.40} is not a type of blocks; choose one of {known}")
    return block, block.layout

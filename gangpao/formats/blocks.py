"""The weight types of GGUF files, one row each: number, size of a block, and what its bytes mean, in numpy.

A tensor row is a run of blocks; a block holds 32 or 256 weights as small integers with shared scales. Readers take uint8 blocks
[n, bytes] and give float32 weights [n, weights], in the same float steps as ggml, so weights equal those of the `gguf` package bit
for bit (tested). Where a block's numbers lie is said in quants/layout.py, how they are found for given weights in
quants/writers.py; kernels.quantize_rows writes the same bytes, faster.

Types with larger codebooks (IQ1 to IQ3) are refused by name. A type that the engine is to run needs a row here and one in
kernels/src/blocks.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao.formats.quants import layout, writers
from gangpao.formats.quants.layout import Layout
from gangpao.formats.quants.plain import Unwritable as Unwritable
from gangpao.formats.quants.plain import first_wrong, write_bf16, write_f16

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Written:
    """How a type is written. file_type: its number in general.file_type. write: rows [R, C] and importance [C] or None to blocks
    or numbers. step: how far a value may move on its way, as a share of the largest one in its block of 32 (rounding of the scale
    included); None where a search may move single values far. loss: the largest share of a row's root mean square that is lost."""

    file_type: int
    write: Callable[[Floats, Floats | None], npt.NDArray[np.generic]]
    step: float | None
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockType:
    """One GGUF weight type: name, ggml id, weights in a block, bytes of a block, what a block's bytes mean (a layout, or for float
    types how they are read), and (if it is) how it is written."""

    name: str
    id: int
    block_size: int
    type_size: int
    meaning: Layout | Callable[[Bytes], Floats]
    written: Written | None = None

    @property
    def layout(self) -> Layout | None:
        """How blocks are taken apart; None for floats."""
        return self.meaning if isinstance(self.meaning, Layout) else None

    def read(self, blocks: Bytes) -> Floats:
        """Blocks [n, bytes] as weights [n, weights]."""
        return self.meaning.read(blocks) if isinstance(self.meaning, Layout) else self.meaning(blocks)

    def row_bytes(self, cols: int) -> int:
        """Bytes of a row; `cols` must be whole blocks."""
        return cols // self.block_size * self.type_size


# --- reading


def _read_f32(b: Bytes) -> Floats:
    return b.view(np.float32).copy()


def _floats(
    write: Callable[[Floats], npt.NDArray[np.generic]],
) -> Callable[[Floats, Floats | None], npt.NDArray[np.generic]]:
    return lambda values, _importance: write(values)


def _read_bf16(b: Bytes) -> Floats:
    return (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _read_f16(b: Bytes) -> Floats:
    return b.view(np.float16).astype(np.float32)


# --- the types

TYPES = (
    BlockType("F32", 0, 1, 4, _read_f32, Written(0, _floats(lambda values: values), 0.0)),
    BlockType("F16", 1, 1, 2, _read_f16, Written(1, _floats(write_f16), 2**-11)),
    BlockType("Q4_0", 2, 32, 18, layout.Q4_0, Written(2, writers.Q4_0, 1 / 8)),
    BlockType("Q4_1", 3, 32, 20, layout.Q4_1, Written(3, writers.Q4_1, 2 / 15)),
    BlockType("Q5_0", 6, 32, 22, layout.Q5_0, Written(8, writers.Q5_0, None, 0.1)),
    BlockType("Q5_1", 7, 32, 24, layout.Q5_1, Written(9, writers.Q5_1, None, 0.1)),
    BlockType("Q8_0", 8, 32, 34, layout.Q8_0, Written(7, writers.Q8_0, 1 / 127)),
    BlockType("Q2_K", 10, 256, 84, layout.Q2_K, Written(10, writers.Q2_K, None, 0.6)),
    BlockType("Q3_K", 11, 256, 110, layout.Q3_K, Written(11, writers.Q3_K, None, 0.35)),
    BlockType("Q4_K", 12, 256, 144, layout.Q4_K, Written(14, writers.Q4_K, None, 0.2)),
    BlockType("Q5_K", 13, 256, 176, layout.Q5_K, Written(16, writers.Q5_K, None, 0.1)),
    BlockType("Q6_K", 14, 256, 210, layout.Q6_K, Written(18, writers.Q6_K, None, 0.05)),
    BlockType("IQ4_NL", 20, 32, 18, layout.IQ4_NL, Written(25, writers.IQ4_NL, None, 0.2)),
    BlockType("IQ4_XS", 23, 256, 136, layout.IQ4_XS, Written(30, writers.IQ4_XS, None, 0.2)),
    BlockType("BF16", 30, 1, 2, _read_bf16, Written(32, _floats(write_bf16), 2**-8)),
    BlockType("TQ1_0", 34, 256, 54, layout.TQ1_0, Written(36, writers.TQ1_0, None, 0.95)),
    BlockType("TQ2_0", 35, 256, 66, layout.TQ2_0, Written(37, writers.TQ2_0, None, 0.95)),
)
BY_ID = {t.id: t for t in TYPES}
BY_NAME = {t.name: t for t in TYPES}
WRITTEN = {t.name: t.written for t in TYPES if t.written}

# Known to ggml, unknown to us: named so that a refusal can say what the file holds.
UNSUPPORTED = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


def dequantize(raw: Bytes, kind: str) -> Floats:
    """GGUF rows, uint8 [rows, row_bytes], as float32 [rows, cols].

    Raises ValueError for an unknown type or rows that are not whole blocks.
    """
    block = BY_NAME.get(kind)
    if block is None:
        raise ValueError(f"weights of type {kind} are not supported; known are {', '.join(BY_NAME)}")
    if raw.ndim != 2 or raw.dtype != np.uint8 or raw.shape[1] % block.type_size:
        raise ValueError(f"{kind} rows must be uint8 [rows, n * {block.type_size}], got {raw.dtype} {raw.shape}")
    raw = np.ascontiguousarray(raw)
    if block.block_size == 1:
        return block.read(raw)
    with np.errstate(invalid="ignore", over="ignore"):  # damaged scales: infinities are for the caller to judge
        return block.read(raw.reshape(-1, block.type_size)).reshape(len(raw), -1)


def quantize(values: Floats, kind: str, importance: Floats | None = None) -> Bytes:
    """Rows [R, C] to bytes [R, row bytes]; C must be whole blocks (`fits`).

    importance: mean squared activation of every column [C], by which errors are weighed; types of floats have no use for it.
    Raises Unwritable for a value that is no finite number, and for one that the type cannot hold.
    """
    if kind not in WRITTEN:
        raise ValueError(f"{kind!r:.40} is not a type we write; choose one of {', '.join(WRITTEN)}")
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not len(values):
        return np.empty((0, BY_NAME[kind].row_bytes(values.shape[1])), np.uint8)
    finite = np.isfinite(values)
    if not finite.all():
        row, value = first_wrong(values, ~finite)
        raise Unwritable(
            row, f"{value:g} is no number to compute with: the checkpoint is damaged or its training diverged"
        )
    with np.errstate(over="ignore"):  # what grew too large is found by write_f16 and write_bf16
        written = np.ascontiguousarray(WRITTEN[kind].write(values, importance))
    return written.view(np.uint8).reshape(len(values), BY_NAME[kind].row_bytes(values.shape[1]))


def fits(cols: int, kind: str) -> bool:
    """Whether a row of this many columns is whole blocks."""
    return cols % BY_NAME[kind].block_size == 0

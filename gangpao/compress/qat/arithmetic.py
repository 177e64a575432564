"""A matrix as a file of some type will hold it: float weights in, blocks out, and the floats that a reader makes of these.

Training through an approximation of a format loses at the end what it gained (a model trained for BF16 scales keeps 70 % of its
answers in llama.cpp's Q4_0, whose scales are F16). So a forward pass takes the bytes: `encode` is what is written, and `decode` of
it is what is multiplied with, bit for bit. Rows are independent of one another, so their order in the file does not matter.

Ternary: ggml's TQ types divide by the largest magnitude of 256 weights, which is right for weights that are ternary already and
makes almost all of others zero. BitCPM's recipe (and BitNet b1.58's) is a scale of the mean magnitude, s = mean |w|, and round(w /
s) clipped to -1, 0, 1; the file holds the same kind of blocks.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao import kernels
from gangpao.formats import blocks
from gangpao.formats.blocks import BY_NAME
from gangpao.formats.codes import Codes, codes, pack

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ternary = Literal["mean", "largest"]
TERNARY = frozenset({"TQ1_0", "TQ2_0"})
TERNARY_BLOCK = 256
PLAIN = frozenset({"F32", "F16", "BF16"})


class Arithmetic(Protocol):
    """How a matrix is written."""

    @property
    def kind(self) -> str:
        """The GGUF type."""
        ...

    def encode(self, values: Floats) -> Bytes:
        """float32 [R, C] as uint8 [R, row bytes]."""
        ...


def decode(raw: Bytes, kind: str, cols: int, out: Floats) -> None:
    """Blocks [R, row bytes] as float32, into `out` [R, C]."""
    kernels.dequantize(raw, kind, len(raw), cols, out, 0, len(raw), None, torch.get_num_threads() > 1)


class Blocks:
    """Any type as `gangpao quantize` writes it. importance: mean squared activation of every column, float32 [C], or None."""

    def __init__(self, kind: str, importance: Floats | None = None) -> None:
        self.kind, self.importance = kind, importance

    def encode(self, values: Floats) -> Bytes:
        if self.kind in PLAIN:
            return blocks.quantize(values, self.kind)
        return kernels.quantize_rows(values, self.kind, self.importance, torch.get_num_threads() > 1)


class MeanTernary:
    """TQ2_0 and TQ1_0 by BitCPM's recipe, in groups of 256, the scale in F16 as the file holds it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def encode(self, values: Floats) -> Bytes:
        groups = values.reshape(len(values), -1, TERNARY_BLOCK)
        d = np.abs(groups).mean(axis=-1).astype(np.float16).astype(np.float32)
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
        q = np.rint(groups * inverse[..., None]).clip(-1, 1).astype(np.int16).reshape(values.shape)
        return pack(with_scales(self.kind, q, d))


def with_scales(kind: str, values: npt.NDArray[np.int16], d: Floats) -> Codes:
    """Integers [R, C] of a type whose blocks have one scale each, with these scales [R, blocks]."""
    like = codes(np.zeros((1, BY_NAME[kind].row_bytes(values.shape[1])), np.uint8), kind, values.shape[1])
    shape = (len(values), like.scale.shape[1])
    return Codes(kind, values, np.ones(shape, np.int16), np.zeros(shape, np.int16), d, np.zeros_like(d))


def arithmetic_of(kind: str, ternary: Ternary = "mean", importance: Floats | None = None) -> Arithmetic:
    """How a type is written. Raises ValueError for one that is not."""
    if kind in TERNARY and ternary == "mean":
        return MeanTernary(kind)
    if kind not in BY_NAME:
        raise ValueError(f"{kind!r:.40} is not a type of GGUF files that we write; choose one of {', '.join(BY_NAME)}")
    return Blocks(kind, importance)


def activation_group(kind: str) -> int:
    """Columns of a layer's input that share a scale where the engine multiplies this type: 256 of K-quants, else 32."""
    return 256 if kind.endswith("_K") else 32


class _Int8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: int) -> Tensor:
        parts = x.float().unflatten(-1, (-1, group))  # type: ignore[no-untyped-call]
        top = parts.abs().amax(-1, keepdim=True)
        inverse = torch.where(top > 0, 127 / top, 0.0)
        return torch.round(parts * inverse).mul_(top / 127).flatten(-2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def int8(x: Tensor, group: int) -> Tensor:
    """Activations [..., C] as the engine computes with them: int8, one scale for `group` columns; the gradient goes through."""
    out: Tensor = _Int8.apply(x, group)  # type: ignore[no-untyped-call]
    return out

"""Tensors of an mmproj file as packed matrices and norms, each checked against the shape that the header implies.

A matrix is packed once, lossless, as those of language models are (engine/weights.py), with its bias where the file has one. What
nothing reads is an error, except what other programs want in the file and nobody computes with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.formats.blocks import dequantize
from gangpao.formats.gguf import GGUF, ModelFileError

Floats = npt.NDArray[np.float32]

_FLOAT_KINDS = ("F32", "F16", "BF16")
_BLOCK = 32  # columns that share a scale


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm. weight, bias: [1, width]."""

    weight: kernels.Array
    bias: kernels.Array
    eps: float


@dataclass(frozen=True, slots=True)
class Mlp:
    """Linear, an activation, linear; behind a norm where there is one."""

    norm: Norm | None
    up: kernels.Linear
    down: kernels.Linear


@dataclass(frozen=True, slots=True)
class Attention:
    """q, k and v side by side, and the projection of what was attended to."""

    norm: Norm
    qkv: kernels.Linear
    out: kernels.Linear


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of an encoder."""

    attention: Attention
    mlp: Mlp


def row_of(values: Floats) -> kernels.Array:
    """A vector as [1, width]."""
    out = kernels.Array(1, len(values))
    out.numpy()[0] = values
    return out


class Tensors:
    """What is taken out of an open file. float32: matrices as such, whatever the file has, so that inputs are not rounded.

    int8: matrices of floats as Q8_0, so that products are those of bytes.
    """

    def __init__(self, gguf: GGUF, *, float32: bool = False, int8: bool = False) -> None:
        self.gguf, self.float32, self.int8 = gguf, float32, int8
        self.arena = kernels.Arena()
        self.left = set(gguf.tensors)

    def has(self, name: str) -> bool:
        return name in self.gguf.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor. Raises ModelFileError where it is missing."""
        return self.gguf.info(name).shape

    def _take(self, name: str, shape: tuple[int, ...]) -> str:
        info = self.gguf.info(name)
        if info.shape != shape:
            raise ModelFileError(f"{self.gguf.path}: tensor {name} has shape {info.shape}, expected {shape}")
        self.left.discard(name)
        return info.type

    def floats(self, name: str, *shape: int) -> Floats:
        """A tensor of this shape as float32."""
        self._take(name, shape)
        return np.array(self.gguf.array(name), dtype=np.float32).reshape(shape)  # a copy: the file is closed

    def norm(self, name: str, width: int, eps: float) -> Norm:
        """`name`.weight and `name`.bias, which may be missing."""
        bias = self.floats(f"{name}.bias", width) if self.has(f"{name}.bias") else np.zeros(width, np.float32)
        return Norm(row_of(self.floats(f"{name}.weight", width)), row_of(bias), eps)

    def matrix(
        self, name: str, rows: int, cols: int, *, shape: tuple[int, ...] | None = None, more: tuple[int, int] = (0, 0)
    ) -> kernels.Matrix:
        """`name`.weight as panels, with `name`.bias where the file has one. shape: in the file, if it is another one; more: rows
        and columns of zeros behind those of the file."""
        weight, bias = f"{name}.weight", f"{name}.bias"
        kind = self._take(weight, shape or (rows, cols))
        raw, kind = self._as_packed(self.gguf.raw(weight), kind, rows, cols, more)
        packed = kernels.pack(raw, kind, rows + more[0], cols + more[1], None, self.arena)
        self.gguf.release(weight)
        if self.has(bias):
            packed.set_bias(np.pad(self.floats(bias, rows), (0, more[0])))
        return packed

    def _as_packed(
        self, raw: npt.NDArray[np.uint8], kind: str, rows: int, cols: int, more: tuple[int, int]
    ) -> tuple[npt.NDArray[np.uint8], str]:
        """Bytes and type of a matrix as it is kept."""
        to_int8 = self.int8 and kind in _FLOAT_KINDS and (cols + more[1]) % _BLOCK == 0
        if not (self.float32 or to_int8):
            return np.pad(raw, ((0, more[0]), (0, 0))) if more[
                0
            ] else raw, kind  # a block of zero bytes is zeros in every type
        values = dequantize(raw, kind).reshape(rows, cols)
        if not to_int8:
            return values.view(np.uint8), "F32"
        return kernels.quantize_rows(np.pad(values, ((0, more[0]), (0, more[1]))), "Q8_0"), "Q8_0"

    def missing(self, name: str, cols: int) -> int:
        """Columns that a matrix of floats lacks to be whole blocks, where it is to become bytes."""
        rounded = self.int8 and self.gguf.info(f"{name}.weight").type in _FLOAT_KINDS
        return -cols % _BLOCK if rounded else 0

    def linear(self, name: str, rows: int, cols: int, more: tuple[int, int] = (0, 0)) -> kernels.Linear:
        """One matrix as a layer."""
        return kernels.Linear([self.matrix(name, rows, cols, more=more)])

    def attention(self, prefix: str, norm: Norm, size: int) -> Attention:
        """q, k and v, apart or as one tensor, and the projection behind them."""
        if self.has(f"{prefix}.attn_qkv.weight"):
            parts = [self.matrix(f"{prefix}.attn_qkv", 3 * size, size)]
        else:
            parts = [self.matrix(f"{prefix}.attn_{part}", size, size) for part in "qkv"]
        return Attention(norm, kernels.Linear(parts), self.linear(f"{prefix}.attn_out", size, size))

    def check_all_taken(self, kind: str) -> None:
        """Raises ModelFileError where a tensor is left that nothing has read."""
        if self.left:
            some = ", ".join(sorted(self.left)[:4])
            raise ModelFileError(
                f"{self.gguf.path}: {len(self.left)} tensors have no place in an encoder of kind {kind} ({some}); this variant is "
                "not supported, and leaving them out would give wrong rows"
            )

"""Layers that compute with rounded weights and are trained as if these were not: the straight-through estimator (arXiv:1308.3432).

    forward    y = x W~^T,  W~ = decode(encode(W))      the weights of the file, to the last bit
    backward   dW = dW~                                 rounding counts as the identity

W~ is made once for each state of W, whoever asks first: lanes and micro-batches of a step share it. A tied head and embedding are
one matrix, rounded once.

What it gives up: memory for W~ beside W, four bytes a weight; the blocks alone would do, and would be read in every product.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.compress.qat.arithmetic import Arithmetic, Bytes, activation_group, decode, int8
from gangpao.model import cpu
from gangpao.model.layers import Linear


class Effective(Protocol):
    """A matrix [R, C] that is trained, and what is computed with in its place."""

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name in the layer."""
        ...

    def effective(self) -> Tensor:
        """float32 [R, C] with its gradient, the bits of the file."""
        ...

    def encode(self) -> Bytes:
        """The file's rows, uint8 [R, row bytes]."""
        ...


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Rounded:
    """Floats behind a rounded matrix."""

    def __init__(self, weight: nn.Parameter, arithmetic: Arithmetic) -> None:
        self.weight, self.arithmetic = weight, arithmetic
        self._lock, self._seen = threading.Lock(), -1
        self._rounded: Tensor | None = None

    @property
    def kind(self) -> str:
        return self.arithmetic.kind

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.weight.shape
        return rows, cols

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def encode(self) -> Bytes:
        return self.arithmetic.encode(np.ascontiguousarray(self.weight.detach().float().cpu().numpy()))

    def effective(self) -> Tensor:
        version = self.weight._version  # moves with every change in place, whoever makes it
        with self._lock:
            if self._rounded is None or self._seen != version:
                made = torch.empty(self.shape)  # a new one: a graph of before may still hold the old
                decode(self.encode(), self.kind, self.shape[1], made.numpy())
                self._rounded, self._seen = made.to(self.weight.device), version
            rounded = self._rounded
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return rounded
        out: Tensor = _Straight.apply(self.weight, rounded)  # type: ignore[no-untyped-call]
        return out


class RoundedLinear(Linear):
    """y = x W~^T + bias. activations: x in int8 as the engine has it."""

    def __init__(self, matrix: Effective, bias: nn.Parameter | None, *, activations: bool = False) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = matrix.shape
        self.stored = matrix
        for name, parameter in matrix.parameters().items():
            self.register_parameter(name, parameter)
        self.register_parameter("bias", bias)
        self.group = activation_group(matrix.kind) if activations and self.in_features % 32 == 0 else 0

    def effective(self) -> Tensor:
        """The weights that are computed with, with their gradient."""
        return self.stored.effective()

    def _input(self, x: Tensor) -> Tensor:
        return int8(x, self.group) if self.group and self.in_features % self.group == 0 else x

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(self._input(x), self.effective().to(x.dtype), bias)

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Linear]) -> Sequence[Tensor]:
        """See Linear."""
        own = [linear for linear in linears if isinstance(linear, RoundedLinear)]
        alike = len({linear.group for linear in own}) == 1 and all(linear.bias is None for linear in own)
        if len(own) == len(linears) and alike and cpu.applies(x):
            return cpu.products(own[0]._input(x), [linear.effective() for linear in own])
        return [linear(x) for linear in linears]


class RoundedEmbedding(nn.Embedding):
    """Rows of W~."""

    def __init__(self, matrix: Effective) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = matrix.shape
        self.stored = matrix
        for name, parameter in matrix.parameters().items():
            self.register_parameter(name, parameter)
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False

    def effective(self) -> Tensor:
        """The table that rows are taken from, with its gradient."""
        return self.stored.effective()

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.effective())

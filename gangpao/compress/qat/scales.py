"""The cheap way: the integers of a quantized matrix stay as they are, and the floats that they are multiplied with are trained.

    w = f16(d0 gain) * scale * values - f16(dmin0 gain_min) * minimum       a gain for 32 or 256 weights, 1 at first

A thirty-second of the weights (or less) has a gradient that is kept and an optimizer state, with norms and biases; whoever
chose the integers (GPTQ, a search) keeps the choice. The file is as large as before and holds the same integers. Rounding to F16
counts as the identity in the backward pass. What is trained are gains and not the scales themselves, which differ by orders of
magnitude between layers, where a step of Adam has one size for all.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gangpao.compress.qat.arithmetic import Bytes
from gangpao.formats.codes import Codes, codes, pack


class _FromScales(torch.autograd.Function):
    """Gains [R, n] of d and dmin -> w [R, C]."""

    @staticmethod
    def forward(ctx: Any, gain: Tensor, gain_min: Tensor, weights: Tensor, matrix: Scaled) -> Tensor:
        ctx.matrix = matrix
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        m: Scaled = ctx.matrix
        (g,) = gradients
        of_d = (g * m.integers).view(len(g), m.d.shape[1], -1).sum(-1)
        of_groups = g.view(len(g), m.minima.shape[1], -1).sum(-1) * m.minima
        return of_d * m.d, -of_groups.view(len(g), m.d.shape[1], -1).sum(-1) * m.dmin, None, None


class Scaled:
    """A matrix in blocks, uint8 [R, row bytes], whose scales are trained, by gains. Raises ValueError for a type without blocks."""

    def __init__(self, raw: Bytes, kind: str, cols: int) -> None:
        self.codes = codes(raw, kind, cols)
        c = self.codes
        self.d, self.dmin = torch.from_numpy(c.d.copy()), torch.from_numpy(c.dmin.copy())
        self.gain, self.gain_min = nn.Parameter(torch.ones_like(self.d)), nn.Parameter(torch.ones_like(self.dmin))
        self.gain_min.requires_grad_(bool(c.minimum.any()))
        whole = c.values.astype(np.int32) * np.repeat(c.scale.astype(np.int32), c.group, axis=1)
        self.integers, self.minima = (
            torch.from_numpy(whole.astype(np.int16)),
            torch.from_numpy(c.minimum.astype(np.float32)),
        )
        self._lock, self._seen = threading.Lock(), (-1, -1)
        self._weights: Tensor | None = None

    @property
    def kind(self) -> str:
        return self.codes.kind

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.codes.values.shape
        return rows, cols

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"gain": self.gain, "gain_min": self.gain_min}

    def rounded(self) -> Codes:
        """The integers with the scales of now, in F16."""
        return dataclasses.replace(self.codes, d=_f16(self.d, self.gain), dmin=_f16(self.dmin, self.gain_min))

    def encode(self) -> Bytes:
        return pack(self.rounded())

    def effective(self) -> Tensor:
        version = (self.gain._version, self.gain_min._version)
        with self._lock:
            if self._weights is None or self._seen != version:
                device = self.gain.device
                self.d, self.dmin, self.integers, self.minima = (
                    x.to(device) for x in (self.d, self.dmin, self.integers, self.minima)
                )
                self._weights = torch.from_numpy(self.rounded().weights()).to(device)
                self._seen = version
            weights = self._weights
        if not (torch.is_grad_enabled() and self.gain.requires_grad):
            return weights
        out: Tensor = _FromScales.apply(self.gain, self.gain_min, weights, self)  # type: ignore[no-untyped-call]
        return out


def _f16(values: Tensor, gains: Tensor) -> npt.NDArray[np.float32]:
    limit = float(np.finfo(np.float16).max)
    return (values * gains.detach()).cpu().clamp(-limit, limit).half().float().numpy()

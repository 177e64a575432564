"""Products with factors near 1 in bf16. bf16 has steps of 0.4 to 0.8 %, so x * 1.001 rounds to x again, and a method whose
factors move less than that does not learn. Here a float32 product is rounded up as often as it is near the upper neighbour, by a
hash of its own bits: the mean is right, the same values are rounded the same way everywhere, and what bf16 can hold stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MULTIPLIER = -1640531535  # odd, 2^32 over the golden ratio as int32: the upper bits of a product depend on all bits


def round_fairly(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values of any shape in `dtype`; for bf16 rounded up or down by a hash of their bits, right in the mean."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    bits = values.contiguous().view(torch.int32)
    noise = (bits * _MULTIPLIER).bitwise_right_shift_(16).bitwise_and_(0xFFFF)
    return noise.add_(bits).bitwise_and_(-65536).view(torch.float32).to(dtype)


def scaled(x: Tensor, factors: Tensor) -> Tensor:
    """x [..., n] * factors [n] (float32) in the dtype of x, with the gradients of the product."""
    if x.dtype == factors.dtype:
        return x * factors
    out: Tensor = _Scaled.apply(x, factors)  # type: ignore[no-untyped-call]
    return out


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor) -> Tensor:
        ctx.save_for_backward(x, factors)
        return round_fairly(x * factors, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (dy,) = gradients
        x, factors = ctx.saved_tensors
        rows = (dy * x).reshape(-1, x.shape[-1])
        return dy * factors.to(dy.dtype), rows.sum(0, dtype=torch.float32)

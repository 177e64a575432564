"""DoRA (arXiv:2402.09353): every row of W + scale * B A is brought to a length of its own, which is trained.

y = (x W^T + scale * (x A^T) B^T) * m / |W + scale * B A|. The lengths are taken as constants in the backward pass (section 4.3 of
the paper). They are computed without the sum, which would be a float copy of the base in every step:

    |W_i + s B_i A|^2 = |W_i|^2 + 2 s B_i (W A^T)_i + s^2 B_i (A A^T) B_i^T

so they cost a product of the base with r rows. An untrained DoRA is the base to the bit, in every storage.

What it gives up: memory. The gradient of m needs the product before it is scaled, so that is kept beside x. Where there is
dropout, it thins the adapter's input alone; PEFT computes the base a second time for the thinned input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.model.layers import Linear, project
from gangpao.model.tiles import dense, multiply, multiply_back
from gangpao.tune.methods.lora import LoraLinear, Switch, down_gradients, draw_seed, thinned
from gangpao.tune.methods.rounding import round_fairly


class DoraLinear(LoraLinear):
    """A linear with an adapter and the lengths of its rows, `magnitude` [out]."""

    squares: Tensor

    def __init__(self, base: Linear, switch: Switch, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, switch, rank=rank, scale=scale, dropout=dropout)
        if self.lora_B.is_meta:  # a plan counts parameters and wants no values
            squares = torch.empty(self.out_features, device="meta")
        else:
            squares = torch.linalg.vector_norm(dense(base.matrix()), dim=1).square_().to(self.lora_B.device)
        self.register_buffer("squares", squares, persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt())

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """|W + scale * B A| by row, float32 [out]."""
        a, b = self.lora_A, self.lora_B
        crossed = (b * multiply(a, self.base.matrix()).T).sum(1)
        inner = ((b @ (a @ a.T)) * b).sum(1)
        return (self.squares + 2 * self.scale * crossed + self.scale**2 * inner).clamp_min_(0).sqrt_()

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
        """Adapted linears at the same input."""
        if any(linear.switch.off for linear in linears):
            return project(x, [linear.base for linear in linears])
        return [
            _Decomposed.apply(x, m, draw_seed(m), m.lengths(), m.lora_A, m.lora_B, m.magnitude)  # type: ignore[no-untyped-call]
            for m in linears
        ]


class _Decomposed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linear: DoraLinear, seed: int | None, lengths: Tensor, a: Tensor, b: Tensor, m: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        u = thinned(flat, linear.dropout, seed) @ a.to(x.dtype).T
        wide = multiply(flat, linear.base.matrix()).float()
        wide += (u @ b.to(x.dtype).T).float().mul_(linear.scale)
        z = wide.to(x.dtype)
        # In bf16 the ratio and the adapter's share vanish while they are small, and half of what is learned with them.
        y = round_fairly(wide * (m / lengths), x.dtype)
        if linear.base.bias is not None:
            y += linear.base.bias.to(y.dtype)
        ctx.save_for_backward(flat, u, z, lengths, a, b, m)
        ctx.linear, ctx.seed, ctx.shape = linear, seed, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        flat, u, z, lengths, a, b, m = ctx.saved_tensors
        linear, dtype = ctx.linear, flat.dtype
        dy = gradients[0].reshape(len(flat), -1)
        dm = (dy * z).sum(0, dtype=torch.float32) / lengths
        dz = dy * (m / lengths).to(dtype)
        du = torch.mm(dz, b.to(dtype)).mul_(linear.scale)
        db = (dz.T @ u).mul_(linear.scale)
        dx = multiply_back(dz, linear.base.matrix()) if ctx.needs_input_grad[0] else None
        (da,) = down_gradients(flat, [du], [a.to(dtype)], dx, [linear.dropout], [ctx.seed])
        back = None if dx is None else dx.view(ctx.shape)
        return back, None, None, None, da.to(a.dtype), db.to(b.dtype), dm.to(m.dtype)

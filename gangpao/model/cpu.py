"""Attention, norm and MLP for training on a CPU, with gradients written by hand: the same mathematics in fewer passes over memory.

torch's attention on a CPU reaches a third of the speed of a matrix product, and its backward pass less. Here a block of
queries is multiplied with the keys that it may see, by plain batched products: scores, softmax, values. Probabilities
of a layer are kept for the backward pass where they are small, else made again. In bf16 the scores are float32, because
the exponential makes large of small errors; the gradients of scores are bf16, which adds a third to torch's own error there.

What it gives up: memory that does not grow with the square of the length, up to KEPT_BYTES a layer; past that it does not.
On a GPU torch's own kernels are better, and without gradients there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64  # queries: less and products are thin, more and half of a block is hidden by the causal mask
KEPT_BYTES = 32 << 20


def applies(x: Tensor) -> bool:
    """Whether a gradient will be wanted of something that is computed from `x` on a CPU, in at most single precision."""
    wanted = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return wanted and x.device.type == "cpu" and x.dtype != torch.float64


class _Attention(torch.autograd.Function):
    """Shapes: Z = B * K groups of G heads that share a key, so a block of n queries is G * n rows."""

    @staticmethod
    def forward(ctx: Any, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        batch, heads, time, width = q_BNTH.shape
        groups, dtype = k_BKTH.shape[1], v_BKTH.dtype
        q = q_BNTH.float() * scale
        k, v = k_BKTH.reshape(-1, time, width), v_BKTH.reshape(-1, time, width)
        hidden = None if mask is None else ~mask
        spans = _spans(time, mask)
        out = torch.empty(batch, time, heads, width, dtype=dtype)
        keys, kept = k.float(), []
        keep = batch * heads * sum((e - s) * (e - low) for low, s, e in spans) * dtype.itemsize <= KEPT_BYTES
        for low, s, e in spans:
            p = _probabilities(_rows(q, groups, s, e), keys[:, low:e], hidden, (batch, low, s, e)).to(dtype)
            y = torch.bmm(p, v[:, low:e])
            out[:, s:e] = y.view(batch, heads, e - s, width).transpose(1, 2)
            kept += [p] if keep else []
        ctx.save_for_backward(q, k, v, hidden, *kept)
        ctx.spans, ctx.scale, ctx.dtypes = spans, scale, (q_BNTH.dtype, k_BKTH.dtype)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_BNTH,) = gradients
        q, k, v, hidden, *kept = ctx.saved_tensors
        (batch, heads, time, width), groups = q.shape, len(k) // len(q)
        dq = torch.empty(batch, heads, time, width, dtype=v.dtype)
        dk, dv = torch.zeros_like(k, dtype=v.dtype), torch.zeros_like(v)
        near = k.to(v.dtype)
        for i, (low, s, e) in enumerate(ctx.spans):
            rows = _rows(q, groups, s, e)
            if kept:
                p = kept[i]
            else:
                p = _probabilities(rows, k[:, low:e].float(), hidden, (batch, low, s, e)).to(v.dtype)
            d = _rows(d_BNTH, groups, s, e)
            ds = torch.bmm(d, v[:, low:e].mT).mul_(p)  # dS = P * (dP - rowsum(P * dP))
            ds.addcmul_(p, ds.sum(-1, keepdim=True, dtype=torch.float32).to(p.dtype), value=-1)
            dq[:, :, s:e] = torch.bmm(ds, near[:, low:e]).view(batch, heads, e - s, width)
            dk[:, low:e] += torch.bmm(ds.mT, rows.to(v.dtype))
            dv[:, low:e] += torch.bmm(p.mT, d)
        shape = (batch, groups, time, width)
        q_type, k_type = ctx.dtypes
        return dq.mul_(ctx.scale).to(q_type), dk.view(shape).to(k_type), dv.view(shape), None, None


def _spans(time: int, mask: Tensor | None) -> list[tuple[int, int, int]]:
    """(first key that anybody in the block sees, first query, end) of every block."""
    starts = range(0, time, BLOCK)
    if mask is None:
        return [(0, s, min(time, s + BLOCK)) for s in starts]
    # Documents are runs: who comes first in a block sees furthest back.
    lows = mask[:, 0, ::BLOCK].to(torch.uint8).argmax(-1).amin(0).tolist()
    return [(low, s, min(time, s + BLOCK)) for low, s in zip(lows, starts, strict=True)]


def _rows(x_BNTH: Tensor, groups: int, s: int, e: int) -> Tensor:
    """Queries s to e as [Z, G * n, H]."""
    return x_BNTH[:, :, s:e].reshape(x_BNTH.shape[0] * groups, -1, x_BNTH.shape[3])


def _probabilities(rows: Tensor, keys: Tensor, hidden: Tensor | None, at: tuple[int, int, int, int]) -> Tensor:
    """float32 [Z, G * n, keys]."""
    batch, low, s, e = at
    scores = torch.bmm(rows, keys.mT)
    seen = scores.view(batch, -1, e - s, e - low)
    if hidden is None:
        seen[..., s - low :] += torch.full((e - s, e - s), -torch.inf).triu_(1)
    else:
        seen.masked_fill_(hidden[:, :, s:e, low:e], -torch.inf)
    return torch.softmax(scores, -1)


def attention(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Causal attention [B, N, T, H]; mask: bool [B, 1, T, T], causal inside runs of documents, or None."""
    return _Attention.apply(q_BNTH, k_BKTH, v_BKTH, mask, scale)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        r = r.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y: Tensor = (x * r).to(x.dtype)
        return y.mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        width = x.shape[-1]
        flat, g, r = x.reshape(-1, width).float(), gradients[0].reshape(-1, width).float(), r.reshape(-1, 1)
        product = g * flat
        dw = torch.mv(product.T, r[:, 0])
        c = torch.mv(product, weight.float())[:, None]
        # dx = r * (g * w - x * r^2 * mean(g * w * x))
        dx = torch.mul(g, weight, out=product).addcmul_(flat, c * r * r, value=-1 / width).mul_(r)
        return dx.to(x.dtype).view_as(x), dw.to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        near = [w.to(x.dtype) for w in weights]
        ctx.save_for_backward(flat, *near)
        ctx.shape, ctx.dtypes = x.shape, [w.dtype for w in weights]
        return tuple((flat @ w.T).view(*x.shape[:-1], -1) for w in near)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, *weights = ctx.saved_tensors
        gs = [g.reshape(len(flat), -1) for g in gradients]
        dx = gs[0] @ weights[0]
        for g, w in zip(gs[1:], weights[1:], strict=True):
            dx.addmm_(g, w)
        wanted = ctx.needs_input_grad[1:]
        dw = [(g.T @ flat).to(dtype) if want else None for g, dtype, want in zip(gs, ctx.dtypes, wanted, strict=True)]
        return dx.view(ctx.shape), *dw


def products(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x @ w.T for each weight [out, in]; the gradients of x are added up inside the products."""
    return _Products.apply(x, *weights)  # type: ignore[no-any-return, no-untyped-call]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        active = F.silu(gate)
        ctx.save_for_backward(gate, up, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (d,) = gradients
        gate, up, active = ctx.saved_tensors
        t = d * up
        torch.ops.aten.silu_backward.grad_input(t, gate, grad_input=t)
        return t, d * active


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]

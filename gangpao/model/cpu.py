"""Attention, norm and MLP for training on a CPU, with gradients written by hand: the same mathematics in fewer passes over memory.

torch's attention on a CPU reaches a third of the speed of a matrix product, and its backward pass less. Here a block of
queries is multiplied with the keys that it may see, by plain batched products: scores, softmax, values. Probabilities
of a layer are kept for the backward pass where they are small, else made again. In bf16 the scores are float32, because
the exponential makes large of small errors; the gradients of scores are bf16, which adds a third to torch's own error there.
In bf16 norm, RoPE and SwiGLU are kernels of ours (kernels/src/between.h): torch takes two to nine passes over memory for each.

What it gives up: memory that does not grow with the square of the length, up to KEPT_BYTES a layer; past that it does not.
On a GPU torch's own kernels are better, and without gradients there is nothing to gain.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao import kernels, machine

BLOCK = 64  # queries: less and products are thin, more and half of a block is hidden by the causal mask
KEPT_BYTES = 32 << 20

Turn = tuple[Tensor, Tensor]
Result = TypeVar("Result")

_keeps = threading.local()


def applies(x: Tensor) -> bool:
    """Whether a gradient will be wanted of something that is computed from `x` on a CPU, in at most single precision."""
    wanted = x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return wanted and x.device.type == "cpu" and x.dtype != torch.float64


def _bits(x: Tensor) -> Any:
    """The numbers of a tensor of bfloat16 for a kernel, in place."""
    return x.detach().view(torch.uint16).numpy()


def _in_kernels(*tensors: Tensor) -> bool:
    """Whether what lies between the products is done by our kernels (training.cpp): bfloat16 that lies in a row."""
    return all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in tensors)


def _errs() -> bool:
    """Whether a product of float32 has errors that float32 does not explain."""
    a, b = (torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact = a.double() @ b.double()
    both = torch.stack([x @ y for x, y in zip(a, b, strict=True)])
    return bool(((a @ b - exact).abs() + (both - exact).abs()).max() > 1e-3)  # bfloat16: 0.2


@functools.cache
def use_full_width() -> bool:
    """Let oneDNN instead of MKL compute this process's products of float32, where that is faster and as exact; whether it does.

    For processors of other makers than Intel MKL has no AVX-512 (2024.2 in torch 2.13 on Zen 5: 104 GFLOP/s a core; oneDNN 240).
    torch asks oneDNN where bfloat16 inside is allowed, which it makes use of on AMX alone; so that is allowed, and tried.
    """
    wide = "avx512f" in machine.cpu_flags() and machine.cpu_vendor() not in ("", "GenuineIntel")
    if not wide or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    if _errs():
        settings.fp32_precision = before
        return False
    return True


class _Attention(torch.autograd.Function):
    """Shapes: Z = B * K groups of G heads that share a key; rows of Z are T * G queries, so that a block of them lies together."""

    @staticmethod
    def forward(
        ctx: Any, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask: Tensor | None, scale: float, turn: Turn | None
    ) -> Tensor:
        batch, time, heads, width = q_BTNH.shape
        groups, dtype = k_BTKH.shape[2], v_BTKH.dtype
        share = heads // groups
        q, keys, v = _gather(q_BTNH, groups, turn, scale), _gather(k_BTKH, groups, turn), _together(v_BTKH, groups)
        hidden = None if mask is None else ~mask
        spans = _spans(time, mask)
        out = torch.empty(batch, time, groups, share, width, dtype=dtype)
        kept = []
        keep = batch * heads * sum((e - s) * (e - low) for low, s, e in spans) * dtype.itemsize <= KEPT_BYTES
        for low, s, e in spans:
            p = _probabilities(q[:, s * share : e * share], keys[:, low:e], hidden, (batch, low, s, e)).to(dtype)
            y = torch.bmm(p, v[:, low:e])
            out[:, s:e] = y.view(batch, groups, e - s, share, width).transpose(1, 2)
            kept += [p] if keep else []
        ctx.save_for_backward(q, keys, v, hidden, *(turn or ()), *kept)
        ctx.spans, ctx.scale, ctx.turned = spans, scale, turn is not None
        ctx.shape, ctx.dtypes = (batch, time, groups, share), (q_BTNH.dtype, k_BTKH.dtype)
        return out.view(batch, time, heads, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, keys, v, hidden, *rest = ctx.saved_tensors
        turn, kept = ((rest[0], rest[1]), rest[2:]) if ctx.turned else (None, rest)
        (batch, time, groups, share), dtype = ctx.shape, v.dtype
        d_all = _together(gradients[0], groups)
        dq, dk, dv = torch.empty_like(q, dtype=dtype), torch.zeros_like(keys, dtype=dtype), torch.zeros_like(v)
        near = keys.to(dtype)
        for i, (low, s, e) in enumerate(ctx.spans):
            block = slice(s * share, e * share)
            rows, d = q[:, block], d_all[:, block]
            if kept:
                p = kept[i]
            else:
                p = _probabilities(rows, keys[:, low:e], hidden, (batch, low, s, e)).to(dtype)
            ds = torch.bmm(d, v[:, low:e].mT).mul_(p)  # dS = P * (dP - rowsum(P * dP))
            ds.addcmul_(p, ds.sum(-1, keepdim=True, dtype=torch.float32).to(dtype), value=-1)
            dq[:, block] = torch.bmm(ds, near[:, low:e])
            dk[:, low:e] += torch.bmm(ds.mT, rows.to(dtype))
            dv[:, low:e] += torch.bmm(p.mT, d)
        q_type, k_type = ctx.dtypes
        back_q = _scatter(dq.view(batch, groups, time, share, -1), turn, ctx.scale).to(q_type)
        back_k = _scatter(dk.view(batch, groups, time, 1, -1), turn, 1.0).to(k_type)
        return back_q, back_k, dv.view(batch, groups, time, -1).transpose(1, 2), None, None, None


def _angles(x: Tensor, turn: Turn | None) -> tuple[Any, Any] | None:
    """Cosine and sine for the kernels that turn heads; None where they are not for these."""
    if turn is None or x.shape[-1] % 32 or not _in_kernels(x):
        return None
    cos, sin = turn
    return cos.contiguous().numpy(), sin.contiguous().numpy()


def _gather(x_BTNH: Tensor, groups: int, turn: Turn | None, scale: float = 1.0) -> Tensor:
    """float32 [Z, T * G, H] times scale, with its pairs (i, i + H / 2) turned."""
    batch, time, heads, width = x_BTNH.shape
    x = x_BTNH.view(batch, time, groups, -1, width)
    out = torch.empty(batch, groups, time, heads // groups, width)
    if (angles := _angles(x, turn)) is not None:
        kernels.turn_bf16(_bits(x), *angles, scale, out.numpy())
        return out.view(batch * groups, -1, width)
    x = x.float()
    _turned(x, out.permute(0, 2, 1, 3, 4), turn, scale, 1)
    return out.view(batch * groups, -1, width)


def _scatter(x_BKTGH: Tensor, turn: Turn | None, scale: float) -> Tensor:
    """The way back: [B, T, N, H] times scale, turned by the opposite angles, in bfloat16 or float32."""
    batch, groups, time, share, width = x_BKTGH.shape
    if (angles := _angles(x_BKTGH, turn)) is not None:
        back = x_BKTGH.new_empty(batch, time, groups * share, width)
        kernels.turn_back_bf16(_bits(x_BKTGH), *angles, scale, _bits(back))
        return back
    out = torch.empty(batch, time, groups, share, width)
    _turned(x_BKTGH.float().permute(0, 2, 1, 3, 4), out, turn, scale, -1)
    return out.view(batch, time, groups * share, width)


def _turned(x: Tensor, out: Tensor, turn: Turn | None, scale: float, sign: int) -> None:
    """Write x [B, T, K, G, H] times scale to out of the same shape, every pair turned by sign times its angle."""
    if turn is None:
        torch.mul(x, scale, out=out) if scale != 1.0 else out.copy_(x)
        return
    cos, sin = (t[:, 0, :, None, None] * scale for t in turn)  # [B, T, 1, 1, H / 2]
    torch.mul(x, torch.cat([cos, cos], -1), out=out)  # long rows: twice as fast as by halves
    (a, b), (left, right) = x.chunk(2, -1), out.chunk(2, -1)
    left.addcmul_(b, sin, value=-sign)
    right.addcmul_(a, sin, value=sign)


def _together(x_BTNH: Tensor, groups: int) -> Tensor:
    """[Z, T * G, H] in its own type."""
    batch, time, _, width = x_BTNH.shape
    return x_BTNH.view(batch, time, groups, -1, width).transpose(1, 2).reshape(batch * groups, -1, width)


def _spans(time: int, mask: Tensor | None) -> list[tuple[int, int, int]]:
    """(first key that anybody in the block sees, first query, end) of every block."""
    starts = range(0, time, BLOCK)
    if mask is None:
        return [(0, s, min(time, s + BLOCK)) for s in starts]
    # Documents are runs: who comes first in a block sees furthest back.
    lows = mask[:, 0, ::BLOCK].to(torch.uint8).argmax(-1).amin(0).tolist()
    return [(low, s, min(time, s + BLOCK)) for low, s in zip(lows, starts, strict=True)]


def _probabilities(rows: Tensor, keys: Tensor, hidden: Tensor | None, at: tuple[int, int, int, int]) -> Tensor:
    """float32 [Z, n * G, keys]."""
    batch, low, s, e = at
    scores = torch.bmm(rows, keys.mT)
    seen = scores.view(batch, -1, e - s, scores.shape[1] // (e - s), e - low)
    if hidden is None:
        seen[..., s - low :] += _future(e - s)
    else:
        seen.masked_fill_(hidden[:, :, s:e, None, low:e], -torch.inf)
    return torch.softmax(scores, -1)


def _future(size: int) -> Tensor:
    """[size, 1, size]: minus infinity for keys behind a query, else 0."""
    return torch.full((size, size), -torch.inf).triu_(1)[:, None]


def attention(
    q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask: Tensor | None, scale: float, turn: Turn | None = None
) -> Tensor:
    """Causal attention [B, T, N, H]; mask: bool [B, 1, T, T], causal inside runs of documents, or None. turn: cosine and sine
    [B, 1, T, H / 2] by which queries and keys are rotated before (RoPE, rotate_half)."""
    return _Attention.apply(q_BTNH, k_BTKH, v_BTKH, mask, scale, turn)  # type: ignore[no-any-return, no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.ours = x.shape[-1] % 16 == 0 and _in_kernels(x)
        if ctx.ours:
            y, r = torch.empty_like(x), torch.empty(*x.shape[:-1], 1)
            kernels.rmsnorm_bf16(_bits(x), weight.detach().float().numpy(), eps, _bits(y), r.numpy())
            ctx.save_for_backward(x, weight, r)
            return y
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        r = r.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        done: Tensor = (x * r).to(x.dtype).mul_(weight.to(x.dtype))
        return done

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        if ctx.ours:
            dx = torch.empty_like(x)
            dw = torch.empty(weight.shape) if ctx.needs_input_grad[1] else None
            sums = None if dw is None else dw.numpy()
            d = _bits(gradients[0].contiguous())
            kernels.rmsnorm_back_bf16(_bits(x), d, weight.detach().float().numpy(), r.numpy(), _bits(dx), sums)
            return dx, None if dw is None else dw.to(weight.dtype), None
        width = x.shape[-1]
        flat, g, r = x.reshape(-1, width).float(), gradients[0].reshape(-1, width).float(), r.reshape(-1, 1)
        product = g * flat
        dw = torch.mv(product.T, r[:, 0]).to(weight.dtype) if ctx.needs_input_grad[1] else None
        c = torch.mv(product, weight.float())[:, None]
        # dx = r * (g * w - x * r^2 * mean(g * w * x))
        dx = torch.mul(g, weight, out=product).addcmul_(flat, c * r * r, value=-1 / width).mul_(r)
        return dx.to(x.dtype).view_as(x), dw, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    y: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return y


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        # Weights of another dtype are cast again in the backward pass: kept, the copies of all layers would be a second model.
        ctx.save_for_backward(flat if any(ctx.needs_input_grad[1:]) else None, *weights)
        ctx.shape = x.shape
        return tuple((flat @ w.to(x.dtype).T).view(*x.shape[:-1], -1) for w in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, *weights = ctx.saved_tensors
        gs = [g.reshape(-1, len(w)) for g, w in zip(gradients, weights, strict=True)]
        dx = gs[0] @ weights[0].to(gs[0].dtype)
        for g, w in zip(gs[1:], weights[1:], strict=True):
            dx.addmm_(g, w.to(g.dtype))
        wanted = ctx.needs_input_grad[1:]
        dw = [(g.T @ flat).to(w.dtype) if want else None for g, w, want in zip(gs, weights, wanted, strict=True)]
        return dx.view(ctx.shape), *dw


def products(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """x @ w.T for each weight [out, in]; the gradients of x are added up inside the products."""
    return _Products.apply(x, *weights)  # type: ignore[no-any-return, no-untyped-call]


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    if _in_kernels(gate, up):
        out = torch.empty_like(gate)
        kernels.swiglu_bf16(_bits(gate), _bits(up), _bits(out))
        return out
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)  # and not silu(gate), which is as large and quickly made again
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (d,) = gradients
        gate, up = ctx.saved_tensors
        if _in_kernels(gate, up, d):
            d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
            kernels.swiglu_back_bf16(_bits(gate), _bits(up), _bits(d), _bits(d_gate), _bits(d_up))
            return d_gate, d_up
        t = d * up
        torch.ops.aten.silu_backward.grad_input(t, gate, grad_input=t)
        return t, F.silu(gate).mul_(d)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return _SwiGLU.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]


def after_swiglu(linear: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """linear(silu(gate) * up). Where the linear wants its input in the backward pass it is made again there: gate and up are kept
    anyway, and it is as large as either. The numbers are the same to the bit."""
    x = swiglu(gate, up)
    if getattr(_keeps, "inputs", False):
        return linear(x)
    place, size, dtype = x.data_ptr(), x.numel(), x.dtype
    gate, up = gate.detach(), up.detach()

    def pack(t: Tensor) -> Tensor | torch.Size:
        mine = t.dtype == dtype and t.numel() == size and t.data_ptr() == place
        return t.shape if mine else t

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else _swiglu(gate, up).view(kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return linear(x)


def keeping(layer: Callable[..., Result]) -> Callable[..., Result]:
    """A layer of which a checkpoint keeps the input alone: what it would make again holds on to what the checkpoint lets go."""

    def run(*inputs: Any) -> Result:
        _keeps.inputs = True
        try:
            return layer(*inputs)
        finally:
            _keeps.inputs = False

    return run

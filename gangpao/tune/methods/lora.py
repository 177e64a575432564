"""LoRA (arXiv:2106.09685): y = x W^T + scale * (x A^T) B^T with W frozen, in as few passes over memory as there are products.

Written by hand, because autograd would keep a copy of x for every adapter, add [T, out] tensors out of place and add up the
gradients of x in further passes. Here linears that share an input (q, k, v; gate, up) are one operation: their A are multiplied
as one matrix, x and the narrow x A^T are all that is kept, and every gradient of x is added inside a product.

Computed in the dtype of the input, whatever the weights are stored in; A and B are float32. The base may be any Linear: it is
asked for its `matrix`, some rows at a time, and for nothing else.
Shapes: R rows (tokens), I in, O out, r rank.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.model.init import parameter_seed
from gangpao.model.layers import Linear, project
from gangpao.model.tiles import multiply, multiply_back


class Switch(threading.local):
    """Whether the adapters of a model are off, for each thread by itself: lanes may count a reference while others train."""

    off = False


class Wrapped(Linear):
    """A Linear around another, frozen one, `base`. Whoever wants the base alone asks `base`: this one has no weight."""

    def __init__(self, base: Linear, switch: Switch) -> None:
        nn.Module.__init__(self)
        self.base, self.switch = base, switch
        self.in_features, self.out_features = base.in_features, base.out_features

    def extra_repr(self) -> str:
        """Sizes, for people."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def forward(self, x: Tensor) -> Tensor:
        return self.together(x, [self])[0]


class LoraLinear(Wrapped):
    """A linear with an adapter: lora_A [r, in], lora_B [out, r], float32."""

    def __init__(self, base: Linear, switch: Switch, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, switch)
        self.scale, self.dropout = scale, dropout
        device = device_of(base)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))

    def reset(self, seed: int, name: str) -> None:
        """First values by PEFT's rule (A uniform in +-1 / sqrt(in), B zero), from seed and name alone."""
        bound = 1 / math.sqrt(self.in_features)
        fill(self.lora_A, lambda values, generator: values.uniform_(-bound, bound, generator=generator), seed, name)

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Any]) -> Sequence[Tensor]:
        """Adapted linears at the same input, as one operation."""
        if any(linear.switch.off for linear in linears):
            return project(x, [linear.base for linear in linears])
        seeds = [draw_seed(linear) for linear in linears]
        return _LowRank.apply(x, linears, seeds, *(p for m in linears for p in (m.lora_A, m.lora_B)))  # type: ignore[no-any-return, no-untyped-call]


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linears: Sequence[LoraLinear], seeds: Sequence[int | None], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        downs, ups = _near(factors, x.dtype)
        ranks = [len(a) for a in downs]
        if seeds[0] is None:
            narrow = list((flat @ torch.cat(downs).T).split_with_sizes(ranks, dim=1))
        else:
            narrow = [thinned(flat, m.dropout, seed) @ a.T for m, seed, a in zip(linears, seeds, downs, strict=True)]
        out = []
        for linear, u, b in zip(linears, narrow, ups, strict=True):
            y = multiply(flat, linear.base.matrix())
            if linear.base.bias is not None:
                y += linear.base.bias.to(y.dtype)
            y.addmm_(u, b.T, alpha=linear.scale)
            out.append(y.view(*x.shape[:-1], -1))
        ctx.save_for_backward(flat, *narrow, *factors)
        ctx.linears, ctx.seeds, ctx.shape = linears, seeds, x.shape
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        flat, *saved = ctx.saved_tensors
        linears, count = ctx.linears, len(ctx.linears)
        narrow, factors = saved[:count], saved[count:]
        downs, ups = _near(factors, flat.dtype)
        dx: Tensor | None = None
        dus, dbs = [], []
        for linear, dy, u, b in zip(linears, gradients, narrow, ups, strict=True):
            dy = dy.reshape(len(flat), -1)
            dus.append(torch.mm(dy, b).mul_(linear.scale))
            dbs.append((dy.T @ u).mul_(linear.scale))
            if ctx.needs_input_grad[0]:
                dx = multiply_back(dy, linear.base.matrix(), dx)
        das = down_gradients(flat, dus, downs, dx, [m.dropout for m in linears], ctx.seeds)
        pairs = [g for pair in zip(das, dbs, strict=True) for g in pair]
        of_factors = [g.to(p.dtype) for g, p in zip(pairs, factors, strict=True)]
        return None if dx is None else dx.view(ctx.shape), None, None, *of_factors


def down_gradients(
    flat: Tensor,
    dus: Sequence[Tensor],
    downs: Sequence[Tensor],
    dx: Tensor | None,
    dropouts: Sequence[float],
    seeds: Sequence[int | None],
) -> list[Tensor]:
    """Gradients of every A from those of x A^T; that of x is added to `dx`."""
    if seeds[0] is None:
        du = dus[0] if len(dus) == 1 else torch.cat(list(dus), dim=1)
        if dx is not None:
            dx.addmm_(du, torch.cat(list(downs)))
        return list((du.T @ flat).split_with_sizes([len(a) for a in downs]))
    out = []
    for du, a, dropout, seed in zip(dus, downs, dropouts, seeds, strict=True):
        if dx is not None:
            dx += thinned(du @ a, dropout, seed)
        out.append(du.T @ thinned(flat, dropout, seed))
    return out


def _near(factors: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """All A and all B in the dtype of the computation."""
    return [a.to(dtype) for a in factors[::2]], [b.to(dtype) for b in factors[1::2]]


def draw_seed(linear: LoraLinear) -> int | None:
    """What decides about the dropout of one pass, from torch's own random numbers, which checkpoints have; None: no dropout.

    The mask is made again for the backward pass, so that it is not kept.
    """
    return int(torch.randint(1 << 62, ())) if linear.dropout and linear.training else None


def thinned(x: Tensor, dropout: float, seed: int | None) -> Tensor:
    """x with a share of its values set to 0 and the rest made as much larger."""
    if seed is None:
        return x
    generator = torch.Generator(device=x.device).manual_seed(seed)
    keep = torch.empty_like(x).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
    return keep.mul_(x)


class LoraEmbedding(nn.Module):
    """An embedding with an adapter, as PEFT has it: rows of lora_embedding_A [r, V], times lora_embedding_B [D, r]."""

    def __init__(
        self, base: nn.Module, width: int, switch: Switch, *, vocab_size: int, rank: int, scale: float
    ) -> None:
        super().__init__()
        self.base, self.switch, self.scale = base, switch, scale
        device = device_of(base)
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, vocab_size, dtype=torch.float32, device=device))
        self.lora_embedding_B = nn.Parameter(torch.empty(width, rank, dtype=torch.float32, device=device))

    @property
    def weight(self) -> Any:
        """That of the embedding below."""
        return self.base.weight

    def reset(self, seed: int, name: str) -> None:
        """First values by PEFT's rule: A zero, B normal."""
        fill(self.lora_embedding_B, lambda values, generator: values.normal_(generator=generator), seed, name)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the table and of the adapter, [..., D]."""
        rows: Tensor = self.base(ids)
        if self.switch.off:
            return rows
        low = F.embedding(ids, self.lora_embedding_A.T).to(rows.dtype)
        return rows + F.linear(low, self.lora_embedding_B.to(rows.dtype)) * self.scale


@torch.no_grad()
def fill(parameter: nn.Parameter, draw: Any, seed: int, name: str) -> None:
    """Random first values, drawn on the CPU, so that they depend on seed, name and shape alone. draw(values, generator)."""
    if parameter.is_meta:  # a plan counts parameters and wants no values
        return
    generator = torch.Generator().manual_seed(parameter_seed(seed, name))
    parameter.copy_(draw(torch.empty(parameter.shape, dtype=torch.float32), generator))


def device_of(module: nn.Module) -> torch.device:
    """Where a module lies, by its first tensor."""
    first = next(iter([*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if first is None else first.device

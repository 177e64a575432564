"""Bottlenecks beside the weights: down to a few dimensions, a nonlinearity, up again; what BMTune's library (OpenDelta) offered.

    adapter           y + up(gelu(down(y))) behind attention and MLP (arXiv:1902.00751)
    parallel_adapter  f(x) + scale * up(relu(down(x))) beside attention and MLP (arXiv:2110.04366)
    low_rank_adapter  an adapter whose matrices are products of two vectors (arXiv:2106.04647, the baseline there)
    compacter         an adapter whose matrices are sums of Kronecker products (arXiv:2106.04647)

All begin as the base: the last factor of `up` is zero. What they give up: they stay in the graph; no merge can take a
nonlinearity into the weights, and no file format carries them. LoRA is the better choice; these are here to compare.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.model.transformer import Transformer
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.methods.lora import Switch, device_of, fill

Form = Literal["dense", "low_rank", "kronecker"]
PARTS = 4  # Kronecker products in a sum, and the size of their small squares
STD = 0.01  # of the first values of a whole matrix


class Factor(nn.Module):
    """A matrix [out, in] by few numbers. low_rank: of rank 1; kronecker: the sum of square_i (x) column_i row_i.

    Raises ValueError where PARTS does not divide a side of a Kronecker product.
    """

    def __init__(self, outputs: int, inputs: int, form: Form, device: torch.device) -> None:
        super().__init__()
        self.form = form
        if form == "kronecker" and (outputs % PARTS or inputs % PARTS):
            raise ValueError(f"compacter: rank and width must be multiples of {PARTS}, not {outputs} and {inputs}")
        for name, shape in _shapes(form, outputs, inputs).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device)))

    def reset(self, seed: int, name: str, *, zero: bool) -> None:
        """Normal first values; zero: of all but the last factor."""
        for leaf, parameter in self.named_parameters():
            if not (zero and leaf == "last"):
                std = _std(self.form, leaf, parameter)
                fill(parameter, lambda v, g, std=std: v.normal_(0.0, std, generator=g), seed, f"{name}.{leaf}")

    def matrix(self) -> Tensor:
        """[out, in], float32."""
        parts: dict[str, Tensor] = dict(self.named_parameters())
        if self.form == "dense":
            return parts["last"]
        product = parts["last"] @ parts["row"]
        if self.form == "low_rank":
            return product
        return sum((torch.kron(s, p) for s, p in zip(parts["square"], product, strict=True)), torch.zeros(()))


def _std(form: Form, leaf: str, parameter: Tensor) -> float:
    """Of first values, so that what comes down is no larger than what went in."""
    if form == "dense":
        return STD
    return {"square": 1 / math.sqrt(PARTS), "row": 1 / math.sqrt(parameter.shape[-1]), "last": 1.0}[leaf]


def _shapes(form: Form, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    if form == "dense":
        return {"last": (outputs, inputs)}
    if form == "low_rank":
        return {"row": (1, inputs), "last": (outputs, 1)}
    squares, n = (PARTS, PARTS, PARTS), PARTS
    return {"square": squares, "row": (n, 1, inputs // n), "last": (n, outputs // n, 1)}


class Bottleneck(nn.Module):
    """A part of a layer, `base` (attention or MLP), with a bottleneck behind or beside it."""

    def __init__(
        self, base: nn.Module, width: int, switch: Switch, *, rank: int, scale: float, form: Form, beside: bool
    ) -> None:
        super().__init__()
        self.base, self.switch, self.scale, self.beside = base, switch, scale, beside
        device = device_of(base)
        self.down, self.up = Factor(rank, width, form, device), Factor(width, rank, form, device)

    def reset(self, seed: int, name: str) -> None:
        """First values, from seed and name alone."""
        self.down.reset(seed, f"{name}.down", zero=False)
        self.up.reset(seed, f"{name}.up", zero=True)

    def forward(self, x: Tensor, *rest: Any) -> Any:
        """What the part gives, and the bottleneck's addition to it."""
        out = self.base(x, *rest)
        if self.switch.off:
            return out
        y, balance = out if isinstance(out, tuple) else (out, None)
        inner = F.linear(x if self.beside else y, self.down.matrix().to(x.dtype))
        inner = F.relu(inner) if self.beside else F.gelu(inner)
        y = torch.add(y, F.linear(inner, self.up.matrix().to(x.dtype)), alpha=self.scale)
        return y if balance is None else (y, balance)


def put_bottlenecks(model: Transformer, config: MethodConfig, switch: Switch, seed: int) -> dict[str, nn.Module]:
    """A bottleneck at attention and MLP of every layer."""
    form: Form = {"low_rank_adapter": "low_rank", "compacter": "kronecker"}.get(config.kind, "dense")  # type: ignore[assignment]
    put: dict[str, nn.Module] = {}
    for i, layer in enumerate(model.model.layers):
        for leaf in ("self_attn", "mlp"):
            name = f"model.layers.{i}.{leaf}"
            new = Bottleneck(
                getattr(layer, leaf),
                model.config.hidden_size,
                switch,
                rank=config.rank_of(name),
                scale=config.scale_of(name),
                form=form,
                beside=config.kind == "parallel_adapter",
            )
            new.reset(seed, name)
            setattr(layer, leaf, new)
            put[name] = new
    return put

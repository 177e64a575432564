"""Layer after layer: what goes into each matrix, in the float model and in the one that is rounded so far.

Two streams of hidden states go through the model side by side, one by the float weights and one by the rounded ones. A matrix
sees the rounded stream's inputs (that is what it will work on) and aims at the float stream's outputs: what earlier roundings
broke is part of what it mends (GPTAQ, arXiv:2504.02692). The two matrices that write into the residual stream, o and down, aim at
the float residual itself. A least squares step turns each aim into weights,

    W' = W + share * (target - W X_q) X_q^T (X_q X_q^T)^-1

and rounding W' with the error of H = X_q X_q^T is then the same as rounding W towards the aim.

Where the residual is the aim, a token counts by one over the mean square of its state, since the norms behind divide by it. The
first tokens of a window have states a hundred times as large as others (attention sinks): counted as they are, they would decide
the rounding alone; left out, as P-GPTQ does, nothing holds them where they are, and attention everywhere goes wrong with them.
Only one layer is there as floats at a time, with the streams of all windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gangpao.model.layers import MLP, Attention, Linear, angles, inverse_frequencies
from gangpao.model.transformer import Block, Transformer

_KEPT_BYTES = 1 << 30


class _Reached(Exception):
    """A forward pass has come to the matrix whose input is wanted."""


@dataclass
class Streams:
    """Hidden states [N, T, D] before a layer, by the float weights and by the rounded ones."""

    exact: Tensor
    rounded: Tensor


@dataclass
class Sums:
    """What the inputs of a matrix say, on the mean of tokens. hessian: X_q^T X_q [C, C]. drift: (X_f - X_q)^T X_q [C, C].
    residual: (h_f - h_q)^T X_q [D, C], for those that write into the residual stream."""

    hessian: Tensor
    drift: Tensor
    residual: Tensor | None
    tokens: int

    def aim(self, weights: Tensor, share: float, hessian: Tensor, residual_scale: float) -> Tensor:
        """W' [R, C]; see the module. hessian: damped."""
        missing = weights @ self.drift
        if self.residual is not None:
            missing = missing + self.residual / residual_scale
        factor = torch.linalg.cholesky(hessian)
        return weights + share * torch.cholesky_solve(missing.T.contiguous(), factor).T


Quantizer = Callable[[str, Tensor, Sums], Tensor]  # name in the layer, weights, sums -> the rounded weights


class Walk:
    """One layer, as floats twice, and the streams that go through it.

    batch: windows at once.
    """

    def __init__(self, model: Transformer, layer: Block, streams: Streams, *, batch: int) -> None:
        attention = getattr(layer, "self_attn", None)
        if not isinstance(attention, Attention) or attention.gated or not isinstance(layer.mlp, MLP):
            raise ValueError(
                "rounding with the data in view works on dense models with plain attention; take kind plain"
            )
        self.config, self.batch = model.config, batch
        self.exact, self.rounded = dense_copy(layer), dense_copy(layer)
        self.streams = streams
        inverse, factor = inverse_frequencies(model.config, streams.exact.shape[1])
        self.angles = angles(inverse, factor, torch.arange(streams.exact.shape[1])[None])

    @torch.no_grad()
    def run(self, quantize: Quantizer) -> Streams:
        """Round the matrices in the order in which they work; the streams behind the layer."""
        s, scale = self.streams, self.exact.residual_scale
        self._stage(quantize, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), self._attention_inputs)
        contexts = Streams(torch.empty(0), torch.empty(0))
        self._stage(quantize, ("self_attn.o_proj",), self._contexts, into=contexts, residual=s)
        for layer, h, context in ((self.exact, s.exact, contexts.exact), (self.rounded, s.rounded, contexts.rounded)):
            for at in self._batches():
                h[at] += scale * _attention(layer).o_proj(context[at])
        del contexts
        self._stage(quantize, ("mlp.gate_proj", "mlp.up_proj"), self._mlp_inputs)
        products = Streams(torch.empty(0), torch.empty(0)) if self._keeps_products() else None
        self._stage(quantize, ("mlp.down_proj",), self._products, into=products, residual=s)
        for layer, h, name in ((self.exact, s.exact, "exact"), (self.rounded, s.rounded, "rounded")):
            for at in self._batches():
                x = self._products(layer, h[at]) if products is None else getattr(products, name)[at]
                h[at] += scale * _mlp(layer).down_proj(x)
        return s

    def _keeps_products(self) -> bool:
        """Whether the inputs of down may lie in memory for all windows; else they are computed twice."""
        return 8 * self.streams.exact[..., 0].numel() * self.config.intermediate_size <= _KEPT_BYTES

    def _batches(self) -> list[slice]:
        return [slice(i, i + self.batch) for i in range(0, len(self.streams.exact), self.batch)]

    def _stage(
        self, quantize: Quantizer, names: Sequence[str], inputs: Callable[[Block, Tensor], Tensor], *,
        into: Streams | None = None, residual: Streams | None = None,
    ) -> None:  # fmt: skip
        """Round the matrices that share an input. into: takes the inputs of all windows."""
        sums = _Summing()
        kept: tuple[list[Tensor], list[Tensor]] = ([], [])
        for at in self._batches():
            exact, rounded = self.streams.exact[at], self.streams.rounded[at]
            x, y = inputs(self.exact, exact), inputs(self.rounded, rounded)
            if residual is None:
                sums.add(x, y)
            else:
                behind = exact + self.exact.residual_scale * self.exact.get_submodule(names[0])(x)
                sums.add(x, y, exact - rounded, weights=1 / behind.square().mean(-1).clamp_min(1e-12))
            if into is not None:
                kept[0].append(x)
                kept[1].append(y)
        if into is not None:
            into.exact, into.rounded = torch.cat(kept[0]), torch.cat(kept[1])
        found = sums.sums()
        for name in names:
            linear = self.rounded.get_submodule(name)
            assert isinstance(linear, Linear)
            linear.weight.copy_(quantize(name, linear.weight, found))

    def _attention_inputs(self, layer: Block, h: Tensor) -> Tensor:
        x: Tensor = layer.input_layernorm(h)
        return x

    def _contexts(self, layer: Block, h: Tensor) -> Tensor:
        x = layer.input_layernorm(h)
        attention = _attention(layer)
        return input_of(attention.o_proj, lambda: attention(x, *self.angles, None, None))

    def _mlp_inputs(self, layer: Block, h: Tensor) -> Tensor:
        x: Tensor = layer.post_attention_layernorm(h)
        return x

    def _products(self, layer: Block, h: Tensor) -> Tensor:
        mlp = _mlp(layer)
        return input_of(mlp.down_proj, lambda: mlp(layer.post_attention_layernorm(h)))


class _Summing:
    def __init__(self) -> None:
        self.tokens, self.weight = 0, 0.0
        self.hessian: Tensor | None = None
        self.drift: Tensor | None = None
        self.residual: Tensor | None = None

    def add(
        self, exact: Tensor, rounded: Tensor, residual: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Inputs [n, T, C] of both streams, by how much the float residual [n, T, D] is ahead, and how much a token
        counts [n, T]."""
        x, y = (t.reshape(-1, t.shape[-1]) for t in (exact, rounded))
        self.tokens += len(y)
        self.weight += len(y) if weights is None else float(weights.sum(dtype=torch.float64))
        w = y if weights is None else y * weights.reshape(-1, 1)
        self.hessian = _plus(self.hessian, w.T @ y)
        self.drift = _plus(self.drift, (x - y).T @ w)
        if residual is not None:
            self.residual = _plus(self.residual, residual.reshape(-1, residual.shape[-1]).T @ w)

    def sums(self) -> Sums:
        assert self.hessian is not None
        assert self.drift is not None
        n = self.weight
        residual = None if self.residual is None else self.residual / n
        return Sums(self.hessian / n, self.drift / n, residual, self.tokens)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a.add_(b)


def _attention(layer: Block) -> Attention:
    assert isinstance(layer.self_attn, Attention)
    return layer.self_attn


def _mlp(layer: Block) -> MLP:
    assert isinstance(layer.mlp, MLP)
    return layer.mlp


def input_of(module: nn.Module, forward: Callable[[], object]) -> Tensor:
    """What comes into a module when `forward` runs; nothing behind it is computed."""
    found: list[Tensor] = []

    def catch(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(given[0])
        raise _Reached

    handle = module.register_forward_pre_hook(catch)
    try:
        forward()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def dense_weight(module: nn.Module) -> Tensor:
    """The weights of a linear layer or an embedding, float32, whatever they are stored in."""
    dense = getattr(module, "dense", None)
    weight = dense() if dense is not None else module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().float()


def dense_copy(layer: Block) -> Block:
    """The layer with float32 matrices of its own."""
    memo: dict[int, object] = {}
    for module in layer.modules():
        if isinstance(module, Linear):
            new = Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            new.weight = nn.Parameter(dense_weight(module).clone(), requires_grad=False)
            if module.bias is not None:
                new.bias = nn.Parameter(module.bias.detach().float().clone(), requires_grad=False)
            memo[id(module)] = new
    return deepcopy(layer, memo).float()

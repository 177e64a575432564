"""Whether a merged model is still its adapter: base, base with adapter, and the written file, beside each other, layer by layer.

All three are computed in float32 from the weights as they are stored, so what differs is what storing did: rounding, and
quantizing again. The measure is a share of what the adapter does: the mean divergence KL(adapter || merged) over
KL(adapter || base). The memory needed is that of three layers, or of the heads one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.model.config import ModelConfig
from gangpao.model.layers import RMSNorm, angles, inverse_frequencies
from gangpao.model.transformer import Block
from gangpao.tune.merge.adapted import Adapted

Weights = Callable[[str], Tensor]  # Hugging Face's whole name -> float32, in Hugging Face's order of rows
MAX_DIFFERENCE = 0.1  # the largest share that is accepted unless another is given; measured: docs/decisions.md
# Nats. FLOOR: what sums in float32 differ by. An effect below TOO_SMALL says nothing about a share; beside one, rounding alone
# (weights that become another type) may do ROUNDING.
FLOOR, TOO_SMALL, ROUNDING = 1e-9, 1e-7, 1e-3
_PIECE = 8192  # rows of the head at once


class Tensors(Protocol):
    """An open model."""

    @property
    def tied(self) -> bool: ...
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """largest: difference of logits, merged from adapter. kept, effect: mean KL of merged and of base from the adapter, in nats.
    Perplexities of the three on the same texts."""

    largest: float
    kept: float
    effect: float
    base_perplexity: float
    adapter_perplexity: float
    merged_perplexity: float
    tokens: int

    @property
    def share(self) -> float:
        """How much of the adapter's effect went wrong."""
        return self.kept / self.effect if self.effect > 0 else (math.inf if self.kept > 0 else 0.0)

    def accepted(self, limit: float) -> bool:
        """Whether what went wrong is at most this share of the effect; of one that is too small to judge, what rounding does."""
        return self.kept <= (ROUNDING if self.too_small else limit * self.effect + FLOOR)

    @property
    def too_small(self) -> bool:
        """Whether base and adapter answer so much alike that no share can be told."""
        return self.effect < TOO_SMALL

    def __str__(self) -> str:
        share = f"{self.share:.2%} of the adapter's effect" if self.effect > 0 else "the adapter has no effect"
        return (
            f"largest difference of logits, merged from adapter: {self.largest:.4g} ({self.tokens} tokens); "
            f"mean divergence {self.kept:.3g} nats, {share}\nperplexity: base {self.base_perplexity:.4f}, adapter "
            f"{self.adapter_perplexity:.4f}, merged {self.merged_perplexity:.4f}"
        )


def compare(
    config: ModelConfig,
    base: Tensors,
    adapted: Adapted,
    merged: Tensors,
    rows: Sequence[Sequence[int]],
    advance: Callable[[], None],
) -> Comparison:
    """Base, adapter and merged model on rows of ids. advance is called once a layer, and once for the head."""
    models = (_stored(base), _adapted(base, adapted), _stored(merged))
    with torch.no_grad():
        states = [_embedded(config, model, rows) for model in models]
        for layer in range(config.num_hidden_layers):
            for model, hidden in zip(models, states, strict=True):
                _one_layer(config, model, layer, hidden)
            advance()
        logits = [_logits(config, model, torch.cat(hidden)) for model, hidden in zip(models, states, strict=True)]
        advance()
    return _compared(logits, rows)


def steps(config: ModelConfig) -> int:
    """How often `compare` says that it advanced."""
    return config.num_hidden_layers + 1


def _stored(model: Tensors) -> Weights:
    return lambda name: model.tensor(EMBEDDING if name == HEAD and model.tied else name).float()


def _adapted(model: Tensors, adapted: Adapted) -> Weights:
    plain = _stored(model)
    return lambda name: adapted.apply(name, plain(name))


def _embedded(config: ModelConfig, weights: Weights, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    embedding = weights(EMBEDDING)
    return [embedding[torch.tensor(list(row))] * config.embedding_scale for row in rows]


def _one_layer(config: ModelConfig, weights: Weights, layer: int, hidden: list[Tensor]) -> None:
    """In place: the hidden states behind the layer."""
    with torch.device("meta"):
        block = Block(config)
    _fill(block, f"model.layers.{layer}.", weights)
    for i, h in enumerate(hidden):
        inverse, factor = inverse_frequencies(config, len(h))
        cos, sin = angles(inverse, factor, torch.arange(len(h))[None])
        hidden[i] = block(h[None], cos, sin, None, None)[0][0]


def _fill(module: nn.Module, prefix: str, weights: Weights) -> None:
    for name, _ in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(weights(prefix + name), requires_grad=False))


def _logits(config: ModelConfig, weights: Weights, hidden: Tensor) -> Tensor:
    """[T, V]."""
    with torch.device("meta"):
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    _fill(norm, "model.norm.", weights)
    h = norm(hidden) * config.logit_scale
    return torch.cat([h @ piece.T for piece in torch.split(weights(HEAD), _PIECE)], dim=1)


def _compared(logits: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Comparison:
    base, adapter, merged = (x.log_softmax(-1, dtype=torch.float64) for x in logits)
    probabilities = adapter.exp()
    kept, effect = (float((probabilities * (adapter - other)).sum(-1).mean()) for other in (merged, base))
    at: list[int] = []
    targets: list[int] = []
    place = 0
    for row in rows:
        at += range(place, place + len(row) - 1)
        targets += row[1:]
        place += len(row)
    of_base, of_adapter, of_merged = (
        float((-x[at, targets].mean()).exp()) if at else math.nan for x in (base, adapter, merged)
    )
    largest = float((logits[2] - logits[1]).abs().max())
    return Comparison(largest, max(kept, 0.0), max(effect, 0.0), of_base, of_adapter, of_merged, place)

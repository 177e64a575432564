"""Importance made of statistics, and what stays by it: one score for every FFN channel, head and channel of the stream.

    activation     mean |x| of the channel, mean length of a head's output, mean |x| of what norms give (arXiv:2407.14679)
    contribution   what it adds to the stream: root mean square of x times the length of the column that reads it

The best stay. Of equal ones the first stays, and what stays keeps its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gangpao.compress.prune.cut import Kept
from gangpao.compress.prune.shape import Shape
from gangpao.compress.prune.statistics import ATTENTION_NORM, LAST_NORM, MLP_NORM, norm_name
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.model.config import ModelConfig

By = Literal["activation", "contribution"]


@dataclass(frozen=True, slots=True)
class Scores:
    """float64, higher is more important. ffn [L, F] and heads [L, N], each relative to its layer; width [D] of the model."""

    ffn: Tensor
    heads: Tensor
    width: Tensor


def scores(c: ModelConfig, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], by: By) -> Scores:
    """The scores of a model."""
    width = _width(c, weights, statistics, by)
    empty = torch.zeros(c.num_hidden_layers, 0, dtype=torch.float64)
    if "ffn_square" not in statistics or "head_norm" not in statistics:
        return Scores(empty, empty, width)
    if by == "activation":
        return Scores(statistics["ffn_absolute"].double(), statistics["head_norm"].double(), width)
    downs = [weights[f"model.layers.{i}.mlp.down_proj.weight"].double() for i in range(c.num_hidden_layers)]
    lengths = torch.stack([down.norm(dim=0) for down in downs])
    ffn = statistics["ffn_square"].double().sqrt() * lengths
    return Scores(ffn, statistics["head_contribution"].double().sqrt(), width)


def _width(c: ModelConfig, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor], by: By) -> Tensor:
    total = torch.zeros(c.hidden_size, dtype=torch.float64)
    readers: dict[str, tuple[str, ...]] = {ATTENTION_NORM: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
    readers[MLP_NORM] = ("mlp.gate_proj", "mlp.up_proj")
    for i in range(c.num_hidden_layers):
        for norm, names in readers.items():
            matrices = [weights.get(f"model.layers.{i}.{name}.weight") for name in names]
            total += _read(norm_name(i, norm), matrices, statistics, by)
    return total + _read(LAST_NORM, [weights.get(HEAD, weights[EMBEDDING])], statistics, by)


def _read(norm: str, matrices: Sequence[Tensor | None], statistics: Mapping[str, Tensor], by: By) -> Tensor:
    """What a channel is worth to those who read it behind a norm: its share of all, so that every norm counts alike."""
    if by == "activation":
        return statistics[f"{norm}.absolute"].double()
    square = statistics[f"{norm}.out"].double()
    out = torch.zeros_like(square)
    for matrix in matrices:
        if matrix is not None:
            energy = square * matrix.double().square().sum(0)
            out += energy / energy.sum().clamp_min(1e-300)
    return out


def best(values: Tensor, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest, ascending; of equal ones the first."""
    order = torch.sort(values, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))


def best_heads(c: ModelConfig, values: Tensor, heads: int, kv_heads: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(query heads, groups) of a layer: in every group its best heads, and the groups whose best heads have most importance."""
    per_group = c.num_attention_heads // c.num_key_value_heads
    each = heads // kv_heads
    inside = values.view(c.num_key_value_heads, per_group).square()
    groups = best(inside.sort(dim=-1, descending=True).values[:, :each].sum(-1), kv_heads)
    chosen = [g * per_group + i for g in groups for i in best(inside[g], each)]
    return tuple(chosen), groups


def keep(c: ModelConfig, s: Scores, shape: Shape, layers: Sequence[int]) -> Kept:
    """What stays of these layers in this shape."""
    full = Kept.everything(c)
    ffn, heads = list(full.ffn), [(h, g) for h, g in zip(full.heads, full.groups, strict=True)]
    if shape.ffn < c.intermediate_size:
        ffn = [best(values, shape.ffn) for values in s.ffn]
    if (shape.heads, shape.kv_heads) != (c.num_attention_heads, c.num_key_value_heads):
        heads = [best_heads(c, values, shape.heads, shape.kv_heads) for values in s.heads]
    width = best(s.width, shape.width)
    layers = tuple(sorted(layers))
    return Kept(
        layers,
        tuple(ffn[i] for i in layers),
        tuple(heads[i][0] for i in layers),
        tuple(heads[i][1] for i in layers),
        width,
    )


def lost_heads(c: ModelConfig, s: Scores, heads: int, kv_heads: int) -> float:
    """The share of the heads' importance that goes, mean over the layers."""
    shares = []
    for values in s.heads:
        stays, _ = best_heads(c, values, heads, kv_heads)
        square = values.square()
        shares.append(1 - float(square[list(stays)].sum() / square.sum().clamp_min(1e-300)))
    return sum(shares) / len(shares)


def lost_ffn(s: Scores, count: int) -> float:
    """The share of the FFN channels' importance that goes, mean over the layers."""
    square = s.ffn.square()
    top = square.sort(dim=-1, descending=True).values[:, :count].sum(-1)
    return float((1 - top / square.sum(-1).clamp_min(1e-300)).mean())


def lost_width(s: Scores, count: int) -> float:
    """The share of the importance of the stream's channels that goes."""
    top = s.width.sort(descending=True).values[:count].sum()
    return float(1 - top / s.width.sum().clamp_min(1e-300))

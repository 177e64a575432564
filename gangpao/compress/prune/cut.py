"""What stays of a model, and the cut: rows and columns are taken out, and every constant that depends on their number is folded in.

    layers    scale_depth follows the number of layers, so that the factor of a branch stays (shape.pruned_config)
    ffn       rows of gate and up, columns of down
    heads     rows of q, k, v and their biases, columns of o; whole groups, or equally many query heads of every group
    width     columns of everything that reads the residual stream, rows of all that writes to it, the embedding, the norms

A norm over fewer channels divides by the mean over those. Where the channels that go carry nothing, its weight times
sqrt(old width / new width) and its epsilon times old / new is exactly the norm of before; where they carry a share of the energy
(measured on calibration text), the weight is also multiplied by sqrt(share that stays). Order: what stays keeps its order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gangpao.compress.prune.shape import Shape, pruned_config
from gangpao.formats.architectures import EMBEDDING, HEAD
from gangpao.model.config import ModelConfig

LAST_NORM = "model.norm.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_IN_WIDTH = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_OUT_WIDTH = ("o_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays, as indices in ascending order. layers and width of the model; ffn, heads (query heads) and groups (heads of keys
    and values) for each layer that stays, in the order of `layers`."""

    layers: tuple[int, ...]
    ffn: tuple[tuple[int, ...], ...]
    heads: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]
    width: tuple[int, ...]

    @classmethod
    def everything(cls, c: ModelConfig) -> Kept:
        """All of a model."""
        n = c.num_hidden_layers
        return cls(
            tuple(range(n)),
            (tuple(range(c.intermediate_size)),) * n,
            (tuple(range(c.num_attention_heads)),) * n,
            (tuple(range(c.num_key_value_heads)),) * n,
            tuple(range(c.hidden_size)),
        )

    @property
    def shape(self) -> Shape:
        """The shape that is left."""
        return Shape(len(self.layers), len(self.ffn[0]), len(self.heads[0]), len(self.groups[0]), len(self.width))

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("layers", "ffn", "heads", "groups", "width")}

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Kept:
        """What `facts` gave."""
        ffn, heads, groups = (tuple(map(tuple, facts[name])) for name in ("ffn", "heads", "groups"))
        return cls(tuple(facts["layers"]), ffn, heads, groups, tuple(facts["width"]))

    def check(self, c: ModelConfig) -> None:
        """Raises ValueError where this is no selection of the model, or one that grouped-query attention cannot have."""
        per_group = c.num_attention_heads // c.num_key_value_heads
        if (c.layer_types or c.no_rope_layers) and self.shape != Shape.of(c):
            raise ValueError("a model with layers of several kinds is not cut: which kind each would be is not settled")
        if not c.plain and self.shape != replace(Shape.of(c), layers=len(self.layers)):
            raise ValueError(
                "of a model with experts, latent attention or Gated DeltaNet only whole layers can be left out"
            )
        if not len(self.layers) == len(self.ffn) == len(self.heads) == len(self.groups):
            raise ValueError("channels and heads are needed for every layer that stays")
        _check_indices("layers", self.layers, c.num_hidden_layers)
        _check_indices("width", self.width, c.hidden_size)
        for layer, ffn, heads, groups in zip(self.layers, self.ffn, self.heads, self.groups, strict=True):
            _check_indices(f"layer {layer}: ffn", ffn, c.intermediate_size, len(self.ffn[0]))
            _check_indices(f"layer {layer}: heads", heads, c.num_attention_heads, len(self.heads[0]))
            _check_indices(f"layer {layer}: groups", groups, c.num_key_value_heads, len(self.groups[0]))
            each = len(heads) // len(groups)
            if [head // per_group for head in heads] != [g for g in groups for _ in range(each)]:
                raise ValueError(
                    f"layer {layer}: every one of its {len(groups)} groups must keep equally many query heads"
                )


def _check_indices(what: str, indices: tuple[int, ...], full: int, count: int | None = None) -> None:
    if not indices or list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < full:
        raise ValueError(f"{what}: what stays must be ascending indices below {full}, at least one")
    if count is not None and len(indices) != count:
        raise ValueError(f"{what}: every layer keeps equally many, here {len(indices)} and {count} elsewhere")


def cut(
    c: ModelConfig, weights: Mapping[str, Tensor], kept: Kept, energies: Mapping[str, Tensor] | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The smaller model: configuration and tensors under Hugging Face's names.

    energies: mean square [hidden_size] of what goes into each norm, by the name of its weight; without them the norms are exact
    where the channels that go are zero. Raises ValueError for a selection that is none.
    """
    kept.check(c)
    smaller = pruned_config(c, kept.shape)
    place = {old: new for new, old in enumerate(kept.layers)}
    width = torch.tensor(kept.width)
    out: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            out[name] = _outside(name, tensor, width, c, energies)
        elif (old := int(match[1])) in place:
            new = place[old]
            out[f"model.layers.{new}.{match[2]}"] = _inside(name, match[2], tensor, kept, new, c, energies)
    if LAST_NORM in out:
        out[LAST_NORM] = out[LAST_NORM] * (c.logit_scale / smaller.logit_scale)
    return smaller, {name: t.contiguous() for name, t in out.items()}


def _outside(name: str, t: Tensor, width: Tensor, c: ModelConfig, energies: Mapping[str, Tensor] | None) -> Tensor:
    if len(width) == c.hidden_size:
        return t
    if name in (EMBEDDING, HEAD):
        return t[:, width]
    return t[width] * norm_factor(name, width, c, energies)


def norm_factor(name: str, width: Tensor, c: ModelConfig, energies: Mapping[str, Tensor] | None) -> float:
    """What the weight of a norm over the residual stream is multiplied by when only the channels `width` stay."""
    stays = 1.0
    if energies is not None:
        energy = energies[name].double()
        stays = float(energy[width].sum() / energy.sum()) if float(energy.sum()) > 0 else 1.0
    return math.sqrt(stays * c.hidden_size / len(width))


def _inside(
    name: str, inner: str, t: Tensor, kept: Kept, new: int, c: ModelConfig, energies: Mapping[str, Tensor] | None
) -> Tensor:
    width = torch.tensor(kept.width)
    part, leaf = inner.split(".")[-2:]
    if part in ("input_layernorm", "post_attention_layernorm"):
        same = len(width) == c.hidden_size
        return t if same else t[width] * norm_factor(name, width, c, energies)
    if part not in (*_IN_WIDTH, *_OUT_WIDTH):  # norms of a head; experts and latent attention, which stay whole
        return t
    rows, columns = lines_of(part, kept, new, c)
    if rows is not None:
        t = t[rows]
    return t if columns is None or leaf == "bias" else t[:, columns]


def lines_of(part: str, kept: Kept, new: int, c: ModelConfig) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns that stay of a matrix in the `new`-th layer that stays; None where all do."""
    width = torch.tensor(kept.width) if len(kept.width) < c.hidden_size else None
    inner = _inner(part, kept, new, c)
    return (inner, width) if part in _IN_WIDTH else (width, inner)


def _inner(part: str, kept: Kept, new: int, c: ModelConfig) -> Tensor | None:
    """Lines of a matrix on the side of the heads or of the FFN channels."""
    if part in ("gate_proj", "up_proj", "down_proj"):
        ffn = kept.ffn[new]
        return torch.tensor(ffn) if len(ffn) < c.intermediate_size else None
    whole, full = (
        (kept.groups[new], c.num_key_value_heads)
        if part in ("k_proj", "v_proj")
        else (kept.heads[new], c.num_attention_heads)
    )
    if len(whole) == full:
        return None
    return (torch.tensor(whole)[:, None] * c.head_dim + torch.arange(c.head_dim)).flatten()

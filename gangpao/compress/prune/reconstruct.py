"""What stays takes over from what goes: least squares on calibration text, without training.

A matrix W that reads x loses the columns R and keeps K. Of all D that may be added to what stays, the one that brings
(W_K + D) x_K nearest to W x on the calibration text is

    D = W_R H_RK (H_KK + damping * mean(diag H_KK))^-1        H = mean of x x^T

so that nothing is added where what goes was zero, and less where the text says little. It is for down_proj (its channels), o_proj
(its heads) and, where the width is cut, for all that reads the stream; layer by layer, so that one layer's H is in memory.

What it gives up: x is that of the model of before, not of one that is cut in front of this layer already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.compress.prune.cut import Kept, lines_of
from gangpao.formats.architectures import HEAD
from gangpao.model.layers import angles, inverse_frequencies
from gangpao.model.transformer import Transformer, layout

Tick = Callable[[int, int], None]
# Where a layer's matrices read, and which do.
SITES = {
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.down_proj": ("mlp.down_proj",),
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")


class Stream:
    """The hidden states of all windows in front of one layer, moved on layer by layer."""

    @torch.no_grad()
    def __init__(self, model: Transformer, ids_NT: np.ndarray) -> None:
        self.model = model
        ids = torch.from_numpy(np.ascontiguousarray(ids_NT))
        inverse, factor = inverse_frequencies(model.config, ids.shape[1])
        positions, self.mask = layout(ids[:1], None, 0)
        self.cos, self.sin = angles(inverse, factor, positions)
        self.states = [model.model.embed_tokens(row[None]) * model.config.embedding_scale for row in ids]

    @torch.no_grad()
    def through(self, block: nn.Module) -> list[Tensor]:
        """What comes out of a layer for every window; the states stay."""
        return [block(h, self.cos, self.sin, self.mask, None)[0] for h in self.states]


class Moments:
    """Mean of x x^T, float64 [C, C], of what goes into (a norm: comes out of) modules while it is open."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self._handles: list[Any] = []
        for name, module in modules.items():
            self._watch(name, module)

    def _watch(self, name: str, module: nn.Module) -> None:
        def add(x: Tensor) -> None:
            x = x.flatten(0, -2).float()
            found = x.T @ x
            self.sums[name] = self.sums[name] + found.double() if name in self.sums else found.double()
            self.counts[name] = self.counts.get(name, 0) + len(x)

        if name in (*_NORMS, "norm"):
            self._handles.append(module.register_forward_hook(lambda _, inputs, output: add(output)))
        else:
            self._handles.append(module.register_forward_pre_hook(lambda _, inputs: add(inputs[0])))

    def __enter__(self) -> Moments:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def of(self, name: str) -> Tensor:
        """The mean of x x^T at a place."""
        return self.sums[name] / self.counts[name]


def takeover(weight: Tensor, moment: Tensor, stays: Tensor, damping: float) -> Tensor:
    """What is added to the columns `stays` of a matrix, in its dtype [R, K]."""
    goes = torch.ones(weight.shape[1], dtype=torch.bool)
    goes[stays] = False
    inner = moment[stays][:, stays]
    ridge = damping * float(inner.diagonal().mean())
    if ridge == 0:
        return torch.zeros(len(weight), len(stays), dtype=weight.dtype)
    right = weight[:, goes].double() @ moment[goes][:, stays]
    inner = inner + ridge * torch.eye(len(stays), dtype=torch.float64)
    added: Tensor = torch.linalg.solve(inner, right.T).T
    return added.to(weight.dtype)


@torch.no_grad()
def reconstructed(
    model: Transformer,
    ids_NT: np.ndarray,
    kept: Kept,
    damping: float,
    *,
    progress: Tick = lambda done, total: None,
) -> dict[str, Tensor]:
    """The matrices that change, whole, by name: the columns that stay with what they take over, the others as they were.
    progress(done, total) in layers."""
    out: dict[str, Tensor] = {}
    stream = Stream(model, ids_NT)
    layers = model.model.layers
    for i, block in enumerate(layers):
        if i in kept.layers:
            out |= _layer(model, stream, block, i, kept, damping)
        else:
            stream.states = stream.through(block)
        progress(i + 1, len(layers))
    if not model.config.tie_word_embeddings and len(kept.width) < model.config.hidden_size:
        stays = torch.tensor(kept.width)
        with Moments({"norm": model.model.norm}) as moments:
            for h in stream.states:
                model.model.norm(h)
        out[HEAD] = _added(model.lm_head.weight, moments.of("norm"), stays, damping)
    return out


def _layer(
    model: Transformer, stream: Stream, block: nn.Module, i: int, kept: Kept, damping: float
) -> dict[str, Tensor]:
    new = kept.layers.index(i)
    sites = dict(_cut_sites(model, kept, new))
    with Moments({site: block.get_submodule(site) for site in sites}) as moments:
        stream.states = stream.through(block)
    out = {}
    for site, stays in sites.items():
        for name in SITES[site]:
            weight = block.get_parameter(f"{name}.weight")
            out[f"model.layers.{i}.{name}.weight"] = _added(weight, moments.of(site), stays, damping)
    return out


def _cut_sites(model: Transformer, kept: Kept, new: int) -> Iterator[tuple[str, Tensor]]:
    if not model.config.plain:
        return
    for site, names in SITES.items():
        columns = lines_of(names[0].rpartition(".")[2], kept, new, model.config)[1]
        if columns is not None:
            yield site, columns


def _added(weight: Tensor, moment: Tensor, stays: Tensor, damping: float) -> Tensor:
    out = weight.detach().clone()
    out[:, stays] += takeover(out, moment, stays, damping)
    return out

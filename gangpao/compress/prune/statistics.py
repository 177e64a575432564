"""What runs through a model on calibration text: one forward pass with hooks, sums in float64, a few numbers for each channel.

    ffn_absolute, ffn_square        [L, F]     mean |x| and x^2 of what goes into down_proj
    head_norm, head_contribution    [L, N]     mean length of a head's output, and mean square of what it adds to the stream
    NORM.square, NORM.absolute      [D]        what goes into each norm (x^2), and what comes out of it (|x| and x^2 as NORM.out)
    cosine                          [L+1, L+1] mean cosine between the stream before layer i and before layer j

Names of norms are those of their weights. scores.py makes importance of these. What it gives up: experts and latent attention have
cosines only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.model.transformer import Transformer

Tick = Callable[[int, int], None]
ATTENTION_NORM, MLP_NORM, LAST_NORM = "input_layernorm", "post_attention_layernorm", "model.norm.weight"


def norm_name(layer: int, norm: str) -> str:
    """The name of the weight of a norm in a layer."""
    return f"model.layers.{layer}.{norm}.weight"


@torch.no_grad()
def collect(model: Transformer, ids_NT: np.ndarray, *, progress: Tick = lambda done, total: None) -> dict[str, Tensor]:
    """The statistics of a model on windows of ids, float32 by name. progress(done, total) in windows."""
    c = model.config
    sums = _Sums()
    stream: list[Tensor] = []
    with _hooked(model, sums, stream):
        for i, row in enumerate(ids_NT):
            stream.clear()
            model(torch.from_numpy(np.ascontiguousarray(row))[None])
            sums.add("cosine", _cosines(stream))
            progress(i + 1, len(ids_NT))
    out = sums.means(ids_NT.size)
    n = c.num_hidden_layers
    for key in ("ffn_absolute", "ffn_square", "head_norm", "head_contribution"):
        if f"{key}.0" in out:
            out[key] = torch.stack([out.pop(f"{key}.{i}") for i in range(n)])
    return out


class _Sums:
    """Sums over tokens by name."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a sum over some tokens."""
        value = value.double()
        self.values[name] = self.values[name] + value if name in self.values else value

    def means(self, count: int) -> dict[str, Tensor]:
        """All divided by the number of tokens."""
        return {name: (value / count).float() for name, value in self.values.items()}


@contextmanager
def _hooked(model: Transformer, sums: _Sums, stream: list[Tensor]) -> Iterator[None]:
    c = model.config
    handles: list[Any] = []

    def norm(name: str, module: nn.Module, keep: bool) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = inputs[0].flatten(0, 1), output.flatten(0, 1)
            sums.add(f"{name}.square", x.square().sum(0))
            sums.add(f"{name}.absolute", y.abs().sum(0))
            sums.add(f"{name}.out", y.square().sum(0))
            if keep:
                stream.append(x)

        handles.append(module.register_forward_hook(hook))

    def ffn(layer: int, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, 1)
            sums.add(f"ffn_absolute.{layer}", x.abs().sum(0))
            sums.add(f"ffn_square.{layer}", x.square().sum(0))

        handles.append(module.register_forward_pre_hook(hook))

    def heads(layer: int, module: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, 1).view(-1, c.num_attention_heads, c.head_dim)
            sums.add(f"head_norm.{layer}", x.norm(dim=-1).sum(0))
            weight: Any = module.weight
            y = torch.einsum("tnh,dnh->tnd", x, weight.view(-1, c.num_attention_heads, c.head_dim))
            sums.add(f"head_contribution.{layer}", y.square().sum(dim=(0, 2)))

        handles.append(module.register_forward_pre_hook(hook))

    every: Any = model.model.layers
    for i, block in enumerate(every):
        norm(norm_name(i, ATTENTION_NORM), block.input_layernorm, keep=True)
        norm(norm_name(i, MLP_NORM), block.post_attention_layernorm, keep=False)
        if not c.moe:
            ffn(i, block.mlp.down_proj)
        if not c.mla and c.delta is None:
            heads(i, block.self_attn.o_proj)
    norm(LAST_NORM, model.model.norm, keep=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cosines(stream: list[Tensor]) -> Tensor:
    """Sum over tokens of the cosine between every two places of the stream, [L+1, L+1]."""
    unit = torch.stack([F.normalize(x.float(), dim=-1) for x in stream])
    return torch.einsum("itd,jtd->ij", unit, unit)

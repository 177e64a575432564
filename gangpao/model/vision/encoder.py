"""The ViT: patches of pieces in, hidden states out. Every variant is numbers of `Encoder` (formats/vision.py).

Patches of all pieces stand one after another, [T, D]; products and norms see them together, attention each piece alone. So
there is no padding and no mask, and a piece never sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gangpao.formats.vision import Activation
from gangpao.formats.vision import Encoder as Shape
from gangpao.formats.vision.positions import windows
from gangpao.model.layers import Linear, project
from gangpao.model.vision.position import stretched

Grid = tuple[int, int]  # rows, columns of patches


def activate(x: Tensor, kind: Activation) -> Tensor:
    """GELU by erf, by tanh, or x * sigmoid(1.702 x)."""
    if kind == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")


class LayerNorm(nn.LayerNorm):
    """A layer norm in the dtype of its input; the sums are float32."""

    if TYPE_CHECKING:  # torch's own __call__ gives Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Every patch of a piece sees all of it."""

    def __init__(self, width: int, heads: int, *, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=key_bias)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        q, k, v = project(x_TD, (self.q_proj, self.k_proj, self.v_proj))
        out, start = [], 0
        for length, run in groupby(lengths):  # pieces of one size are a batch
            count = len(list(run))
            cut = slice(start, start + count * length)
            out.append(attend(q[cut], k[cut], v[cut], self.heads, count))
            start = cut.stop
        return self.out_proj(torch.cat(out) if len(out) > 1 else out[0])


def attend(q_TD: Tensor, k_SD: Tensor, v_SD: Tensor, heads: int, batch: int = 1) -> Tensor:
    """Attention without a mask of `batch` equally long sequences that stand one after another. [T, D]."""

    def split(x: Tensor) -> Tensor:
        return x.view(batch, x.shape[0] // batch, heads, -1).transpose(1, 2)

    y = F.scaled_dot_product_attention(split(q_TD), split(k_SD), split(v_SD))
    return y.transpose(1, 2).reshape(q_TD.shape)


class MLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with post_norm, x + norm(attention(x)) and x + norm(mlp(x))."""

    def __init__(self, e: Shape) -> None:
        super().__init__()
        self.post_norm = e.post_norm
        self.layer_norm1 = LayerNorm(e.hidden_size, e.eps)
        self.self_attn = Attention(e.hidden_size, e.heads, key_bias=e.key_bias)
        self.layer_norm2 = LayerNorm(e.hidden_size, e.eps)
        self.mlp = MLP(e.hidden_size, e.intermediate_size, e.activation)

    def forward(self, x_TD: Tensor, lengths: Sequence[int]) -> Tensor:
        if self.post_norm:
            x: Tensor = x_TD + self.layer_norm1(self.self_attn(x_TD, lengths))
            return torch.add(x, self.layer_norm2(self.mlp(x)))
        x = x_TD + self.self_attn(self.layer_norm1(x_TD), lengths)
        return torch.add(x, self.mlp(self.layer_norm2(x)))


class WindowMerger(nn.Module):
    """2 x 2 patches become one inside the ViT (MiniCPM-V 4.6): attention within the window, then norm, linear, GELU (tanh),
    linear over all four, added to their mean."""

    def __init__(self, e: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(e.hidden_size, e.heads, key_bias=e.key_bias)
        self.layer_norm1 = LayerNorm(e.hidden_size, e.eps)
        self.pre_norm = LayerNorm(4 * e.hidden_size, e.eps)
        self.linear_1 = Linear(4 * e.hidden_size, 4 * e.intermediate_size)
        self.linear_2 = Linear(4 * e.intermediate_size, e.hidden_size)

    def forward(self, x_TD: Tensor, grids: Sequence[Grid]) -> Tensor:
        """[T, D] -> [T / 4, D]. Raises ValueError for a grid with an odd side."""
        x = x_TD[window_order(grids).to(x_TD.device)]
        x = x + self.self_attn(self.layer_norm1(x), [4] * (len(x) // 4))
        four = x.view(len(x) // 4, 4 * x.shape[1])
        merged = self.linear_2(activate(self.linear_1(self.pre_norm(four)), "gelu_tanh"))
        return torch.add(merged, x.view(len(x) // 4, 4, -1).mean(dim=1))


def window_order(grids: Sequence[Grid]) -> Tensor:
    """Indices that put the patches of each window one after another, for pieces that stand one after another."""
    out, start = [], 0
    for rows, columns in grids:
        out.append(torch.from_numpy(windows(rows, columns)) + start)
        start += rows * columns
    return torch.cat(out)


class Embeddings(nn.Module):
    """A patch's pixels as one product (a convolution that never overlaps), and where it stands."""

    def __init__(self, e: Shape) -> None:
        super().__init__()
        self.table, self.stretch, self.prefix = e.table, e.stretch, e.prefix_tokens
        self.patch_embedding = Linear(3 * e.patch_size**2, e.hidden_size, bias=e.patch_bias)
        self.position_embedding = nn.Embedding(e.prefix_tokens + e.table[0] * e.table[1], e.hidden_size)
        self.prefix_embedding = nn.Parameter(torch.zeros(e.prefix_tokens, e.hidden_size)) if e.prefix_tokens else None

    def forward(self, values_TP: Tensor, grids: Sequence[Grid]) -> Tensor:
        """[T, 3 * patch^2] -> [T + prefix tokens of each piece, D], pieces one after another."""
        x = self.patch_embedding(values_TP)
        table = self.position_embedding.weight
        known: dict[Grid, Tensor] = {}
        out, start = [], 0
        for grid in grids:
            if grid not in known:
                known[grid] = stretched(table[self.prefix :], self.table, grid, self.stretch).to(x.dtype)
            end = start + grid[0] * grid[1]
            if self.prefix_embedding is not None:
                out.append((self.prefix_embedding + table[: self.prefix]).to(x.dtype))
            out.append(x[start:end] + known[grid])
            start = end
        return torch.cat(out) if len(out) > 1 else out[0]


class Encoder(nn.Module):
    """The whole ViT. recompute: keep only the input of each layer for the backward pass."""

    def __init__(self, e: Shape) -> None:
        super().__init__()
        if e.hidden_size % e.heads:
            raise ValueError(f"the encoder's hidden_size {e.hidden_size} is no multiple of its {e.heads} heads")
        if e.merge_after is not None and not 0 < e.merge_after <= e.layers:
            raise ValueError(f"the window merger stands behind layer {e.merge_after} of {e.layers}")
        self.shape = e
        self.recompute = False
        self.embeddings = Embeddings(e)
        self.first_norm = LayerNorm(e.hidden_size, e.eps) if e.first_norm else None
        self.layers = nn.ModuleList(Layer(e) for _ in range(e.layers))
        self.window_merger = WindowMerger(e) if e.merge_after is not None else None
        self.final_norm = LayerNorm(e.hidden_size, e.eps) if e.final_norm else None

    def forward(
        self, values_TP: Tensor, grids: Sequence[Grid], states: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Grid]]:
        """Hidden states of the patches [T, D] and the grids that they now have. states: takes what went into the first layer
        and what came out of each (behind a merger: merged)."""
        grids = list(grids)
        prefix = self.shape.prefix_tokens
        x = self.embeddings(values_TP, grids)
        if self.first_norm is not None:
            x = self.first_norm(x)
        lengths = [prefix + rows * columns for rows, columns in grids]
        if states is not None:
            states.append(x)
        for i, layer in enumerate(self.layers):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, lengths, use_reentrant=False)
            else:
                x = layer(x, lengths)
            if self.window_merger is not None and i + 1 == self.shape.merge_after and not self.shape.merge_skipped:
                x = self.window_merger(x, grids)
                grids = [(rows // 2, columns // 2) for rows, columns in grids]
                lengths = [rows * columns for rows, columns in grids]
            if states is not None:
                states.append(x)
        if prefix:
            x = torch.cat([piece[prefix:] for piece in x.split_with_sizes(lengths)])
        return (x if self.final_norm is None else self.final_norm(x)), grids

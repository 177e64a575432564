"""From hidden states of patches to rows of the language model. Every kind is numbers of `Merger` (formats/vision.py).

All take the patches of several pieces one after another, their grids, and give one [rows, text_size] a piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gangpao.formats.vision import Activation
from gangpao.formats.vision import Merger as Shape
from gangpao.formats.vision.positions import sines, sines_2d
from gangpao.model.layers import Linear
from gangpao.model.vision.encoder import Grid, LayerNorm, activate, attend, window_order
from gangpao.model.vision.position import stretched

Times = Sequence[Sequence[int]]  # frames that become one set of rows, by their times; -1: a picture, without a time


class CrossAttention(nn.Module):
    """The four products of a resampler."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = Linear(width, width), Linear(width, width)
        self.v_proj, self.out_proj = Linear(width, width), Linear(width, width)


class Resampler(nn.Module):
    """`queries` learned queries look once at all patches; positions are added to the keys, never to the values."""

    def __init__(self, m: Shape, vision_size: int, text_size: int) -> None:
        super().__init__()
        if text_size % m.head_dim or text_size % 4:
            raise ValueError(f"a resampler {text_size} wide has no whole heads of {m.head_dim}")
        side = math.isqrt(m.queries)
        if (m.query_table or m.key_table == "stored") and side * side != m.queries:
            raise ValueError(f"{m.queries} queries of a resampler with a stored table are no square")
        self.shape, self.side = m, side
        self.query = nn.Parameter(torch.zeros(m.queries, text_size))
        self.kv_proj = Linear(vision_size, text_size, bias=False) if vision_size != text_size else None
        self.attn = CrossAttention(text_size, text_size // m.head_dim)
        self.ln_q, self.ln_kv = LayerNorm(text_size, m.eps), LayerNorm(text_size, m.eps)
        self.ln_post = LayerNorm(text_size, m.eps)
        self.proj = Linear(text_size, text_size, bias=False)
        stored = m.query_table or m.key_table == "stored"
        self.pos_embed = nn.Parameter(torch.zeros(m.queries, text_size), requires_grad=False) if stored else None

    def key_table(self, grid: Grid) -> Tensor:
        """Positions of the patches, float32 [rows * columns, D]."""
        if self.shape.key_table == "stored":
            assert self.pos_embed is not None
            return stretched(self.pos_embed.float(), (self.side, self.side), grid, "bicubic")
        return torch.from_numpy(sines_2d(self.query.shape[1], *grid).copy())

    def forward(self, x_TD: Tensor, grids: Sequence[Grid], times: Times | None = None) -> list[Tensor]:
        """One [queries, text_size] a piece, or a group of `times`, whose frames stand one after another.

        Raises ValueError for times of a model that knows none.
        """
        values = self.ln_kv(x_TD if self.kv_proj is None else self.kv_proj(x_TD))
        keys = values + torch.cat(self._places(grids, times)).to(values)
        q = self.ln_q(self.query.to(values.dtype))
        if self.shape.query_table:
            assert self.pos_embed is not None
            q = q + self.pos_embed.to(q)
        q, keys, values = self.attn.q_proj(q), self.attn.k_proj(keys), self.attn.v_proj(values)
        lengths = [rows * columns for rows, columns in grids]
        if times is not None:
            starts = iter(lengths)
            lengths = [sum(next(starts) for _ in group) for group in times]
        seen = zip(keys.split_with_sizes(lengths), values.split_with_sizes(lengths), strict=True)
        rows = torch.cat([attend(q, k, v, self.attn.heads) for k, v in seen])
        return list(self.proj(self.ln_post(self.attn.out_proj(rows))).chunk(len(lengths)))

    def _places(self, grids: Sequence[Grid], times: Times | None) -> list[Tensor]:
        tables = [self.key_table(grid) for grid in grids]
        if times is None:
            return tables
        if self.shape.key_table != "computed_time":
            raise ValueError("times of frames are for MiniCPM-V 4.5; this resampler has no place for them")
        flat = [time for group in times for time in group]
        if len(flat) != len(grids) or not all(times):
            raise ValueError(f"{len(flat)} times are given for {len(grids)} pieces; each group needs one")
        moments = torch.from_numpy(sines(self.query.shape[1], torch.tensor(flat).clamp(min=0).float().numpy()))
        return [t if time < 0 else t + moment.to(t) for t, time, moment in zip(tables, flat, moments, strict=True)]


class Join(nn.Module):
    """2 x 2 neighbours, as one vector: norm, linear, GELU, linear."""

    def __init__(self, width: int, out: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.pre_norm = LayerNorm(4 * width, eps)
        self.linear_1 = Linear(4 * width, 4 * width)
        self.linear_2 = Linear(4 * width, out)

    def forward(self, x_TD: Tensor, grids: Sequence[Grid]) -> Tensor:
        x = x_TD[window_order(grids).to(x_TD.device)].view(len(x_TD) // 4, -1)
        return self.linear_2(activate(self.linear_1(self.pre_norm(x)), self.activation))


class JoinMerger(nn.Module):
    """`times` rounds of joining 2 x 2 patches; the last one speaks the language model's width (MiniCPM-V 4.6)."""

    def __init__(self, m: Shape, vision_size: int, text_size: int) -> None:
        super().__init__()
        widths = [vision_size] * (m.times - 1) + [text_size]
        self.mlp = nn.ModuleList(Join(vision_size, width, m.activation, m.eps) for width in widths)

    def forward(self, x_TD: Tensor, grids: Sequence[Grid], times: Times | None = None) -> list[Tensor]:
        x = x_TD
        for join in self.mlp:
            x = join(x, grids)
            grids = [(rows // 2, columns // 2) for rows, columns in grids]
        return list(x.split_with_sizes([rows * columns for rows, columns in grids]))


class MLPMerger(nn.Module):
    """linear, GELU, linear on every patch (LLaVA)."""

    def __init__(self, m: Shape, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.activation: Activation = m.activation
        self.linear_1 = Linear(vision_size, m.hidden_size or text_size)
        self.linear_2 = Linear(m.hidden_size or text_size, text_size)

    def forward(self, x_TD: Tensor, grids: Sequence[Grid], times: Times | None = None) -> list[Tensor]:
        y = self.linear_2(activate(self.linear_1(x_TD), self.activation))
        return list(y.split_with_sizes([rows * columns for rows, columns in grids]))


KINDS: dict[str, type[Resampler] | type[JoinMerger] | type[MLPMerger]] = {
    "resampler": Resampler,
    "merge": JoinMerger,
    "mlp": MLPMerger,
}

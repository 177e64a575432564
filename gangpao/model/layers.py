"""The parts of the Transformer, with its two seams: every matrix product is a `Linear`, every attention goes through `attend`.

Quantization, LoRA and QAT replace `Linear` modules (`replace_linears`); another attention kernel is one change in `attend`.
Shapes: B batch, T time, S cached time, D model width, N heads, K KV heads, H head width, F FFN width, V vocabulary.
RoPE is rotate_half, as in Hugging Face. Norms and RoPE compute in float32 whatever the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.formats.rope_axes import axes_of_pairs
from gangpao.model import cpu, tiles
from gangpao.model.config import ModelConfig


class Linear(nn.Linear):
    """The seam for quantization and adapters. Computes in the dtype of its input: weights are cast, not the activations."""

    if TYPE_CHECKING:  # torch's own __call__ gives Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.weight.dtype == x.dtype or self.weight.requires_grad or torch.compiler.is_compiling():
            return F.linear(x, self.weight.to(x.dtype), bias)
        y = tiles.product(x, tiles.Stored(self.weight))
        return y if bias is None else y + bias

    def frozen_tiles(self) -> tiles.Tiles | None:
        """The matrix, some rows at a time, where it is all that this module computes with and it gets no gradient; else None.

        A subclass that computes something else (an adapter) has none unless it says so itself.
        """
        plain = type(self) is Linear and getattr(self, "bias", None) is None and not self.weight.requires_grad
        return self.matrix() if plain else None

    def matrix(self) -> tiles.Tiles:
        """The matrix alone, some rows at a time and without a gradient, for those who write theirs by hand (adapters)."""
        return tiles.Stored(self.weight)

    @classmethod
    def together(cls, x: Tensor, linears: Sequence[Linear]) -> Sequence[Tensor]:
        """Linears of this class at the same input."""
        if cls is Linear and cpu.applies(x) and all(_multiplies(linear, x) for linear in linears):
            return cpu.products(x, [linear.weight for linear in linears])
        return [linear(x) for linear in linears]


def replace_linears(root: nn.Module, replace: Callable[[str, Linear], nn.Module | None]) -> list[str]:
    """Swap each Linear below `root` for what `replace(name, linear)` returns; None keeps it. Returns the swapped names."""
    swapped = []
    for name, module in list(root.named_modules()):
        if isinstance(module, Linear) and (new := replace(name, module)) is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(root.get_submodule(parent), leaf, new)
            swapped.append(name)
    return swapped


def project(x: Tensor, linears: Sequence[Linear]) -> Sequence[Tensor]:
    """Each linear at the same input; those of one class may share work (`Linear.together`)."""
    kind = type(linears[0])
    if all(type(linear) is kind for linear in linears):
        return kind.together(x, linears)
    return [linear(x) for linear in linears]


def _multiplies(linear: Linear, x: Tensor) -> bool:
    """Whether it is a plain product with a weight that is there in the dtype of x, or is trained and cast to it."""
    plain = type(linear) is Linear and linear.bias is None
    return plain and (linear.weight.dtype == x.dtype or linear.weight.requires_grad)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), in float32, cast back, times weight; centred: times 1 + weight, before the cast."""

    def __init__(self, width: int, eps: float, *, centred: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width) if centred else torch.ones(width))
        self.eps = eps
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        if cpu.applies(x):
            return cpu.rms_norm(x, self.weight.float() + 1 if self.centred else self.weight, self.eps)
        y = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        if self.centred:
            return (y * (1 + self.weight.float())).to(x.dtype)
        return y.to(x.dtype) * self.weight.to(x.dtype)


def splice(embeddings: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Embeddings [..., D] with rows [N, D] at places, int [N] (numbers in the flattened [T, D]); gradients go to both.

    Raises ValueError where rows and places differ in number, or a place is outside or is taken twice.
    """
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    if len(places) != len(rows) or rows.shape[1:] != flat.shape[1:]:
        raise ValueError(
            f"{len(places)} places of {flat.shape[1]} numbers for rows of shape {list(rows.shape)}: "
            "the model's rows and the prompt's places do not belong together"
        )
    ordered = places.sort().values
    if len(places) and (int(ordered[0]) < 0 or int(ordered[-1]) >= len(flat) or bool((ordered.diff() == 0).any())):
        raise ValueError(f"places of rows must differ and be within the {len(flat)} positions of the prompt")
    return flat.index_put((places.to(flat.device),), rows.to(flat)).view_as(embeddings)


def attend(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention; the last query sees the last key. mask: bool [B, 1, T, S] of what may be seen, None for causal. [B, N, T, H]."""
    grouped = q_BNTH.shape[1] != k_BKSH.shape[1]
    causal = mask is None and q_BNTH.shape[2] > 1
    assert not causal or q_BNTH.shape[2] == k_BKSH.shape[2], "a piece behind a cache needs a mask"
    if cpu.applies(q_BNTH) and q_BNTH.shape[2] == k_BKSH.shape[2] and q_BNTH.shape[3] == v_BKSH.shape[3]:
        q, k, v = (x.transpose(1, 2) for x in (q_BNTH, k_BKSH, v_BKSH))
        return cpu.attention(q, k, v, mask, scale).transpose(1, 2)
    return F.scaled_dot_product_attention(
        q_BNTH, k_BKSH, v_BKSH, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )


class LayerCache:
    """Keys and values of one layer, [B, K, capacity, H] each, filled up to `length`. Made by Transformer.new_cache."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self.length = 0

    @property
    def capacity(self) -> int:
        """The most positions."""
        return self.keys.shape[2]

    def truncate(self, length: int) -> int:
        """Forget every position from `length` on; how many are left, which may be fewer where there is no way back to it."""
        self.length = min(length, self.length)
        return self.length

    def copy_to(self, other: LayerCache) -> None:
        """Put it into another of the same kind, whose rows all go on from this one."""
        other.keys[:, :, : self.length] = self.keys[:, :, : self.length]
        other.values[:, :, : self.length] = self.values[:, :, : self.length]
        other.length = self.length

    def append(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Store new positions; all keys and values so far."""
        end = self.length + k_BKTH.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"the cache holds {self.keys.shape[2]} positions, {end} are needed: make a larger one")
        self.keys[:, :, self.length : end] = k_BKTH
        self.values[:, :, self.length : end] = v_BKTH
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def inverse_frequencies(config: ModelConfig, context: int) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair, float64 [rope_dim / 2], and the factor on cosine and sine.

    context: the length the model is used at; past the trained length longrope takes its long factors and dynamic a base
    that grows with the context. Sources: 2104.09864, 2306.15595 (linear), 2309.00071 (YaRN), 2402.13753 (LongRoPE),
    constants as in transformers.
    """
    half = config.rope_dim // 2
    inverse = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    s = config.rope_scaling
    if s is None:
        return inverse, 1.0
    original = s.original_max_position_embeddings or config.max_position_embeddings
    if s.rope_type == "linear":
        return inverse / s.factor, 1.0
    if s.rope_type == "dynamic":
        past = max(context / config.max_position_embeddings - 1, 0)
        base = config.rope_theta * (1 + s.factor * past) ** (config.rope_dim / (config.rope_dim - 2))
        return base ** (-torch.arange(half, dtype=torch.float64) / half), 1.0
    if s.rope_type == "longrope":
        factors = s.long_factor if context > original else s.short_factor
        stretch = config.max_position_embeddings / original
        grown = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        return inverse / torch.tensor(factors, dtype=torch.float64), s.attention_factor or grown
    if s.rope_type == "yarn":
        grown = 0.1 * math.log(s.factor) + 1.0 if s.factor > 1 else 1.0
        return _yarn(inverse, config, original), s.attention_factor or grown
    return _llama3(inverse, config, original), 1.0


def _yarn(inverse: Tensor, config: ModelConfig, original: int) -> Tensor:
    """Slow pairs interpolated, fast ones kept, a ramp between (YaRN, section 3.2)."""
    s = config.rope_scaling
    assert s is not None

    def pair_of(rotations: float) -> float:
        return config.rope_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = max(math.floor(pair_of(s.beta_fast)), 0), min(math.ceil(pair_of(s.beta_slow)), config.rope_dim - 1)
    ramp = (torch.arange(len(inverse), dtype=torch.float64) - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    return inverse / s.factor * (1 - keep) + inverse * keep


def _llama3(inverse: Tensor, config: ModelConfig, original: int) -> Tensor:
    """Llama 3.1's rule: waves longer than the trained length interpolated, short ones kept, a blend between."""
    s = config.rope_scaling
    assert s is not None
    turns = original * inverse / (2 * math.pi)
    smooth = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0, 1)
    return (1 - smooth) * inverse / s.factor + smooth * inverse


def angles(
    inverse: Tensor, factor: float, positions: Tensor, sections: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine, float32 [B, 1, T, rope_dim / 2]. positions: [B, T]; or [3, B, T] for time, row and column, of which
    `sections` says how many pairs each turns (formats/rope_axes.py)."""
    if positions.dim() == 3:
        assert sections is not None, "positions of three axes need sections"
        of_pair = positions[axes_of_pairs(sections, len(inverse))]  # [pairs, B, T]
        turned = of_pair.movedim(0, -1)[:, None].double() * inverse.to(positions.device)
    else:
        turned = positions[:, None, :, None].double() * inverse.to(positions.device)
    return (turned.cos() * factor).float(), (turned.sin() * factor).float()


def local_angles(config: ModelConfig, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of layers that see a window: a base of their own, and no scaling."""
    half = config.rope_dim // 2
    inverse = config.rope_local_base_freq ** (-torch.arange(half, dtype=torch.float64) / half)
    return angles(inverse, 1.0, positions_BT)


def windowed(mask: Tensor | None, time: int, past: int, window: int) -> Tensor | None:
    """The mask [B, 1, T, past + T] (None: causal) of layers whose tokens see `window` positions, themselves among them."""
    if past + time <= window:
        return mask
    device = None if mask is None else mask.device
    queries = torch.arange(past, past + time, device=device)[:, None]
    keys = torch.arange(past + time, device=device)
    near = (keys > queries - window) & (keys <= queries)
    return near[None, None] if mask is None else mask & near


def rotate(x_BNTH: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + R/2) of the first R dimensions of every head by the angles [..., R/2], in float32."""
    half = cos.shape[-1]
    a, b, rest = x_BNTH.float().split_with_sizes([half, half, x_BNTH.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x_BNTH.dtype)


class Attention(nn.Module):
    """Grouped-query attention, with biases on q, k, v and norms on their heads where the configuration asks for them."""

    def __init__(self, c: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.rotates = c.rotates(layer)
        self.num_heads, self.num_kv_heads, self.head_dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.gated = c.attention_gate
        self.q_proj = Linear(
            c.hidden_size, (1 + self.gated) * c.num_attention_heads * c.head_dim, bias=c.attention_bias
        )
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps, centred=c.centred_norms) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps, centred=c.centred_norms) if c.qk_norm else None

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        batch, time, _ = x_BTD.shape

        def heads(y: Tensor, norm: RMSNorm | None = None) -> Tensor:
            y = y.view(batch, time, -1, self.head_dim)
            return norm(y) if norm is not None else y

        q, k, v = project(x_BTD, (self.q_proj, self.k_proj, self.v_proj))
        gate = None
        if self.gated:
            q, gate = (part.reshape(batch, time, -1) for part in q.view(batch, time, -1, 2, self.head_dim).unbind(3))
        q, k, v = heads(q, self.q_norm), heads(k, self.k_norm), heads(v)
        if cache is None and cpu.applies(q) and (2 * cos.shape[-1] == self.head_dim or not self.rotates):
            y = cpu.attention(q, k, v, mask, self.head_dim**-0.5, (cos, sin) if self.rotates else None)
        else:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            if self.rotates:
                q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            if cache is not None:
                k, v = cache.append(k, v)
            y = attend(q, k, v, mask, self.head_dim**-0.5).transpose(1, 2)
        y = y.reshape(batch, time, -1)
        return self.o_proj(y if gate is None else y * gate.sigmoid())


class LatentAttention(nn.Module):
    """MiniCPM3's attention (MLA): q and kv through low ranks, one shared rotated key, values narrower than keys.

    The cache holds expanded keys and values, which is simple and exact; the latent form would be 20 times smaller.
    """

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        assert c.mla is not None
        m, n = c.mla, c.num_attention_heads
        self.num_heads, self.mla = n, m
        self.q_a_proj = Linear(c.hidden_size, m.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(m.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = Linear(m.q_lora_rank, n * (m.qk_nope_head_dim + m.qk_rope_head_dim), bias=False)
        self.kv_a_proj_with_mqa = Linear(c.hidden_size, m.kv_lora_rank + m.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(m.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = Linear(m.kv_lora_rank, n * (m.qk_nope_head_dim + m.v_head_dim), bias=False)
        self.o_proj = Linear(n * m.v_head_dim, c.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        batch, time, _ = x_BTD.shape
        m = self.mla
        q = (
            self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
            .view(batch, time, self.num_heads, -1)
            .transpose(1, 2)
        )
        q_plain, q_turned = q.split_with_sizes([m.qk_nope_head_dim, m.qk_rope_head_dim], dim=-1)
        latent, k_turned = self.kv_a_proj_with_mqa(x_BTD).split_with_sizes([m.kv_lora_rank, m.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, time, self.num_heads, -1).transpose(1, 2)
        k_plain, v = kv.split_with_sizes([m.qk_nope_head_dim, m.v_head_dim], dim=-1)
        q = torch.cat([q_plain, rotate(q_turned, cos, sin)], dim=-1)
        shared = rotate(k_turned[:, None], cos, sin).expand(-1, self.num_heads, -1, -1)
        k = torch.cat([k_plain, shared], dim=-1)
        if cache is not None:
            k, v = cache.append(k, v)
        y = attend(q, k, v, mask, q.shape[-1] ** -0.5)
        return self.o_proj(y.transpose(1, 2).reshape(batch, time, -1))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), or GELU by the tangent."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.gelu = c.gelu
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = project(x_BTD, (self.gate_proj, self.up_proj))
        if self.gelu:
            return self.down_proj(F.gelu(gate, approximate="tanh") * up)
        if cpu.applies(gate):
            return cpu.after_swiglu(self.down_proj, gate, up)
        return self.down_proj(F.silu(gate) * up)


# --- sparse attention: a reference

BLOCK, MEAN = 64, 16  # positions of a block, and of those that one mean stands for


@dataclass(frozen=True, slots=True)
class Sparse:
    """Block-sparse attention of long contexts, as the engine has it (gangpao/engine/layers/sparse.py).

    From position `dense` on, a query looks at the first blocks, at the newest ones (its own is one of them), and at the `chosen`
    best between: every 16 keys are known by their mean, a head gives the means weights that add up to one, the heads that
    share keys add theirs, and a block is worth what its best mean is worth.

    Source: InfLLM v2 (arXiv:2509.24663), whose means overlap.
    """

    dense: int
    first: int
    near: int
    chosen: int


def looked_at(q: torch.Tensor, k: torch.Tensor, position: int, scale: float, rule: Sparse) -> torch.Tensor:
    """Which of the positions up to `position` the heads of a group look at [position + 1], bool. q [G, D], k [N, D]."""
    seen = torch.ones(position + 1, dtype=torch.bool)
    begin, end = rule.first, position // BLOCK + 1 - rule.near
    if position < rule.dense or end - begin <= rule.chosen:
        return seen
    means = k[: end * BLOCK].view(-1, MEAN, k.shape[-1]).mean(1)[begin * BLOCK // MEAN :]
    weights = torch.softmax(q @ means.T * scale, -1).sum(0)
    best = weights.view(-1, BLOCK // MEAN).amax(-1).topk(rule.chosen).indices + begin
    blocks = torch.zeros(end, dtype=torch.bool)
    blocks[:begin] = True
    blocks[best] = True
    seen[: end * BLOCK] = blocks.repeat_interleave(BLOCK)
    return seen


def sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int, scale: float, rule: Sparse
) -> torch.Tensor:
    """[T, H, D] of queries [T, H, D] at positions start, start + 1, ... over keys and values [N, K, D] of all positions so far."""
    group, out = q.shape[1] // k.shape[1], torch.empty_like(q)
    for t, row in enumerate(q):
        position = start + t
        for head in range(k.shape[1]):
            own = slice(head * group, (head + 1) * group)
            seen = looked_at(row[own], k[:, head], position, scale, rule)
            scores = row[own] @ k[: position + 1, head].T * scale
            weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
            out[t, own] = weights @ v[: position + 1, head]
    return out

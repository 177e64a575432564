"""Gated DeltaNet (arXiv:2412.06464): layers that keep a state of one size instead of all keys and values. Qwen3.5 has three of
them for each layer that attends.

    q, k, v = silu(convolution(in_proj_qkv(x)))         over the last few tokens, each channel for itself
    q, k    = of length 1, q also times 1 / sqrt(width)
    decay   = exp(-exp(A_log) * softplus(in_proj_a(x) + dt_bias)),  beta = sigmoid(in_proj_b(x))       a number for each head
    S       = decay * S + k (beta * (v - k^T (decay * S)))^T           the state, [key width, value width] for each value head
    y       = out_proj(norm(q^T S) * silu(in_proj_z(x)))

`recurrent` is this, token by token; `chunked` is the same sum for CHUNK tokens at once, in products of matrices, for training
and for prompts. Tests hold the two equal. Everything between the projections is computed in float32 (or more), since a state
adds up over the whole text. Value heads of a group share the key head with the number of the group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.model.config import DeltaConfig, ModelConfig
from gangpao.model.layers import LayerCache, Linear, project

CHUNK = 64
_SMALLEST = 1e-6  # below the root of a length


class StateCache(LayerCache):
    """What one layer keeps of a text: the state [B, V, K, H] of its value heads, the last inputs of the convolution [B, C, n]."""

    def __init__(self, state: Tensor, tail: Tensor, capacity: int) -> None:
        self.state = state
        self.tail = tail
        self.length = 0
        self._capacity = capacity

    @property
    def capacity(self) -> int:
        """The most positions, as of the layers that attend beside it."""
        return self._capacity

    def truncate(self, length: int) -> int:
        """A state has no past: back to nothing, unless it is all that there is."""
        if length < self.length:
            self.state.zero_()
            self.tail.zero_()
            self.length = 0
        return self.length

    def copy_to(self, other: LayerCache) -> None:
        """Put it into another of the same kind, whose rows all go on from this one."""
        assert isinstance(other, StateCache)
        other.state.copy_(self.state.expand_as(other.state))
        other.tail.copy_(self.tail.expand_as(other.tail))
        other.length = self.length

    def advance(self, state: Tensor, inputs_BCT: Tensor, time: int) -> None:
        """Take the state behind `time` more tokens, of all whose inputs [B, C, n + time] the last n are kept."""
        self.state.copy_(state)
        self.tail.copy_(inputs_BCT[:, :, inputs_BCT.shape[2] - self.tail.shape[2] :])
        self.length += time


def new_state(d: DeltaConfig, batch: int, capacity: int, like: Tensor) -> StateCache:
    """The cache of a text of nothing, float32 (or wider, if `like` is)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    state = like.new_zeros(batch, d.linear_num_value_heads, d.linear_key_head_dim, d.linear_value_head_dim, dtype=dtype)
    return StateCache(state, like.new_zeros(batch, d.channels, d.linear_conv_kernel_dim - 1, dtype=dtype), capacity)


class Convolution(nn.Module):
    """Each channel's own filter over the last tokens: weight [channels, 1, taps], the newest token last."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, taps))

    def forward(self, inputs_BCT: Tensor, same: Tensor | None) -> Tensor:
        """[B, C, T] from the inputs of T tokens and the taps - 1 before them. same: [B, T, taps], whether a tap is of the text."""
        windows = inputs_BCT.unfold(2, self.weight.shape[2], 1)
        if same is not None:
            windows = windows * same[:, None]
        return (windows * self.weight.to(inputs_BCT.dtype)).sum(-1)


class GatedNorm(nn.Module):
    """norm(x) * weight * silu(gate) over the width of a head."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        y = F.rms_norm(x, (x.shape[-1],), None, self.eps) * self.weight.to(x.dtype)
        return y * F.silu(gate.to(x.dtype))


class GatedDeltaNet(nn.Module):
    """One layer, with Hugging Face's names."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        assert c.delta is not None
        self.sizes = d = c.delta
        self.in_proj_qkv = Linear(c.hidden_size, d.channels, bias=False)
        self.in_proj_z = Linear(c.hidden_size, d.value_size, bias=False)
        self.in_proj_b = Linear(c.hidden_size, d.linear_num_value_heads, bias=False)
        self.in_proj_a = Linear(c.hidden_size, d.linear_num_value_heads, bias=False)
        self.conv1d = Convolution(d.channels, d.linear_conv_kernel_dim)
        self.A_log = nn.Parameter(torch.zeros(d.linear_num_value_heads))
        self.dt_bias = nn.Parameter(torch.ones(d.linear_num_value_heads))
        self.norm = GatedNorm(d.linear_value_head_dim, c.rms_norm_eps)
        self.out_proj = Linear(d.value_size, c.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, cache: StateCache | None) -> Tensor:
        """mask: [B, 1, T, T] of packed documents, whose states begin anew; behind a cache it says nothing that is not so anyway."""
        batch, time, _ = x_BTD.shape
        d = self.sizes
        qkv, z, b, a = project(x_BTD, (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a))
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        documents = mask[:, 0] if mask is not None and cache is None else None
        inputs = qkv.to(wide).mT
        taps = d.linear_conv_kernel_dim
        before = inputs.new_zeros(batch, d.channels, taps - 1) if cache is None else cache.tail.to(wide)
        inputs = torch.cat([before, inputs], dim=2)
        mixed = F.silu(self.conv1d(inputs, _same_text(documents, taps))).mT
        q, k, v = mixed.split_with_sizes([d.key_size, d.key_size, d.value_size], dim=-1)
        heads = d.linear_num_value_heads
        q, k = (_unit(x.view(batch, time, -1, d.linear_key_head_dim)) for x in (q, k))
        q, k = (x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2) for x in (q, k))
        v = v.view(batch, time, heads, -1).transpose(1, 2)
        decay = -self.A_log.to(wide).exp() * F.softplus(a.to(wide) + self.dt_bias.to(wide))
        start = None if cache is None else cache.state.to(wide)
        form = recurrent if time == 1 else chunked
        y, state = form(q * q.shape[-1] ** -0.5, k, v, decay.mT, b.to(wide).sigmoid().mT, start, documents)
        if cache is not None:
            cache.advance(state, inputs, time)
        gated = self.norm(y.transpose(1, 2), z.view(batch, time, heads, -1))
        return self.out_proj(gated.reshape(batch, time, -1).to(x_BTD.dtype))


def _unit(x: Tensor) -> Tensor:
    """Of length 1."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _SMALLEST)


def _same_text(documents_BTT: Tensor | None, taps: int) -> Tensor | None:
    """[B, T, taps]: whether the token that a tap looks at is of the same document."""
    if documents_BTT is None:
        return None
    padded = F.pad(documents_BTT, (taps - 1, 0))
    return torch.stack([padded.diagonal(i, 1, 2) for i in range(taps)], dim=-1)


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Token by token. q, k [B, V, T, K], v [B, V, T, H], log_decay and beta [B, V, T]; state [B, V, K, H], none is zeros.

    documents: bool [B, T, T], whether a token sees another. Returns [B, V, T, H] and the state behind the last token.
    """
    s = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    out = []
    for t in range(q.shape[2]):
        if documents is not None and t > 0:
            s = s * documents[:, t, t - 1, None, None, None]
        s = s * log_decay[:, :, t, None, None].exp()
        wrong = v[:, :, t] - torch.einsum("bvk,bvkh->bvh", k[:, :, t], s)
        s = s + torch.einsum("bvk,bvh->bvkh", k[:, :, t], wrong * beta[:, :, t, None])
        out.append(torch.einsum("bvk,bvkh->bvh", q[:, :, t], s))
    return torch.stack(out, dim=2), s


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same as `recurrent`, CHUNK tokens at once.

    Inside a chunk, what is written at i is beta_i (v_i - sum over j < i of decay_ij (k_i . k_j) u_j - decay_i0 k_i^T S): a
    triangular system for all u of the chunk, in which S is the state before it.
    """
    s = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    out = []
    for begin in range(0, q.shape[2], CHUNK):
        part = slice(begin, begin + CHUNK)
        seen = None if documents is None else documents[:, None, part, part]
        old = None if documents is None or begin == 0 else documents[:, None, part, begin - 1]
        y, s = _one_chunk(
            q[:, :, part], k[:, :, part], v[:, :, part], log_decay[:, :, part], beta[:, :, part], s, seen, old
        )
        out.append(y)
    return torch.cat(out, dim=2), s


def _one_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, s: Tensor, seen: Tensor | None, old: Tensor | None
) -> tuple[Tensor, Tensor]:
    """seen: whether a token of the chunk sees another of it [B, 1, C, C]; old: whether it sees what is before the chunk."""
    total = log_decay.cumsum(-1)
    lower = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
    seen = lower if seen is None else seen & lower
    between = torch.where(seen, (total[..., :, None] - total[..., None, :]).masked_fill(~seen, 0).exp(), 0)
    before = total.exp() if old is None else total.exp() * old  # what is left of S
    system = (k * beta[..., None]) @ k.mT * between
    wanted = beta[..., None] * (v - before[..., None] * (k @ s))
    written = torch.linalg.solve_triangular(system.tril(-1), wanted, upper=False, unitriangular=True)
    y = before[..., None] * (q @ s) + (q @ k.mT * between) @ written
    kept = k * between[..., -1, :, None]  # what is left of each at the end
    return y, before[..., -1, None, None] * s + kept.mT @ written

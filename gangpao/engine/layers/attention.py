"""Attention of one layer: its weights, plain or latent, and what latent attention needs between its products.

Latent attention (MiniCPM3) keeps whole keys and values in the cache, as llama.cpp does: any attention's kernels compute it, and it
takes 27 times the memory of its latents. Values are as wide as keys there, filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gangpao import kernels
from gangpao.formats.layer_sizes import Latent


@dataclass(frozen=True, slots=True)
class Attention:
    """qkv: q, k and v side by side, and behind them a gate of what attention gives where `gate` (its first row) is not 0."""

    qkv: kernels.Linear
    spec: kernels.AttentionSpec
    o: kernels.Linear
    gate: int = 0
    local: bool = False  # whether its angles are those of layers that see a window

    def adaptable(self) -> dict[str, kernels.Linear]:
        """The linear layers that adapters may belong to, by the engine's names."""
        return {"qkv": self.qkv, "o": self.o}


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """down: to the latents of q, of keys and values, and the key that all heads share; q and kv: up from the normed latents. In a
    head of q the dimensions that turn stand first."""

    down: kernels.Linear
    q_norm: kernels.Array
    q: kernels.Linear
    kv_norm: kernels.Array
    kv: kernels.Linear
    spec: kernels.AttentionSpec
    o: kernels.Linear

    def adaptable(self) -> dict[str, kernels.Linear]:
        """None of its linear layers has adapters."""
        return {}


class LatentBuffers:
    """Work space for one chunk. head: heads, their width, and how many of its dimensions turn."""

    def __init__(
        self,
        tokens: int,
        head: tuple[int, int, int],
        latent: Latent,
        layers: Sequence[LatentAttention],
        *,
        floats: bool = False,
    ) -> None:
        self.heads_of, self.sizes = head, latent
        heads, head_dim, turned = head
        q, kv, v_dim = latent.q_rank, latent.kv_rank, latent.v_dim
        self.low = kernels.Array(tokens, q + kv + turned)
        self.q_low, self.kv_low = kernels.Array(tokens, q), kernels.Array(tokens, kv)
        self.q_normed = kernels.Activation(tokens, q, [layer.q for layer in layers], floats)
        self.kv_normed = kernels.Activation(tokens, kv, [layer.kv for layer in layers], floats)
        self.kv = kernels.Array(tokens, heads * (head_dim - turned + v_dim))
        self.values = kernels.Array(tokens, heads * v_dim)
        self.heads = kernels.Activation(tokens, heads * v_dim, [layer.o for layer in layers], floats)
        self.unread = kernels.Activation(tokens, heads * head_dim, [])

    def queries_keys_values(
        self, m: LatentAttention, normed: kernels.Activation, n: int, eps: float, qkv: kernels.Array
    ) -> None:
        """Fills the first n rows of qkv, not turned yet."""
        q_rank, (heads, head_dim, turned) = self.sizes.q_rank, self.heads_of
        kernels.linear(m.down, normed, self.low)
        low = self.low.numpy()[:n]
        self.q_low.numpy()[:n] = low[:, :q_rank]
        self.kv_low.numpy()[:n] = low[:, q_rank : q_rank + self.sizes.kv_rank]
        kernels.rmsnorm(self.q_low, n, m.q_norm, eps, self.q_normed)
        kernels.linear(m.q, self.q_normed, qkv)
        kernels.rmsnorm(self.kv_low, n, m.kv_norm, eps, self.kv_normed)
        kernels.linear(m.kv, self.kv_normed, self.kv)
        plain = head_dim - turned
        found = self.kv.numpy()[:n].reshape(n, heads, -1)
        rows = qkv.numpy()[:n, heads * head_dim :].reshape(n, 2, heads, head_dim)
        rows[:, 0, :, :turned] = low[:, None, q_rank + self.sizes.kv_rank :]
        rows[:, 0, :, turned:] = found[:, :, :plain]
        rows[:, 1, :, : self.sizes.v_dim] = found[:, :, plain:]
        rows[:, 1, :, self.sizes.v_dim :] = 0
        qkv.numpy()[:n, heads * head_dim :] = rows.reshape(n, -1)

    def narrowed(self, attended: kernels.Array, n: int) -> kernels.Activation:
        """What attention gave, without the zeros that filled up the values."""
        wide = attended.numpy()[:n].reshape(n, self.heads_of[0], -1)
        self.values.numpy()[:n] = wide[:, :, : self.sizes.v_dim].reshape(n, -1)
        kernels.quantize(self.values, n, self.heads)
        return self.heads

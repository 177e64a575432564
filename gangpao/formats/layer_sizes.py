"""Sizes of what mixes tokens in a layer, other than plain attention: Gated DeltaNet, latent attention."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delta:
    """Sizes of Gated DeltaNet: heads of keys and of values, their widths, tokens that the convolution looks at."""

    k_heads: int
    v_heads: int
    k_dim: int
    v_dim: int
    taps: int

    @property
    def channels(self) -> int:
        """Of the convolution: all queries, keys and values."""
        return 2 * self.k_heads * self.k_dim + self.value_size

    @property
    def value_size(self) -> int:
        """Width of all values."""
        return self.v_heads * self.v_dim

    @property
    def width(self) -> int:
        """Of a token's row in front of the layer: channels, gates, and two numbers for each value head."""
        return self.channels + self.value_size + 2 * self.v_heads


@dataclass(frozen=True, slots=True)
class Latent:
    """Sizes of latent attention: ranks of queries and of keys and values, and the width of a value head. A head of q and k has
    rope_dim dimensions that turn, behind those that do not."""

    q_rank: int
    kv_rank: int
    v_dim: int

"""Sparse attention for long contexts: from a position on, a token looks at some blocks of the cache and not at all of it.

A block is a page of 64 positions. A token always looks at the first block (the attention sink), at the newest blocks, a quarter of
those that it may look at, and at the blocks whose keys promise most: the mean of every 16 keys stands for them, and all heads of a
group choose together. It is InfLLM v2's way (MiniCPM4) without its training: what is left out is lost, so it is an option.
gangpao/model/layers.py says the same in torch.

The rule goes by position alone, in prompts and in answers, so a position's keys do not depend on how it was computed.
"""

from __future__ import annotations

from typing import Protocol

from gangpao import kernels

DENSE = 8192  # positions of which all are looked at, as MiniCPM4.1's own setting has it
LEAST = 1024
FIRST = 1  # blocks


class Attending(Protocol):
    """What of a model's configuration decides how large the means are."""

    @property
    def attention_layers(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def rule_of(positions: int) -> kernels.SparseRule | None:
    """How a token chooses when it may look at so many positions; None for 0: it looks at all. Raises ValueError below LEAST."""
    if positions == 0:
        return None
    if positions < LEAST:
        raise ValueError(f"--sparse {positions}: give at least {LEAST} positions to look at, or 0 for all")
    dense, first, near, chosen = blocks_of(positions)
    return kernels.SparseRule(dense, first, near, chosen)


def blocks_of(positions: int) -> tuple[int, int, int, int]:
    """From which position on, and how many blocks are looked at of the first, the newest, and the best between."""
    blocks = positions // kernels.PAGE
    near = blocks // 4
    return max(DENSE, blocks * kernels.PAGE), FIRST, near, blocks - FIRST - near


def means_bytes(config: Attending, positions: int) -> int:
    """Bytes of the means beside a cache of so many positions: a sixteenth of one in f16."""
    page = kernels.PageMeans.page_bytes(max(1, config.attention_layers), config.num_key_value_heads, config.head_dim)
    return -(-positions // kernels.PAGE) * page

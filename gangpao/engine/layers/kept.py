"""How many bits the cache keeps of keys and values, and which type a model gets where nobody names one.

    f16    16 bits a number
    int8   8, and a scale for 16 of them: 9 in all
    int4   4, and a scale for 32 of them: 4.5 in all. Keys go through a Hadamard transform first, which spreads a few large dims
           over all. A model with biases on its keys (Qwen2.5) has dims so large that 4 bits hold nothing beside them: its keys stay
           at 8 bits, 6.75 in all

The default is f16: that int8 costs less than 0.1 % of perplexity is not shown (docs/long-chats.md has the figures). `auto` is int8,
and f16 for models with biases on their keys.
"""

from __future__ import annotations

import functools
from typing import Literal, Protocol, get_args

KVType = Literal["f16", "int8", "int4"]
KVChoice = Literal["auto", "f16", "int8", "int4"]
KV_TYPES: tuple[KVType, ...] = get_args(KVType)


class Heads(Protocol):
    """What of a model's configuration decides."""

    @property
    def head_dim(self) -> int: ...
    @property
    def key_bias(self) -> bool: ...


@functools.cache
def kv_bits(config: Heads, dtype: KVType) -> tuple[int, int]:
    """Bits of a number of a key, and of a value. Raises ValueError for a type that is unknown, or that the heads
    cannot have."""
    if dtype not in KV_TYPES:
        raise ValueError(f"KV cache type '{dtype}' is unknown; use {', '.join(KV_TYPES[:-1])} or {KV_TYPES[-1]}")
    if dtype == "int4" and config.head_dim % 32:
        raise ValueError(
            f"a KV cache of int4 needs heads in multiples of 32, and this model's are {config.head_dim} wide: use int8"
        )
    return {"f16": (16, 16), "int8": (8, 8), "int4": (8 if config.key_bias else 4, 4)}[dtype]


def chosen_kv(config: Heads, choice: KVChoice, *, float32: bool = False) -> KVType:
    """The type that was asked for; of "auto" the smaller one that costs no quality that can be measured, if there is one.

    float32: whether the model is computed like that, to be compared with programs that keep all bits.
    """
    if choice != "auto":
        return choice
    return "f16" if float32 or config.key_bias else "int8"

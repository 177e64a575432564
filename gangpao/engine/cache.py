"""The keys and values of the positions a model has already seen.

One block of memory for all layers; how it is laid out is the kernels' business (`kernels/src/ops.h`). Memory is taken
from the system page by page as positions are filled, so a large capacity costs nothing until it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.config import ModelConfig

KVType = Literal["f16", "int8"]


class KVCache:
    """State of one sequence: `length` positions are filled, at most `capacity` fit.

    dtype: "f16" (2 bytes a value) or "int8" (16 values share an f16 scale: 1.125 bytes a value).
    inverse and angle_factor are the rotary angles this cache was made for (longrope depends on its capacity).
    """

    def __init__(
        self, config: ModelConfig, capacity: int, dtype: KVType, inverse: npt.NDArray[np.float64], angle_factor: float
    ) -> None:
        if dtype not in ("f16", "int8"):
            raise ValueError(f"KV cache type '{dtype}' is unknown; use f16 or int8")
        if capacity < 1:
            raise ValueError(f"a KV cache of {capacity} positions holds nothing; ask for at least 1")
        self.native = kernels.Cache(
            config.num_hidden_layers, config.num_key_value_heads, config.head_dim, capacity, dtype == "int8"
        )
        self.capacity = capacity
        self.dtype = dtype
        self.inverse = inverse
        self.angle_factor = angle_factor
        self.length = 0

    def reserve(self, tokens: int) -> bool:
        """Whether there is room for that many more positions."""
        return self.length + tokens <= self.capacity

    def truncate(self, length: int) -> None:
        """Forgets every position from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot cut a cache of {self.length} positions to {length}")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return int(self.native.nbytes)

    @staticmethod
    def bytes_needed(config: ModelConfig, capacity: int, dtype: KVType) -> int:
        """Bytes of a full cache, without making one."""
        return int(
            kernels.Cache.bytes_needed(
                config.num_hidden_layers, config.num_key_value_heads, config.head_dim, capacity, dtype == "int8"
            )
        )


class KVPool:
    """placeholder, being replaced by pages"""

    def __init__(self, model: Any, context: int, dtype: KVType, tokens: int | None) -> None:
        self._model, self._context, self._dtype = model, context, dtype
        self.pages = self.pages_used = 0

    def begin(self, ids: Sequence[int]) -> KVCache:
        cache: KVCache = self._model.new_cache(self._context, self._dtype)
        return cache

    def can_hold(self, tokens: int) -> bool:
        return True

    def keep(self, cache: KVCache, ids: Sequence[int]) -> None:
        pass

    def release(self, cache: KVCache) -> None:
        pass

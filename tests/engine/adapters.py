"""Adapters with random values for the tiny models of these tests."""

import numpy as np

from gangpao.engine.adapters import module_shapes
from gangpao.engine.config import ModelConfig
from gangpao.formats.adapters import Adapter, Part

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(
    config: ModelConfig, seed: int, *, rank: int = 4, modules=EVERY, size: float = 0.5, scale=0.7
) -> Adapter:
    """On the named modules of all layers (and "lm_head"); what it adds is about `size` times as large as what it is added to."""
    rng = np.random.default_rng(seed)
    parts = {}
    for name, (rows, cols) in module_shapes(config).items():
        if name.split(".")[-1] in modules:
            a = rng.normal(size=(rank, cols)) / cols**0.5
            b = rng.normal(size=(rows, rank)) / rank**0.5
            parts[name] = Part(a.astype(np.float32), (b * size / scale).astype(np.float32), scale)
    return Adapter(parts)

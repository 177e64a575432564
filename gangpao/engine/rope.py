"""Rotary angles: one inverse frequency for each rotated pair, stretched for long contexts, then cosines and sines.

Every variant only changes the inverse frequencies and a factor on the cosine and sine, so the kernels know none of
them. Sources: RoFormer (2104.09864), position interpolation (2306.15595), NTK-aware scaling (base change), YaRN
(2309.00071), LongRoPE (2402.13753); constants as llama.cpp applies them, because the files were made for it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gangpao.engine.config import ModelConfig

Floats = npt.NDArray[np.float32]


def inverse_frequencies(
    config: ModelConfig, *, context: int, factors: dict[str, Floats] | None = None
) -> tuple[npt.NDArray[np.float64], float]:
    """Angles per position, [rope_dim / 2], and the factor on cosine and sine.

    context: the length this cache is made for; longrope takes its long factors when it exceeds the trained length.
    factors: optional divisors from the file: "freqs" (Llama 3), "long" and "short" (longrope), each [rope_dim / 2].
    """
    scaling = config.rope_scaling
    half = config.rope_dim // 2
    theta = config.rope_theta
    if scaling.kind == "ntk":
        theta *= scaling.factor ** (config.rope_dim / (config.rope_dim - 2))
    inverse = theta ** (-np.arange(half, dtype=np.float64) / half)
    factors = factors or {}
    if "freqs" in factors:
        inverse = inverse / factors["freqs"]
    elif scaling.kind == "longrope":
        which = "long" if context > scaling.original_context else "short"
        if which not in factors:
            raise ValueError(
                f"longrope needs rope_factors_{which}.weight, which the file lacks; convert the model again"
            )
        inverse = inverse / factors[which]
    if scaling.kind in ("linear", "longrope"):
        inverse = inverse / scaling.factor
    if scaling.kind == "yarn":
        inverse = _yarn(inverse, config)
        return inverse, (1.0 + 0.1 * math.log(scaling.factor)) * scaling.attention_factor
    return inverse, scaling.attention_factor


def _yarn(inverse: npt.NDArray[np.float64], config: ModelConfig) -> npt.NDArray[np.float64]:
    """Interpolates slow pairs, keeps fast ones, blends between (YaRN, section 3.2)."""
    s = config.rope_scaling

    def pair_of(rotations: float) -> float:  # the pair that turns this often over the trained length
        turns = s.original_context / (rotations * 2 * math.pi)
        return config.rope_dim * math.log(turns) / (2 * math.log(config.rope_theta))

    low = max(0.0, math.floor(pair_of(s.beta_fast)))
    high = min(config.rope_dim - 1.0, math.ceil(pair_of(s.beta_slow)))
    ramp = (np.arange(len(inverse)) - low) / max(0.001, high - low)
    keep = 1.0 - np.clip(ramp, 0.0, 1.0)
    blended: npt.NDArray[np.float64] = inverse / s.factor * (1.0 - keep) + inverse * keep
    return blended


def fill_angles(
    inverse: npt.NDArray[np.float64], factor: float, positions: npt.NDArray[np.int64], cos: Floats, sin: Floats
) -> None:
    """Writes cosines and sines of the positions [tokens] into cos and sin, both [tokens, rope_dim / 2]."""
    angles = positions[:, None].astype(np.float64) * inverse[None, :]
    np.multiply(np.cos(angles), factor, out=cos, casting="unsafe")
    np.multiply(np.sin(angles), factor, out=sin, casting="unsafe")

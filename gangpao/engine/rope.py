"""Rotary angles: one inverse frequency for each rotated pair, stretched for long contexts, then cosines and sines.

Every variant only changes the inverse frequencies and a factor on the cosine and sine, so the kernels know none of
them. Sources: RoFormer (2104.09864), position interpolation (2306.15595), NTK-aware scaling (base change), YaRN
(2309.00071), LongRoPE (2402.13753); constants as llama.cpp applies them, because the files were made for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from gangpao.engine import exact
from gangpao.engine.config import ModelConfig
from gangpao.formats.rope_axes import axes_of_pairs

Floats = npt.NDArray[np.float32]
_BLOCK = 256  # positions whose angles are worked out together
_QUARTER = math.pi / 2


def _parts(value: str, bits: int) -> tuple[float, float, float]:
    """A constant as a sum of doubles, all but the last of so few bits that their products with whole numbers are exact."""
    rest, out = Fraction(value), []
    for _ in range(2):
        exponent = math.frexp(float(rest))[1]
        unit = Fraction(2) ** (exponent - bits)
        out.append(float(math.floor(rest / unit) * unit))
        rest -= Fraction(out[-1])
    return out[0], out[1], float(rest)


# Pi / 2, whose products with up to 2^20 quarters are exact in the first two parts.
_QUARTER_PARTS = _parts("1.57079632679489661923132169163975144209858469968755291", bits=33)


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
        theta *= exact.power(scaling.factor, Fraction(config.rope_dim, config.rope_dim - 2))
    inverse = plain_frequencies(theta, half)
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
        return inverse, (1.0 + 0.1 * exact.log(scaling.factor)) * scaling.attention_factor
    return inverse, scaling.attention_factor


def plain_frequencies(theta: float, half: int) -> npt.NDArray[np.float64]:
    """theta^(-i / half), for i below half."""
    return np.array([exact.power(theta, Fraction(-i, half)) for i in range(half)])


def _yarn(inverse: npt.NDArray[np.float64], config: ModelConfig) -> npt.NDArray[np.float64]:
    """Interpolates slow pairs, keeps fast ones, blends between (YaRN, section 3.2)."""
    s = config.rope_scaling

    def pair_of(rotations: float) -> float:  # the pair that turns this often over the trained length
        turns = s.original_context / (rotations * 2 * math.pi)
        return config.rope_dim * exact.log(turns) / (2 * exact.log(config.rope_theta))

    low = max(0.0, math.floor(pair_of(s.beta_fast)))
    high = min(config.rope_dim - 1.0, math.ceil(pair_of(s.beta_slow)))
    ramp = (np.arange(len(inverse)) - low) / max(0.001, high - low)
    keep = 1.0 - np.clip(ramp, 0.0, 1.0)
    blended: npt.NDArray[np.float64] = inverse / s.factor * (1.0 - keep) + inverse * keep
    return blended


class Angles:
    """Cosines and sines of positions, [rope_dim / 2] each, worked out once for every position up to the furthest that occurred.

    Only additions, multiplications and roundings of doubles, each rounded as IEEE 754 says, so the bits are the same on every
    machine. The functions of numpy and of C libraries are not: their last bit depends on the processor's instructions.
    """

    def __init__(self, inverse: npt.NDArray[np.float64], factor: float, sections: Sequence[int] = ()) -> None:
        self._inverse, self._factor = inverse, factor
        axes = np.array(axes_of_pairs(sections, len(inverse)) if sections else [0] * len(inverse))
        self._pairs_of = [np.flatnonzero(axes == axis) for axis in range(3)]
        self._cos = self._sin = np.empty((0, len(inverse)), np.float32)

    def identity(self) -> tuple[bytes, ...]:
        """What decides the angles of a position."""
        axes = np.concatenate([[len(pairs), *pairs] for pairs in self._pairs_of]).astype(np.int64)
        return self._inverse.tobytes(), np.float64(self._factor).tobytes(), axes.tobytes()

    def take(self, positions: npt.NDArray[np.int64], cos: Floats, sin: Floats) -> None:
        """Writes those of the positions [tokens], or [3, tokens] (time, row, column), into cos and sin, [tokens, rope_dim / 2]."""
        self._reach(int(positions.max()) + 1)
        if positions.ndim == 2:
            for axis, pairs in zip(positions, self._pairs_of, strict=True):
                cos[:, pairs], sin[:, pairs] = self._cos[axis[:, None], pairs], self._sin[axis[:, None], pairs]
            return
        np.take(self._cos, positions, axis=0, out=cos)
        np.take(self._sin, positions, axis=0, out=sin)

    def _reach(self, length: int) -> None:
        have = len(self._cos)
        if length <= have:
            return
        cos, sin = [self._cos], [self._sin]
        for begin in range(have, max(length, 2 * have), _BLOCK):  # what a block needs on the way stays in the cache
            angles = np.arange(begin, begin + _BLOCK, dtype=np.float64)[:, None] * self._inverse[None, :]
            c, s = cosines_and_sines(angles)
            cos.append((c * self._factor).astype(np.float32))
            sin.append((s * self._factor).astype(np.float32))
        self._cos, self._sin = np.concatenate(cos), np.concatenate(sin)


def cosines_and_sines(angles: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of angles from 0 to 2^20 radians, within 1e-15 (the error of the reduction to a quarter turn; float32 needs 6e-8)."""
    quarters = np.rint(angles * (1 / _QUARTER))
    rest = angles - quarters * _QUARTER_PARTS[0]
    rest = rest - quarters * _QUARTER_PARTS[1]
    rest = rest - quarters * _QUARTER_PARTS[2]
    square = rest * rest
    cos = _polynomial(square, range(0, 20, 2))
    sin = _polynomial(square, range(1, 21, 2)) * rest
    turn = quarters.astype(np.int64) % 4
    odd = turn % 2 == 1
    return (
        np.where(odd, sin, cos) * np.where((turn == 1) | (turn == 2), -1.0, 1.0),
        np.where(odd, cos, sin) * np.where(turn >= 2, -1.0, 1.0),
    )


def _polynomial(square: npt.NDArray[np.float64], powers: range) -> npt.NDArray[np.float64]:
    """The Taylor series of cosine (even powers) or of sine over x (odd ones); what is left out is below 1e-19 at an eighth turn."""
    out = np.zeros_like(square)
    for n in reversed(powers):
        out = out * square + (-1) ** (n // 2) / math.factorial(n)
    return out

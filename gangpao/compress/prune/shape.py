"""Which smaller shapes a model can take, and what is asked of one: numbers or shares, checked, with the possible ones named.

A shape is the five numbers that config.json says once for all layers, so every layer keeps equally many channels and heads; which
ones is each layer's own choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gangpao.model.config import ModelConfig
from gangpao.model.count import parameters

Target = int | float
_SHOWN = 8


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """heads: query heads, a whole multiple of kv_heads. ffn: intermediate_size. width: hidden_size."""

    layers: int
    ffn: int
    heads: int
    kv_heads: int
    width: int

    @classmethod
    def of(cls, c: ModelConfig) -> Shape:
        """The shape that a model has."""
        return cls(
            c.num_hidden_layers, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.hidden_size
        )

    def words(self) -> str:
        """In a few words, for people."""
        return (
            f"{self.layers} layers, {self.width} wide, FFN {self.ffn}, {self.heads} heads over {self.kv_heads} of keys"
        )


def pruned_config(c: ModelConfig, shape: Shape) -> ModelConfig:
    """The configuration of the smaller model, with every constant that depends on the shape adjusted, so that the function stays.

    scale_depth / sqrt(layers) is the factor of every branch, and dim_model_base / hidden_size of the logits; the second can only be
    kept up to the rounding of dim_model_base, the rest is for the last norm (cut.py). The norms' epsilon is added to a mean over
    hidden_size channels. Head width and rotary angles stay.
    """
    changes: dict[str, object] = {
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_size": shape.width,
    }
    if c.scale_depth is not None:
        changes["scale_depth"] = c.scale_depth * math.sqrt(shape.layers / c.num_hidden_layers)
    if c.dim_model_base is not None:
        changes["dim_model_base"] = max(1, round(c.dim_model_base * shape.width / c.hidden_size))
    if shape.width != c.hidden_size:
        changes["rms_norm_eps"] = c.rms_norm_eps * c.hidden_size / shape.width
    return ModelConfig.model_validate(c.model_dump() | changes)


def total(c: ModelConfig, shape: Shape) -> int:
    """Parameters of the model in this shape, embedding and head too."""
    return parameters(pruned_config(c, shape)).total


def resolve(name: str, wanted: Target | None, full: int, multiple: int = 1) -> int:
    """The number that is meant: a whole number itself, or a share (a number with a point) of `full`, to the nearest multiple.

    Raises ValueError for what is not possible, naming what is.
    """
    if wanted is None:
        return full
    multiple = multiple if full % multiple == 0 else 1
    if isinstance(wanted, float):
        if not 0 < wanted <= 1:
            raise ValueError(
                f"{name} = {wanted} is not a share: give 0.0 < share <= 1.0, or a whole number up to {full}"
            )
        return min(full, max(multiple, multiple * round(wanted * full / multiple)))
    if not 1 <= wanted <= full:
        raise ValueError(f"{name} = {wanted}: the model has {full}, so 1 to {full} can stay")
    if wanted % multiple:
        low = wanted // multiple * multiple
        near = [n for n in (low, low + multiple) if n]
        raise ValueError(
            f"{name} = {wanted} is not a multiple of {multiple}, which quantized types need: possible are "
            f"{' and '.join(map(str, near))} (multiple = 1 allows all)"
        )
    return wanted


def head_choices(c: ModelConfig, heads: Target | None, kv_heads: Target | None) -> list[tuple[int, int]]:
    """All (heads, kv_heads) that answer to the targets: kv_heads whole groups, equally many query heads in each.

    A share goes to the nearest possible number. Raises ValueError for what grouped-query attention cannot have.
    """
    full, groups = c.num_attention_heads, c.num_key_value_heads
    per_group = full // groups
    wanted_groups = None if kv_heads is None else resolve("kv_heads", kv_heads, groups)
    legal = {
        (k * g, k)
        for k in range(1, groups + 1)
        for g in range(1, per_group + 1)
        if wanted_groups is None or k == wanted_groups
    }
    if heads is None:
        number = full if wanted_groups is None else wanted_groups * per_group
    else:
        number = resolve("heads", heads, full)
        if isinstance(heads, float):
            number = min({n for n, _ in legal}, key=lambda n: (abs(n - heads * full), -n))
    found = sorted((n, k) for n, k in legal if n == number)
    if not found:
        possible = ", ".join(str(n) for n in sorted({n for n, _ in legal}))
        raise ValueError(
            f"heads = {number}: {full} heads share {groups} heads of keys, and every one that stays needs equally many"
            f"{'' if wanted_groups is None else f' (kv_heads = {wanted_groups})'}: possible are {possible}"
        )
    return found


def steps_down(full: int, multiple: int, least: float) -> Iterator[int]:
    """full and smaller numbers in eighths of it, at least `least` of it; multiples where full is one."""
    multiple = multiple if full % multiple == 0 else 1
    seen = set()
    for eighth in range(8, 0, -1):
        number = max(multiple, multiple * round(full * eighth / 8 / multiple))
        if number >= least * full and number not in seen:
            seen.add(number)
            yield number


def ffn_for(c: ModelConfig, shape: Shape, wanted: int, multiple: int) -> int | None:
    """The FFN width with which the shape has at most `wanted` parameters and as near to it as can be; None where there is none."""
    multiple = multiple if c.intermediate_size % multiple == 0 else 1
    one = 3 * shape.width * shape.layers
    rest = total(c, shape) - one * shape.ffn
    found = (wanted - rest) // one // multiple * multiple
    return found if multiple <= found <= c.intermediate_size else None

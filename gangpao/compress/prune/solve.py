"""The combination of cuts that loses least for a number of parameters, of those that are measured.

Layers, heads and width go down in eighths of what the model has, and the FFN takes what is left of the parameters. All these
shapes are ranked by a guess: the shares of importance that channels and heads lose, and cosines of layers, added up. The best of
each number of layers and width, and then the next best, are cut in memory and measured on calibration text.

What it gives up: shapes are compared before any healing, where cutting layers looks worse than it is after some training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gangpao.compress.prune.scores import Scores, lost_ffn, lost_heads, lost_width
from gangpao.compress.prune.shape import Shape, Target, ffn_for, head_choices, resolve, steps_down, total
from gangpao.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a shape. multiple: of ffn and width; least: smallest share of what is solved for."""

    layers: Target | None
    ffn: Target | None
    heads: Target | None
    kv_heads: Target | None
    width: Target | None
    parameters: Target | None
    multiple: int
    least: float


def shapes(c: ModelConfig, w: Wanted) -> list[Shape]:
    """The shapes that answer. Without `parameters` they differ in the grouping of heads only.

    Raises ValueError where there is none, saying what is possible.
    """
    if w.parameters is None:
        layers = resolve("layers", w.layers, c.num_hidden_layers)
        ffn = resolve("ffn", w.ffn, c.intermediate_size, w.multiple)
        width = resolve("width", w.width, c.hidden_size, w.multiple)
        return [Shape(layers, ffn, h, k, width) for h, k in head_choices(c, w.heads, w.kv_heads)]
    full = total(c, Shape.of(c))
    number = resolve("parameters", w.parameters, full)
    grid = _grid(c, w)
    out = []
    for shape in grid:
        channels = shape.ffn if w.ffn is not None else ffn_for(c, shape, number, w.multiple)
        if channels is not None:
            found = Shape(shape.layers, channels, shape.heads, shape.kv_heads, shape.width)
            if total(c, found) <= number:
                out.append(found)
    if not out:
        low = Shape(**{**_smallest(grid), "ffn": resolve("ffn", w.ffn, c.intermediate_size, w.multiple)})
        if w.ffn is None:
            low = Shape(low.layers, w.multiple, low.heads, low.kv_heads, low.width)
        raise ValueError(
            f"parameters = {w.parameters}: {number:,} cannot be reached; the smallest shape here ({low.words()}) has "
            f"{total(c, low):,} of {full:,} parameters. Give a larger number, a smaller `least`, or other fixed targets"
        )
    return sorted(set(out))


def _grid(c: ModelConfig, w: Wanted) -> list[Shape]:
    layers = [resolve("layers", w.layers, c.num_hidden_layers)] if w.layers is not None else None
    width = [resolve("width", w.width, c.hidden_size, w.multiple)] if w.width is not None else None
    ffn = resolve("ffn", w.ffn, c.intermediate_size, w.multiple)
    if w.heads is not None or w.kv_heads is not None:
        heads = head_choices(c, w.heads, w.kv_heads)
    else:
        numbers = steps_down(c.num_attention_heads, 1, w.least)
        heads = sorted({pair for n in numbers for pair in head_choices(c, n / c.num_attention_heads, None)})
    return [
        Shape(n, ffn, h, k, d)
        for n in layers or steps_down(c.num_hidden_layers, 1, w.least)
        for h, k in heads
        for d in width or list(steps_down(c.hidden_size, w.multiple, w.least))
    ]


def _smallest(grid: Sequence[Shape]) -> dict[str, int]:
    small = min(grid, key=lambda s: (s.layers * s.width, s.width, s.heads, s.kv_heads))
    return {"layers": small.layers, "heads": small.heads, "kv_heads": small.kv_heads, "width": small.width}


def guess(c: ModelConfig, s: Scores, shape: Shape, lost_layers: float) -> float:
    """How much a shape may lose: a number for ranking only."""
    return (
        lost_ffn(s, shape.ffn)
        + lost_heads(c, s, shape.heads, shape.kv_heads)
        + 2 * lost_width(s, shape.width)
        + lost_layers
    )  # a channel of the stream is missed by attention and by FFN


def chosen(ranked: Sequence[tuple[float, Shape]], count: int) -> list[Shape]:
    """The shapes to measure: the best of each (layers, width), best first, then the next best."""
    first: list[Shape] = []
    rest: list[Shape] = []
    seen = set()
    for _, shape in sorted(ranked):
        pair = (shape.layers, shape.width)
        (rest if pair in seen else first).append(shape)
        seen.add(pair)
    return [*first, *rest][:count]

"""What pages of sweeps share, from a sweep as JSON (`Sweep.json`): its interval, its points, the noise between seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.experiments.sweep import opened
from gangpao.sandbox.experiments.text import page

Sweep = Mapping[str, Any]


def interval(sweep: Sweep, form: str = ".3g") -> str:
    """The 95 % interval of its best value; of an open one the end that is known."""
    low, high = sweep["bounds"]
    return span(low, high, form)


def span(low: float, high: float | None, form: str = ".3g") -> str:
    """An interval of a positive number as text: 0 and None are open ends."""
    return page.span(*opened(low, math.inf if high is None else high), form)


def losses(sweep: Sweep) -> list[float]:
    """Infinite where it diverged."""
    return [math.inf if loss is None else loss for loss in sweep["bpb"]]


def good(sweep: Sweep) -> tuple[list[float], list[float]]:
    """Values that ended well, and their losses."""
    pairs = [(x, loss) for x, loss in zip(sweep["x"], sweep["bpb"], strict=True) if loss is not None]
    return [x for x, _ in pairs], [loss for _, loss in pairs]


def walls(sweep: Sweep) -> list[float]:
    """Values that diverged."""
    return [x for x, loss in zip(sweep["x"], sweep["bpb"], strict=True) if loss is None]


def noise_said(noise: float | None, table: str) -> Text:
    """How far seeds scatter, in bits per byte. table: of the configuration."""
    if noise is None:
        return Text(
            f"With one seed the noise between seeds is not known: give {table}.seeds two values or more.",
            f"只有一个种子，种子间噪声未知：请给 {table}.seeds 两个以上的值。",
        )
    return Text(f"Noise between seeds: {noise:.4f} bits per byte.", f"种子间噪声：每字节 {noise:.4f} 比特。")

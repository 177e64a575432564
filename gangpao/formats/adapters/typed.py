"""Adapters as they are typed: PATH[:SCALE], where PATH is a PEFT folder, a run or a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

MAX_SCALE = 1e6  # beside an adapter's own alpha / rank


def split_scale(text: str) -> tuple[Path, float]:
    """A path and a scale, 1 where none is said. What exists as it stands is a path, colons and all; so is an end without a number.

    Raises ValueError for an ending that is meant as a scale and is none that can be used.
    """
    whole = Path(text).expanduser()
    path, colon, scale = text.rpartition(":")
    if whole.exists() or not colon or not path:
        return whole, 1.0
    place = Path(path).expanduser()
    try:
        value = float(scale)
    except ValueError:
        if not place.exists() and not scale.lstrip("+-.")[:1].isdigit():
            return whole, 1.0
        there = f"{path} is there" if place.exists() else "there is no such path"
        raise ValueError(
            f"--adapter {text!r:.80}: {there}, and {scale!r:.20} is no scale; write PATH or PATH:0.5, with a decimal point"
        ) from None
    if not (math.isfinite(value) and abs(value) <= MAX_SCALE):
        raise ValueError(
            f"--adapter {text!r:.80}: the scale {scale!r:.20} must be a number of at most {MAX_SCALE:g}, such as 0.5"
        )
    return place, value


def chosen(given: Iterable[str] | None) -> dict[str, tuple[Path, float]]:
    """Adapters of a command that answers: name -> file and scale. Raises ValueError for one that is given twice."""
    found: dict[str, tuple[Path, float]] = {}
    for one in given or ():
        path, scale = split_scale(one)
        if str(path) in found:
            raise ValueError(f"--adapter {one}: {path} is given twice; give it once with the sum of the scales")
        found[str(path)] = path, scale
    return found

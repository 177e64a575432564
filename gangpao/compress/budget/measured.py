"""What was measured, in a folder or for this run alone, and how a divergence of running corrects the ones of gradients.

The gradients see second order and rows apart; running sees everything, but costs a run a question. So each kind of tensor
(attn_q, ffn_down, ...) is run twice, all its layers rounded hard and rounded moderately, and the tensors of the kind are scaled by
what came over what was foretold, between the two by their bits a weight.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from gangpao.compress.budget.layout import Layout
from gangpao.evaluate.journal import Journal

_MODERATE = 4.5  # bits a weight at which a kind is run the second time
_MOST_RATIO = 8.0  # between running and gradients; beyond it one of the two is noise

Scores = Mapping[str, Mapping[str, Sequence[float]]]


class Store(Protocol):
    """Answers by key."""

    def get(self, key: str) -> Any: ...
    def put(self, key: str, answer: Any) -> None: ...


class Memory(dict[str, Any]):
    """Answers of this run alone."""

    def put(self, key: str, answer: Any) -> None:
        self[key] = answer


def store(folder: Path | None, identity: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Where measurements are kept. Raises ValueError where the folder holds those of another model or other texts."""
    return nullcontext(Memory()) if folder is None else Journal(folder, identity)


def kind_of(name: str) -> str:
    """blk.3.attn_q.weight -> attn_q."""
    return name.removesuffix(".weight").rpartition(".")[2]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def key_of_mixture(types: Mapping[str, str]) -> str:
    text = json.dumps(sorted(types.items()))
    return f"mixture {hashlib.sha256(text.encode()).hexdigest()[:24]}"


class Ratios:
    """By kind what running gave over what gradients foretold, at two points in bits a weight."""

    def __init__(self, layout: Layout, points: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        self._layout, self.points = layout, points

    def at(self, name: str, kind: str) -> float:
        """The factor for a tensor at a type: between two points by bits, beyond them the nearer one."""
        points = sorted(self.points.get(kind_of(name), ()))
        if not points:
            return 1.0
        bits = bits_of(self._layout, name, kind)
        for (low, at_low), (high, at_high) in itertools.pairwise(points):
            if low <= bits <= high and high > low:
                share = (bits - low) / (high - low)
                return math.exp((1 - share) * math.log(at_low) + share * math.log(at_high))
        return points[0][1] if bits < points[0][0] else points[-1][1]


def bits_of(layout: Layout, name: str, kind: str) -> float:
    """Bits a weight of one tensor."""
    return 8 * layout.nbytes(name, kind) / math.prod(layout.tensors[name])


def probes(layout: Layout, candidates: Mapping[str, Sequence[str]]) -> list[tuple[str, dict[str, str]]]:
    """(kind, types of its tensors) to run: each kind at its smallest types, and at those nearest to 4.5 bits where these are
    others."""
    kinds: dict[str, list[str]] = {}
    for name in candidates:
        kinds.setdefault(kind_of(name), []).append(name)
    found = []
    for kind, names in kinds.items():
        small = {name: candidates[name][0] for name in names}
        moderate = {
            name: min(candidates[name], key=lambda c: (abs(bits_of(layout, name, c) - _MODERATE), c)) for name in names
        }
        found += [(kind, types) for types in ([small] if small == moderate else [small, moderate])]
    return found


def ratios_of(
    layout: Layout,
    scores: Scores,
    asked: Sequence[tuple[str, dict[str, str]]],
    run: Callable[[Mapping[str, str]], Sequence[float]],
) -> Ratios:
    """Run every probe. A kind of which gradients foretell nothing keeps a factor of 1."""
    points: dict[str, list[tuple[float, float]]] = {}
    for kind, types in asked:
        foretold = math.fsum(mean(scores[name][one]) for name, one in types.items())
        came = mean(run(types))
        bits = mean([bits_of(layout, name, one) for name, one in types.items()])
        ratio = came / foretold if foretold > 0 and came > 0 else 1.0
        points.setdefault(kind, []).append((bits, min(max(ratio, 1 / _MOST_RATIO), _MOST_RATIO)))
    return Ratios(layout, points)

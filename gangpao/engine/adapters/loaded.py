"""The adapters beside a loaded model: A and B of each, packed for the kernels, and the mixes of them that sequences name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.adapters.base import MODULES, check
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.weights import Weights
from gangpao.formats.adapters import Adapter, Part
from gangpao.formats.adapters.adapter import HEAD

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.int8]
LowRankSource = tuple[Bytes, Bytes, Floats, Floats] | tuple[Floats, Floats, Floats, Floats]


class LayerTables:
    """What the adapters add to each linear layer of one block."""

    __slots__ = tuple(MODULES)

    def __init__(self) -> None:
        for name in MODULES:
            setattr(self, name, kernels.LowRankTable())

    qkv: kernels.LowRankTable
    o: kernels.LowRankTable
    gate_up: kernels.LowRankTable
    down: kernels.LowRankTable


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """An adapter beside a model. scale: what it is used with where none is named; nbytes: of A and B in memory;
    digest: of their numbers."""

    number: int
    scale: float
    nbytes: int
    digest: str


class Adapters:
    """The adapters of one model. `chosen` is what a sequence is computed with that names none: the base, unless it is set."""

    def __init__(self, config: ModelConfig, weights: Weights, *, float32: bool = False) -> None:
        self.layers = [LayerTables() for _ in weights.layers]
        self.head: kernels.LowRankTable | None = None  # as soon as one changes the head
        self.chosen: Mix = ()
        self._head = kernels.LowRankTable()
        self._config = config
        self._weights = weights
        self.float32 = float32
        self._loaded: dict[str, LoadedAdapter] = {}

    def __len__(self) -> int:
        return len(self._loaded)

    def __getitem__(self, name: str) -> LoadedAdapter:
        return self._loaded[name]

    def loaded(self) -> list[LoadedAdapter]:
        """In the order in which they came."""
        return list(self._loaded.values())

    def names(self) -> list[str]:
        """In the order in which they came."""
        return list(self._loaded)

    def bytes_of_mix(self, mix: Mix) -> int:
        """Bytes that a step reads of these adapters."""
        used = {number for number, _ in mix}
        return sum(one.nbytes for one in self._loaded.values() if one.number in used)

    def add(self, name: str, adapter: Adapter, scale: float = 1.0) -> None:
        """Put an adapter beside the model. Raises ValueError for one of another base, and for what is not computed here."""
        if name in self._loaded:
            raise ValueError(f"an adapter is called {name} already; give this one another name")
        self._put(name, adapter, scale, len(self._loaded))

    def replace(self, name: str, adapter: Adapter) -> None:
        """Put another version of an adapter in its place, with its scale. What was computed with the old one, caches among it, is
        none of its business. Raises ValueError as `add` does."""
        before = self._loaded[name]
        self._put(name, adapter, before.scale, before.number)

    def _put(self, name: str, adapter: Adapter, scale: float, number: int) -> None:
        try:
            check(adapter, self._config)
            packed = list(self._packed(adapter))
        except ValueError as error:
            raise ValueError(f"adapter {name}: {error}") from None
        size = sum(low_rank.nbytes for _, low_rank in packed if low_rank is not None)
        added = LoadedAdapter(number, _checked(name, scale), size, _digest(adapter))
        for table, low_rank in packed:
            table.set(added.number, low_rank)
        if HEAD in adapter.parts:
            self.head = self._head
        self._loaded[name] = added

    def _packed(self, adapter: Adapter) -> Iterator[tuple[kernels.LowRankTable, kernels.LowRank | None]]:
        """What it adds to each linear layer, None where it changes nothing, and the table in which that belongs."""
        arena = kernels.Arena()
        places = [
            (getattr(tables, place), linear, [f"model.layers.{i}.{module}" for module in MODULES[place]])
            for i, (layer, tables) in enumerate(zip(self._weights.layers, self.layers, strict=True))
            for place, linear in layer.adaptable().items()
        ]
        for table, layer, names in [*places, (self._head, self._weights.head, [HEAD])]:
            parts = [adapter.parts.get(name) for name in names]
            sources = [None if part is None else self._source(part) for part in parts]
            yield table, kernels.LowRank(layer, sources, arena) if any(parts) else None

    def _source(self, part: Part) -> LowRankSource:
        """A and B as they are packed, and their factors."""
        a, b = (
            np.ascontiguousarray(part.a, np.float32),
            np.ascontiguousarray(part.b * np.float32(part.scale), np.float32),
        )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("a value of it is not a number, or infinite; it is damaged, or its training failed")
        return (a, b, *_ones(part)) if self.float32 else quantize(a, b)

    def mix(self, adapters: Mapping[str, float | None]) -> Mix:
        """What to compute a sequence with: names -> scales, None for an adapter's own; 0 is without it. Raises ValueError."""
        out = []
        for name, scale in adapters.items():
            if name not in self._loaded:
                there = f"there are {', '.join(self._loaded)}" if self._loaded else "there are none"
                raise ValueError(f"there is no adapter {name!r:.100} here; {there}")
            found = self._loaded[name]
            out.append((found.number, found.scale if scale is None else _checked(name, scale)))
        return tuple(sorted((number, scale) for number, scale in out if scale))


def quantize(a: Floats, b: Floats) -> tuple[Bytes, Bytes, Floats, Floats]:
    """A [rank, in] and B [out, rank] in int8, a factor for each rank and one for each 16 outputs.

    b @ a is nearly panel factor * (B @ (rank factor * A)). Each rank has its own length in A and in B, and each 16 outputs in B.
    """
    padded = np.zeros((-(-len(b) // 16) * 16, b.shape[1]), np.float32)
    padded[: len(b)] = b
    a_factor, column = _steps(a, 1), _steps(padded, 0)
    panels = (padded / column).reshape(-1, 16, b.shape[1])
    panel_factor = _steps(panels, (1, 2))
    b8 = np.rint(panels / panel_factor).astype(np.int8).reshape(-1, b.shape[1])[: len(b)]
    return np.rint(a / a_factor).astype(np.int8), b8, (a_factor[:, 0] * column[0]), panel_factor.reshape(-1)


def _steps(m: Floats, axis: int | tuple[int, ...]) -> Floats:
    """What divides values so that the largest of each is 127; 1 where all are as good as 0."""
    top = np.abs(m).max(axis=axis, keepdims=True)
    out: Floats = np.where(top > 1e-30, top / np.float32(127), np.float32(1))
    return out


def _digest(adapter: Adapter) -> str:
    """A name for what an adapter adds, 32 hexadecimal digits."""
    found = hashlib.sha256()
    for name, part in sorted(adapter.parts.items()):
        found.update(f"{name} {part.a.shape} {part.b.shape} {part.scale!r}".encode())
        for array in (part.a, part.b, part.magnitude):
            found.update(b"" if array is None else np.ascontiguousarray(array).data)
    for name, whole in sorted(adapter.whole.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(whole).data)
    return found.hexdigest()[:32]


def _ones(part: Part) -> tuple[Floats, Floats]:
    return np.ones(part.rank, np.float32), np.ones(-(-len(part.b) // 16), np.float32)


def _checked(name: str, scale: float) -> float:
    """A scale that floats can hold; what is no such number is an error."""
    if not (math.isfinite(scale) and abs(scale) <= 1e6):
        raise ValueError(f"adapter {name}: scale {scale} must be a number from -1000000 to 1000000")
    return float(np.float32(scale))

"""Which layers a model can best do without.

A score: `influence` is 1 - cosine between what goes into a layer and what comes out (block influence, arXiv:2403.03853), from one
forward pass; `loss` and `kl` are measured with the layer left out. A search: `each` scores every layer once and leaves out the
lowest; `greedy` measures again after each layer that went; `block` leaves out neighbours only (arXiv:2403.17887), the best block of
that length. Measurements are kept in a file, so a search that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

LayerScore = Literal["influence", "kl", "loss"]
LayerSearch = Literal["each", "greedy", "block"]
Without = Callable[[tuple[int, ...]], float]


class Remembered:
    """A measurement by its key (integers), remembered in a file of JSON lines; a line that was cut short is measured again."""

    def __init__(self, path: Path, measure: Callable[[tuple[int, ...]], float]) -> None:
        self.path, self.measure = path, measure
        self.known: dict[tuple[int, ...], float] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.split("\n")
        if lines.pop():  # the end of a killed process
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        for line in lines:
            row = json.loads(line)
            self.known[tuple(row["key"])] = float(row["value"])

    def __call__(self, key: tuple[int, ...]) -> float:
        if key not in self.known:
            self.known[key] = self.measure(key)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": list(key), "value": self.known[key]}) + "\n")
        return self.known[key]


class Order:
    """Which layers stay, for any number of them. cosine: [L+1, L+1] of statistics.py. without(left out): how bad that is."""

    def __init__(self, count: int, score: LayerScore, search: LayerSearch, cosine: Tensor, without: Without) -> None:
        self.count, self.search = count, search
        if score == "influence":
            self.without: Without = lambda gone: sum(1 - float(cosine[first, last + 1]) for first, last in _runs(gone))
        else:
            self.without = without
        self._gone: list[int] = []

    def stays(self, number: int) -> tuple[int, ...]:
        """The `number` layers that stay, ascending."""
        gone = self._leave_out(self.count - number)
        return tuple(i for i in range(self.count) if i not in gone)

    def _leave_out(self, number: int) -> set[int]:
        if number == 0:
            return set()
        if self.search == "block":
            firsts = range(self.count - number + 1)
            first = min(firsts, key=lambda i: self.without(tuple(range(i, i + number))))
            return set(range(first, first + number))
        if self.search == "each":
            return set(sorted(range(self.count), key=lambda i: self.without((i,)))[:number])
        while len(self._gone) < number:
            rest = [i for i in range(self.count) if i not in self._gone]
            self._gone.append(min(rest, key=lambda i: self.without(tuple(sorted([*self._gone, i])))))
        return set(self._gone[:number])


def _runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of neighbours."""
    out: list[tuple[int, int]] = []
    for i in layers:
        if out and out[-1][1] == i - 1:
            out[-1] = (out[-1][0], i)
        else:
            out.append((i, i))
    return out

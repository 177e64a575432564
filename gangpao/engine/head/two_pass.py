"""Logits by the upper bits of the head, then by all bits where a token may be wanted (kernels/src/candidates.h).

The head is the largest matrix of a small model, and a choice wants a few of its rows. The first plane tells for each row between
which bounds the logit lies; only panels with rows that may be wanted are read whole. What is found has the bits of the full
product, so no answer changes. Bounds are the closer the more of a hidden state lies in known directions: those in which most of the
first states lie are learned, and learned anew after many more.

Where bounds leave too much of the vocabulary (flat distributions, long lists), the search would cost more than it saves: it is left
off for a while, by what was seen for lists of that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.sample import Need

Floats = npt.NDArray[np.float32]

DIRECTIONS = 4  # each costs 4 bytes a row of the head; more leave hardly fewer candidates (docs/kernels-decode.md)
KEPT = 64  # rows that directions are learned from
DUE = (16, 256, 4096)  # after so many rows they are learned, and after so many more again; the last number stays
TOO_MANY = 0.24  # share of the panels from which on a search for one row does not pay: it takes two thirds of a product, and more
# for each of them. Several rows are computed in nearly the time of one, and each has panels of its own: so divided by their number.
PAUSES = 64, 4096  # steps without a search after that: at first, and at most, doubled each time
RECENT = 0.05  # weight of the newest share in an average, which begins at 0


@dataclass(slots=True)
class _Habit:
    """Of steps of one kind: the average share of panels that took all bits, steps until the next search, and the next pause."""

    limit: float
    share: float = 0.0
    left: int = 0
    pause: int = PAUSES[0]

    def searches(self) -> bool:
        self.left -= self.left > 0
        return self.left == 0

    def saw(self, share: float) -> None:
        self.share += RECENT * (share - self.share)
        if self.share > self.limit:
            self.share, self.left, self.pause = 0.0, self.pause, min(2 * self.pause, PAUSES[1])


class TwoPass:
    """The search in one head. It remembers nothing of answers but directions, which decide about time alone."""

    def __init__(self, head: kernels.Linear) -> None:
        self._head = head
        self._candidates = kernels.Candidates(head)
        self._states: list[Floats] = []
        self._due = list(DUE)
        self._rows = 0  # since directions were learned
        self._habits: dict[tuple[int, int], _Habit] = {}  # by the length of the list, and rows of the step
        self.read = float(head.nbytes)  # bytes of the head that a step took of late

    def logits(self, normed: kernels.Activation, out: kernels.Array, needs: Sequence[Need]) -> None:
        """Of every row of `normed` what it needs; `kernels.linear` would give the same and more."""
        kind = max(need.count for need in needs), len(needs)
        habit = self._habits.setdefault(kind, _Habit(TOO_MANY / len(needs)))
        learned = len(self._due) < len(DUE)  # without directions bounds are wide
        if not (self._candidates.sound and learned and habit.searches()):
            kernels.linear(self._head, normed, out)
            self.read = float(self._head.nbytes)
            if not learned:
                self._take(normed)
            return
        panels = kernels.linear_largest(self._candidates, normed, out, [(need.count, need.known) for need in needs])
        self.read += RECENT * (self._candidates.bytes_of(panels) - self.read)
        habit.saw(panels / self._candidates.panels)
        self._take(normed)

    def _take(self, normed: kernels.Activation) -> None:
        """Take these hidden states in, where directions are about to be learned, and learn them when that is due."""
        self._rows += normed.n
        if self._rows > self._due[0] - KEPT:
            states = normed.dequantized(32 if normed.has_blocks else 256)
            self._states += [one for one in states if np.isfinite(one).all()]
        if self._rows < self._due[0] or len(self._states) < DIRECTIONS:
            return
        self._learn(np.stack(self._states[-KEPT:]))
        self._rows = 0
        if len(self._due) > 1:
            del self._due[0]
        if self._due[0] > KEPT:
            self._states.clear()

    def _learn(self, states: Floats) -> None:
        """The directions in which these states, of whatever length, lie most."""
        units = states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-30)
        _, found = np.linalg.eigh(units @ units.T)  # of some states: far smaller than their width
        wanted = found[:, -DIRECTIONS:].T @ units
        rows = kernels.Array(DIRECTIONS, self._head.cols)
        rows.numpy()[:] = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-30)
        directions = kernels.Activation(DIRECTIONS, self._head.cols, [self._head])
        kernels.quantize(rows, DIRECTIONS, directions)
        self._candidates.learn(directions)

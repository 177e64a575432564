"""From hidden states to logits: the last norm, the head, and what adapters add to it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.config import Mix, ModelConfig
from gangpao.engine.head.two_pass import TwoPass
from gangpao.engine.sample import Need
from gangpao.engine.weights import Weights

Floats = npt.NDArray[np.float32]
LOGIT_ROWS = 16  # rows of logits at once: 100,000 floats each


class Output:
    """The end of a forward pass, with work space of its own for LOGIT_ROWS. floats: kept of the inputs, for adapters."""

    def __init__(self, config: ModelConfig, weights: Weights, *, floats: bool = False) -> None:
        self._config, self._weights = config, weights
        self.table: kernels.LowRankTable | None = None  # of adapters that change the head, if there are any
        self._final = kernels.Array(LOGIT_ROWS, config.hidden_size)
        self._normed = kernels.Activation(LOGIT_ROWS, config.hidden_size, [weights.head], floats)
        self._final_view = self._final.numpy()
        self.array = kernels.Array(LOGIT_ROWS, config.vocab_size)
        self._view = self.array.numpy()
        self._runs = kernels.AdapterRuns()
        self._two_pass: TwoPass | None = None  # made when it is first of use

    @property
    def spared(self) -> int:
        """Bytes of the head that a step of late did not read."""
        return self._weights.head.nbytes - round(self._two_pass.read) if self._two_pass else 0

    def logits(self, hidden: Floats, rows: Sequence[int], needs: Sequence[Need | None], mixes: Sequence[Mix]) -> Floats:
        """Logits [len(rows), V] of these rows of hidden states, as far as each is needed. mixes: adapters of all rows of hidden."""
        out = np.empty((len(rows), self._config.vocab_size), np.float32)
        for begin in range(0, len(rows), LOGIT_ROWS):
            part = slice(begin, begin + LOGIT_ROWS)
            out[part] = self.at_once(hidden, rows[part], needs[part], mixes)
        return out

    def at_once(
        self, hidden: Floats, rows: Sequence[int], needs: Sequence[Need | None], mixes: Sequence[Mix]
    ) -> Floats:
        """The same for at most LOGIT_ROWS, in `array`."""
        normed, head = self.normed(hidden, rows), self._weights.head
        some = [need for need in needs if need is not None]
        if len(some) == len(rows) and head.has_planes and self.table is None:
            self._two_pass = self._two_pass or TwoPass(head)
            self._two_pass.logits(normed, self.array, some)
        else:
            put_runs(self._runs, [mixes[row] for row in rows] if self.table else ())
            kernels.linear(head, normed, self.array, False, 1.0, self.table, self._runs)
        return self._view[: len(rows)]

    def normed(self, hidden: Floats, rows: Sequence[int] | slice) -> kernels.Activation:
        """What the head reads of at most LOGIT_ROWS of these rows; good until the next call."""
        states = hidden[rows]
        self._final_view[: len(states)] = states
        kernels.rmsnorm(self._final, len(states), self._weights.final_norm, self._config.rms_norm_eps, self._normed)
        return self._normed


def put_runs(runs: kernels.AdapterRuns, mixes: Sequence[Mix]) -> None:
    """Which rows use which adapters, by the mix of each row."""
    runs.clear()
    end = 0
    for mix, rows in itertools.groupby(mixes):
        begin, end = end, end + sum(1 for _ in rows)
        for number, scale in mix:
            runs.add(number, begin, end, scale)

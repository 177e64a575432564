"""Rules for where an answer ends, beside the model's own end: the first token that may end it, and tokens that do.

A rule around a grammar, if there is one: the engine asks for the tokens that may come next, and hears which one came. Stop strings
are the engine's own business, and end an answer also before min_tokens.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from gangpao.engine.sample import Logits
from gangpao.engine.sequences import Constraint


@dataclass(frozen=True, slots=True)
class Ends:
    """min_tokens: before so many tokens no end is chosen; ignore_eos: none ever is; stop_ids: tokens that end the answer."""

    min_tokens: int = 0
    ignore_eos: bool = False
    stop_ids: tuple[int, ...] = ()

    @property
    def given(self) -> bool:
        """Whether there is any rule."""
        return bool(self.min_tokens or self.ignore_eos or self.stop_ids)


class EndRule:
    """Ends of one answer (the engine's Constraint). end_ids: the model's own; inner: the grammar that the answer has, too."""

    def __init__(self, ends: Ends, end_ids: Collection[int], inner: Constraint | None) -> None:
        self._ends = ends
        self.inner = inner
        self._model_ends = np.array(sorted(end_ids), np.int64)
        self._all_ends = np.array(sorted({*end_ids, *ends.stop_ids}), np.int64)
        self._count = 0
        self.stopped_by: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self.stopped_by is not None or (self.inner is not None and self.inner.finished)

    def apply(self, logits: Logits) -> None:
        """Set the logits [V] of tokens that may not come next to -inf, in place."""
        if self.inner is not None:
            self.inner.apply(logits)
        if self._count < self._ends.min_tokens:
            logits[self._all_ends] = -np.inf
        elif self._ends.ignore_eos:
            logits[self._model_ends] = -np.inf

    def accept(self, token: int) -> None:
        """Go on behind a chosen token."""
        self._count += 1
        if self.inner is not None:
            self.inner.accept(token)
        if token in self._ends.stop_ids:
            self.stopped_by = token

    def forced(self) -> list[int]:
        """Tokens that come next whatever the model says."""
        return [] if self.inner is None else self.inner.forced()

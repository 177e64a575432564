"""What a draft head keeps of the positions of a pool: keys and values of its own layers, in pages with the numbers of the pool's.

So whatever shares, copies, cuts or takes back positions of the large model does that with these, too. Only pages that come from a
file have the large model's part alone: a head sees nothing in front of them and in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gangpao import kernels
from gangpao.engine.layers.kept import KVType

Floats = npt.NDArray[np.float32]


class Turning(Protocol):
    """Rotary angles (rope.Angles)."""

    def take(self, positions: npt.NDArray[np.int64], cos: Floats, sin: Floats) -> None:
        """Writes those of the positions [tokens] into cos and sin."""


class Beside:
    """Of one pool. angles: of the head's own rotation; reader: the head, which reads every step of the pool's sequences."""

    def __init__(self, reader: StateReader, native: kernels.Cache, angles: Turning) -> None:
        self.reader = reader
        self.native = native
        self.angles = angles
        self._empty: set[int] = set()

    def taken(self, page: int) -> None:
        """A page is about to be filled by steps."""
        self._empty.discard(page)

    def filled_from_file(self, page: int) -> None:
        """A page was filled with what the large model alone keeps."""
        self._empty.add(page)

    def copy(self, source: int, target: int) -> None:
        """Another page is to hold the same."""
        self.native.copy_page(source, target)
        if source in self._empty:
            self._empty.add(target)

    def first_seen(self, pages: Sequence[int]) -> int:
        """From which of the pages on all hold what the head needs."""
        return max((i + 1 for i, page in enumerate(pages) if page in self._empty), default=0) if self._empty else 0


class StateReader(Protocol):
    """What reads the hidden states of a step on their way through the layers and keeps something of its own of them."""

    def new_beside(self, pages: int, context: int, dtype: KVType) -> Beside:
        """Its part of a pool of so many pages, for sequences of at most `context` positions."""

    def see(self, layer: int, hidden: Floats) -> None:
        """What goes into that layer [N, D], and behind the last one what goes into the last norm; good until it returns."""

    def keep(self, rows: kernels.Rows, positions: npt.NDArray[np.int64], beside: Beside) -> None:
        """The step's rows have gone through all layers. positions: [N], or [3, N] (time, row, column)."""

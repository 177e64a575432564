"""What a run has cost so far, killed parts of it included: the journal is told while answers come, not only at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from gangpao.evaluate.journal import Journal
from gangpao.evaluate.models.protocol import Usage

_EVERY = 0.5  # seconds between two lines of the journal: what a kill may lose
_TOKENS = ("prompt", "cached", "completion")
Shown = Callable[[str, int, int], None]


class Spent:
    """Seconds of machine time and tokens of all parts of a run. usage: of the model in this part, which goes on counting."""

    def __init__(self, journal: Journal, usage: Usage) -> None:
        self._journal, self._usage = journal, usage
        self._before = journal.take("spent", _spent) or {"seconds": journal.take("seconds", float) or 0.0}
        self._started = self._saved = time.monotonic()
        self._first = {name: getattr(usage, name) for name in _TOKENS}

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return self._before.get("seconds", 0.0) + time.monotonic() - self._started

    @property
    def tokens(self) -> dict[str, int]:
        """prompt, cached and completion of all parts."""
        return {n: int(self._before.get(n, 0)) + getattr(self._usage, n) - self._first[n] for n in _TOKENS}

    def save(self) -> None:
        """Into the journal."""
        self._saved = time.monotonic()
        self._journal.put("spent", {"seconds": round(self.seconds, 3), **self.tokens})

    def noting(self, shown: Shown) -> Shown:
        """The same progress, with a look at the clock."""

        def show(what: str, done: int, total: int) -> None:
            if time.monotonic() - self._saved >= _EVERY:
                self.save()
            shown(what, done, total)

        return show


def _spent(value: Any) -> dict[str, float]:
    """The journal's line. Raises ValueError where it is none."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.60}: not what was spent")
    return {name: float(value[name]) for name in ("seconds", *_TOKENS) if name in value}

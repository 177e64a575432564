"""One line that says how far something is, for people at a terminal."""

import sys


class Percent:
    """A progress callback that keeps one line on a terminal up to date, and is silent elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = done * 100 // max(total, 1)
        if percent != self._shown and sys.stderr.isatty():
            self._shown = percent
            print(f"\r{self._label} {percent} %", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown >= 0:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

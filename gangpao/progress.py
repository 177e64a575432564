"""What long work says while it runs: one progress line on stderr, with what is done, speed and time left.

On a terminal it is a bar (rich); in a file or a pipe it is a plain line every few seconds, so that a log stays
readable. Thread-safe: several downloads may report to one line.

What it gives up: one task at a time.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from gangpao.units import show_bytes, show_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 5.0


class Progress:
    """Bytes done out of a total, shown on a stream. Use as a context manager; nothing shows before `start`.

    show: how a number is said, where it is not bytes. more: what else the line says, from the seconds so far.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        line_seconds: float = LINE_SECONDS,
        show: Callable[[float], str] = show_bytes,
        more: Callable[[float], str] | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        self._show = show
        self._more = more
        self._lock = threading.Lock()
        self._line_seconds = line_seconds
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._done = self._total = self._first = 0
        self._started = self._shown = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def start(self, label: str, total: int, done: int = 0) -> None:
        """Begin a task of that total (0: unknown) of which `done` is there already."""
        with self._lock:
            self._label, self._total, self._done, self._first = label, total, done, done
            self._started = self._shown = time.monotonic()
            if self._stream.isatty():
                self._bar()

    def _bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        if self._rich is None:
            sizes = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            numbers = (TextColumn("{task.fields[line]}", markup=False),)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                *(sizes if self._show is show_bytes else numbers),
            )
            self._rich = RichProgress(*columns, console=Console(file=self._stream))
            self._rich.start()
        if self._task is not None:
            self._rich.remove_task(self._task)
        self._task = self._rich.add_task(self._label, total=self._total or None, completed=self._done, line="")

    def update(self, done: int) -> None:
        """Say how much is done now. The number may go down when work has to be repeated."""
        with self._lock:
            self._done = done
            if self._rich is not None and self._task is not None:
                line = "" if self._show is show_bytes else self._line(named=False)
                self._rich.update(self._task, completed=done, line=line)
            elif self._started and time.monotonic() - self._shown >= self._line_seconds:
                self._shown = time.monotonic()
                print(self._line(), file=self._stream, flush=True)

    def _line(self, *, named: bool = True) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        parts = [f"{self._label}: {self._show(self._done)}" if named else self._show(self._done)]
        if self._total:
            parts[0] += f" of {self._show(self._total)} ({self._done * 100 // self._total} %)"
        speed = (self._done - self._first) / seconds
        if speed > 0:
            parts.append(f"{self._show(speed)}/s")
            if self._total > self._done:
                parts.append(f"{show_seconds((self._total - self._done) / speed)} left")
        if self._more:
            parts.append(self._more(seconds))
        return ", ".join(parts)

    def note(self, text: str) -> None:
        """A line above the bar."""
        with self._lock:
            if self._rich is not None:
                self._rich.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the bar away; the last state stays on the screen."""
        with self._lock:
            if self._rich is not None:
                self._rich.stop()
                self._rich = self._task = None
            self._started = 0.0


class Silent(Progress):
    """Shows nothing."""

    def start(self, label: str, total: int, done: int = 0) -> None:
        pass

    def update(self, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

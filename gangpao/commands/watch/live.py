"""Frames as they come: of a file one after the other, of something live the newest, because a model is slower than a camera.

A thread reads a live source and keeps its newest frame; what came in between is dropped and counted. A file with `paced` is
played at its own speed and treated like a camera.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gangpao.images.video import Changes, Frame


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame that differs from the one before it; taken: when it was read, by time.monotonic()."""

    frame: Frame
    taken: float


class Newest:
    """The newest frame of a source that a thread reads. `frames` gives those that are to be described."""

    def __init__(self, source: Iterator[Frame], *, live: bool, paced: bool, changes: Changes, after: float) -> None:
        self._source, self._paced, self._changes, self._after = source, paced, changes, after
        self._live = live or paced
        self._ready = threading.Condition()
        self._waiting: Seen | None = None
        self._ended = False
        self._error: Exception | None = None
        self.newest: Frame | None = None
        self.unchanged = self.dropped = 0

    def frames(self) -> Iterator[Seen]:
        """Frames that changed, in order; of something live the newest whenever one is asked for. Raises the source's ValueError."""
        return self._from_thread() if self._live else self._changed()

    def stop(self) -> None:
        """Let no more frames come."""
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def _changed(self) -> Iterator[Seen]:
        began: float | None = None
        for frame in self._source:
            if self._ended:
                return
            if frame.seconds <= self._after:
                continue
            if began is None:  # of a source that is gone on with what was described before is not waited for
                began = time.monotonic() - frame.seconds
            if self._paced:
                time.sleep(max(0.0, began + frame.seconds - time.monotonic()))
            self.newest = frame
            if self._changes(frame.pixels):
                yield Seen(frame, time.monotonic())
            else:
                self.unchanged += 1

    def _from_thread(self) -> Iterator[Seen]:
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting is not None or self._ended)
                seen, self._waiting = self._waiting, None
            if seen is None:
                if self._error is not None:
                    raise self._error
                return
            yield seen

    def _read(self) -> None:
        try:
            for seen in self._changed():
                with self._ready:
                    self.dropped += self._waiting is not None
                    self._waiting = seen
                    self._ready.notify_all()
        except ValueError as error:
            self._error = error
        finally:
            self.stop()

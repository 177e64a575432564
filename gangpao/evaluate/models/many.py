"""Many requests at once: a function called for each of many things by some threads, results as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Sequence[T], concurrency: int) -> Iterator[tuple[int, R]]:
    """(index, work(item)) in the order in which they are done, by so many threads.

    The first exception of any of them is raised here, after what was done before it. Threads are daemons and nothing is waited
    for when the caller stops (an error, Ctrl-C): an answer may be minutes away.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, R | None, BaseException | None]] = queue.SimpleQueue()
    over = threading.Event()
    for index in range(len(items)):
        waiting.put(index)

    def run() -> None:
        while not over.is_set():
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((index, work(items[index]), None))
            except BaseException as error:  # raised again in the caller's thread
                done.put((index, None, error))
                return

    for number in range(min(max(concurrency, 1), len(items))):
        threading.Thread(target=run, name=f"request-{number}", daemon=True).start()
    try:
        for _ in items:
            index, result, error = done.get()
            if error is not None:
                raise error
            yield index, result  # type: ignore[misc]
    finally:
        over.set()

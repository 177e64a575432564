"""Bounds on what a hostile or a large input may cost: of the work, not of the machine and what else runs on it."""

import gc
import struct
import time
from collections.abc import Callable


def core_speed() -> float:
    """Of this core now, beside whatever shares it: 1 where it does a fixed loop as fast as a quiet one of 3 GHz, or faster."""
    data, unpack = memoryview(struct.pack("<Q", 3) * 4096), struct.Struct("<Q").unpack_from
    started = time.thread_time()
    for _ in range(64):
        for at in range(0, 8 * 4096, 8):
            str(data[at : at + unpack(data, at)[0]], "utf-8", "replace")
    return min(1.0, 0.09 / (time.thread_time() - started))


def seconds_of(work: Callable[[], object], enough: float = 0.0) -> float:
    """Processor time of this thread that `work` takes on a quiet core of 3 GHz: the least of three runs, or the first
    under `enough`."""
    gc.collect()
    gc.freeze()  # objects of other tests, which the collector would go through again and again meanwhile
    try:
        least = float("inf")
        for _ in range(3):
            pace, started = core_speed(), time.thread_time()
            work()
            took = time.thread_time() - started
            least = min(least, took * min(pace, core_speed()))  # a core may change its speed at any moment
            if least < enough:
                break
        return least
    finally:
        gc.unfreeze()

"""How fast this core is at the moment, for tests that bound what a hostile or a large input may cost."""

import struct
import time


def core_speed() -> float:
    """Of this core now, beside whatever shares it: 1 where it does a fixed loop as fast as a quiet one of 3 GHz, or faster.
    What tests bound is the work, not the machine."""
    data, unpack = memoryview(struct.pack("<Q", 3) * 4096), struct.Struct("<Q").unpack_from
    started = time.thread_time()
    for _ in range(64):
        for at in range(0, 8 * 4096, 8):
            str(data[at : at + unpack(data, at)[0]], "utf-8", "replace")
    return min(1.0, 0.09 / (time.thread_time() - started))

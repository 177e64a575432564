"""What the commands share around an engine: loading a model, notes on stderr, money, memory.

find.py says which model is meant. Everything here speaks on stderr, so that stdout belongs to the answer.
"""

import os
import sys
from pathlib import Path
from typing import Protocol, TextIO

from gangpao import cost
from gangpao.cost import show_yuan as show_yuan
from gangpao.engine.answer import Stats
from gangpao.engine.cache import KVType
from gangpao.engine.generate import Engine
from gangpao.serve.find import find_model
from gangpao.serve.percent import Percent


def load_engine(
    model: str | None,
    *,
    context: int | None = None,
    kv_dtype: KVType = "f16",
    num_threads: int | None = None,
    yes: bool = False,
) -> Engine:
    """The engine of a name, path or address, pulled first if need be. Raises ValueError saying what to do."""
    name, path = find_model(model, yes=yes)
    progress = Percent(f"loading {name}")
    try:
        engine = Engine.load(path, context=context, kv_dtype=kv_dtype, num_threads=num_threads, progress=progress)
    finally:
        progress.clear()
    engine.name = name
    return engine


class Answered(Protocol):
    """Anything that has the counts and seconds of an answer."""

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far."""


class Meter:
    """Turns seconds of this machine into yuan, by the cost profile of that name or the default one."""

    def __init__(self, profile: str | None = None) -> None:
        self.name, self._profile = cost.get_profile(profile)

    def yuan(self, seconds: float) -> float:
        """Price of that much machine time."""
        return cost.yuan(self._profile, seconds)

    def line(self, run: Answered) -> str:
        """Figures of one answer."""
        return figures(run.stats, self.yuan(run.stats.seconds))


def figures(stats: Stats, yuan: float | None) -> str:
    """The line under an answer; yuan is None where nobody says what the machine costs."""
    line = f"{stats.completion_tokens} tokens · {stats.decode_tps:.1f} tok/s · first after {stats.ttft_s:.2f} s"
    return line if yuan is None else f"{line} · {show_yuan(yuan)}"


def colors(stream: TextIO) -> bool:
    """Whether to send escape codes to a stream."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    """Grey where stdout shows colours."""
    return f"\x1b[2m{text}\x1b[0m" if colors(sys.stdout) else text


def show(text: str) -> None:
    """A piece of an answer to stdout, at once. On a terminal without control characters, which a model may have learnt
    or been talked into: an escape sequence could rewrite the screen or the window's title."""
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def plain(text: str) -> str:
    """Text without control characters, except for tab and newline."""
    return text.translate(_CONTROL)


_CONTROL = dict.fromkeys([*range(32), *range(127, 160)]) | {9: "\t", 10: "\n"}


def note(text: str) -> None:
    """A line for the person at the terminal; nothing when stderr is a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\x1b[2m{text}\x1b[0m" if colors(sys.stderr) else text, file=sys.stderr, flush=True)


def kernels_line() -> str:
    """The kernels in use, in one line."""
    from gangpao import kernels

    return f"{kernels.describe()}, {kernels.num_threads()} threads"


def rss_mb() -> float:
    """Resident memory of this process in MB (1e6 bytes), now where the system tells, else at its peak."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

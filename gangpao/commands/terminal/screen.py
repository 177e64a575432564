"""What commands write on a terminal: figures, notes, colours, a percentage. Everything but answers goes to stderr."""

import sys

from gangpao.cost import show_yuan
from gangpao.engine.answer import Stats
from gangpao.units import colors as colors
from gangpao.units import plain


def figures(stats: Stats, yuan: float | None) -> str:
    """The line under an answer; yuan is None where nobody says what the machine costs."""
    line = f"{stats.completion_tokens} tokens · {stats.decode_tps:.1f} tok/s · first after {stats.ttft_s:.2f} s"
    if stats.dropped_tokens:
        line += f" · {stats.dropped_tokens} oldest tokens dropped"
    if stats.drafted:
        line += f" · {stats.accepted} of {stats.drafted} drafted"
    return line if yuan is None else f"{line} · {show_yuan(yuan)}"


def dim(text: str) -> str:
    """Grey where stdout shows colours."""
    return f"\x1b[2m{text}\x1b[0m" if colors(sys.stdout) else text


def show(text: str) -> None:
    """A piece of an answer to stdout, at once. On a terminal without control characters, which a model may have learnt
    or been talked into: an escape sequence could rewrite the screen or the window's title."""
    sys.stdout.write(plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for the person at the terminal; nothing when stderr is a file or a pipe."""
    if sys.stderr.isatty():
        print(f"\x1b[2m{text}\x1b[0m" if colors(sys.stderr) else text, file=sys.stderr, flush=True)


def kernels_line() -> str:
    """The kernels in use, in one line."""
    from gangpao import kernels

    return f"{kernels.describe()}, {kernels.num_threads()} threads"


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

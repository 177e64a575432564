"""What the commands share around an engine: finding and loading a model, notes on stderr, money, memory.

A model is a catalog name, a path to a .gguf file or a folder (checkpoint.py), or nothing, which means the best catalog model
that this machine can hold. A name that is not installed is pulled. Everything here speaks on stderr, so that stdout belongs
to the answer.
"""

import os
import sys
from pathlib import Path
from typing import Protocol, TextIO

from gangpao import catalog, cost, machine
from gangpao.cost import show_yuan as show_yuan
from gangpao.engine.answer import Stats
from gangpao.engine.cache import KVType
from gangpao.engine.generate import Engine
from gangpao.log import Progress
from gangpao.pull import pull
from gangpao.serve import checkpoint


def load_engine(
    model: str | None,
    *,
    context: int | None = None,
    kv_dtype: KVType = "f16",
    num_threads: int | None = None,
) -> Engine:
    """The engine of a catalog name or path, pulled first if need be. Raises ValueError saying what to do."""
    name, path = find_model(model)
    progress = Percent(f"loading {name}")
    try:
        engine = Engine.load(path, context=context, kv_dtype=kv_dtype, num_threads=num_threads, progress=progress)
    finally:
        progress.clear()
    engine.name = name
    return engine


def find_model(model: str | None) -> tuple[str, Path]:
    """The name and the file of a model, pulled where it is not installed.

    Without a name, the best default model is taken, and which and why goes to stderr.
    """
    if model is not None and catalog.is_path(model):
        path = _file_of(catalog.resolve(model))
        return path.stem, path
    here = catalog.installed()
    if model is not None and model not in here and checkpoint.is_model_folder(model):
        path = _file_of(Path(model))
        return path.stem, path
    if model is None:
        memory, disk = machine.available_memory(), machine.free_disk(catalog.models_dir())
        model, why = catalog.default_model(memory, disk, here)
        print(f"model: {why}", file=sys.stderr)
    if model not in here:
        _check_runs(model, catalog.entry(model))
        print(f"{model} is not on this machine yet, pulling it", file=sys.stderr)
        with Progress() as progress:
            return model, pull(model, progress=progress)
    return model, _file_of(catalog.resolve(model))


def _file_of(path: Path) -> Path:
    """The .gguf file of a path, exported first where it is a folder."""
    percent = Percent(f"exporting {path}")
    try:
        return checkpoint.gguf_of(path, percent)
    finally:
        percent.clear()


def _check_runs(name: str, entry: catalog.Entry) -> None:
    """Raises ValueError, before gigabytes are pulled, where the engine would not run them."""
    if entry.format == "safetensors":
        raise ValueError(
            f"{name}: a folder of weights for training, and the engine runs .gguf files: `gangpao pull {name}` first, then "
            f"`-m {name}` exports it on first use"
        )
    if not entry.engine:
        raise ValueError(f"{name}: our engine does not run this model, so it is not pulled for that. {entry.note}")


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

"""From a model and texts to an importance matrix, in one call: what `gangpao imatrix` and `gangpao quantize --data` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gangpao.compress.importance.calibration import Calibration, calibrate
from gangpao.compress.importance.collect import collect
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.formats.gguf import GGUF
from gangpao.formats.imatrix import Importance
from gangpao.options import option
from gangpao.progress import Progress, Silent

WINDOW = 512  # tokens that a model is looked at with, where it reads so many


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """What is looked at, and how."""

    tokens: int = option(65_536, "Tokens to look at.", 32, 1 << 30)
    window: int | None = option(
        None,
        "Tokens of a window; the model sees each from its beginning.",
        16,
        1 << 20,
        unset=f"{WINDOW}, or the context",
    )
    float32: bool = option(False, "Compute in float32: slower, and equal to programs that do; for comparisons.")
    head: bool = option(False, "Also the inputs of the output matrix.")


def collected(
    file: Path,
    data: Sequence[str],
    options: CollectOptions,
    *,
    threads: int | None = None,
    state: Path | None = None,
    keep: bool = False,
    progress: Progress | None = None,
    on_read: Callable[[Calibration], None] = lambda _: None,
) -> Importance:
    """The importance of a .gguf file's columns. data: as `calibrate` takes files.

    state, keep: as collect takes them. on_read is told what was read before it is computed. Raises ValueError saying what to do.
    """
    with GGUF.open(file) as gguf:
        window = options.window or min(WINDOW, ModelConfig.from_gguf(gguf).max_position_embeddings)
        engine = Engine.load(gguf, context=window, num_threads=threads, float32=options.float32)
        windows = max(1, options.tokens // window)
        read = calibrate(
            engine.tokenizer, data, windows=windows, length=window, architecture=engine.model.config.architecture
        )
        on_read(read)
        head = "output.weight" if "output.weight" in gguf.tensors else "token_embd.weight"
        stat = file.stat()
        return collect(
            engine, read.ids, head=head if options.head else "", datasets=read.datasets, state=state, keep=keep,
            identity=f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {options.float32}", progress=progress or Silent(),
        )  # fmt: skip

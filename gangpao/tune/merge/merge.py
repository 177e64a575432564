"""Merge adapters onto a base, measure the result beside the adapter, and give it its name only if it is still the adapter.

The result is whole or not there: it is written under a hidden name, compared, and renamed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao import atomic
from gangpao.evaluate.results import sha256_of
from gangpao.formats.adapters import Adapter, read_adapter
from gangpao.formats.gguf import GGUF
from gangpao.model.config import ModelConfig
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.base.load import base_shape
from gangpao.tune.merge import check, folder, gguf
from gangpao.tune.merge.adapted import Adapted
from gangpao.tune.merge.check import MAX_DIFFERENCE, Comparison
from gangpao.tune.merge.texts import TEXTS
from gangpao.tune.methods.ia3_file import ia3_folder, read_ia3

Progress = Callable[[int, int], None]
OnNote = Callable[[str], None]
_MOST_TOKENS = 128  # of a text


class Different(ValueError):
    """The merged model answers differently from its adapter. comparison: how much."""

    def __init__(self, message: str, comparison: Comparison) -> None:
        super().__init__(message)
        self.comparison = comparison


@dataclass(frozen=True, slots=True)
class Options:
    """kind: the type of changed tensors in a GGUF file; None keeps theirs. max_difference: the largest accepted share of the
    adapter's effect that goes wrong. check: compare at all."""

    kind: str | None = None
    max_difference: float = MAX_DIFFERENCE
    check: bool = True


def merge(
    base: str | os.PathLike[str],
    adapters: Sequence[tuple[str | os.PathLike[str], float]],
    out: str | os.PathLike[str],
    options: Options = Options(),
    *,
    progress: Progress = lambda done, total: None,
    on_note: OnNote = lambda note: None,
) -> Comparison | None:
    """Merge adapters (path, scale) onto a Hugging Face folder (out: a new folder) or a GGUF file (out: a new .gguf file).

    Returns the comparison, None without one. progress(done, total) counts tensors written, then layers compared. on_note gets
    sentences about what changed on the way. Raises ValueError for what does not fit together, and Different, a ValueError, when the
    result would not be the adapter; then nothing was written.
    """
    source, target = Path(base), Path(out)
    if not adapters:
        raise ValueError("there is no adapter to merge: give --adapter PATH")
    if not options.max_difference >= 0:
        raise ValueError(
            f"--max-difference is {options.max_difference}, a share of the adapter's effect: 0.1 is a tenth"
        )
    if target.exists():
        raise ValueError(f"{target} exists already; choose another name or delete it first")
    if source.is_dir():
        if options.kind is not None:
            raise ValueError("--type is for .gguf files; a Hugging Face folder keeps the type of each tensor")
        return _onto_folder(source, adapters, target, options, progress, on_note)
    if target.suffix != ".gguf":
        raise ValueError(f"{target}: a merged GGUF file ends in .gguf")
    return _onto_file(source, adapters, target, options, progress, on_note)


def _onto_folder(
    source: Path,
    paths: Sequence[tuple[str | os.PathLike[str], float]],
    target: Path,
    options: Options,
    progress: Progress,
    on_note: OnNote,
) -> Comparison | None:
    base = folder.Folder(source)
    adapted = _read(paths, base, None, base.files, on_note)
    advance = _counter(progress, len(base.names) + adapted.unties(base.tied) + _steps(base.config, options))
    with atomic.new_folder(target) as staging:
        folder.write(base, adapted, staging, advance)
        if not options.check:
            return None
        ids = _ids(Tokenizer.from_dir, source, base.config)
        found = check.compare(base.config, base, adapted, folder.Folder(staging), ids, advance)
        return _judged(found, target, options, on_note)


def _onto_file(
    source: Path,
    paths: Sequence[tuple[str | os.PathLike[str], float]],
    target: Path,
    options: Options,
    progress: Progress,
    on_note: OnNote,
) -> Comparison | None:
    config = base_shape(source)
    with ExitStack() as stack:
        base = gguf.File(stack.enter_context(GGUF.open(source)))
        adapted = _read(paths, base, base, base.gguf.paths, on_note)
        planned = gguf.plan(base, adapted, options.kind)
        if note := gguf.retyped(base, planned):
            on_note(note)
        if adapted.unties(base.tied):
            on_note(
                "the file gets a head of its own: the base uses one tensor as embedding and head, and the adapter changes one"
            )
        advance = _counter(progress, len(planned) + _steps(config, options))
        staging = stack.enter_context(atomic.new_file(target))
        gguf.write(base, adapted, planned, staging, target.stem, advance)
        if not options.check:
            return None
        written = gguf.File(stack.enter_context(GGUF.open(staging)))
        ids = _ids(lambda path: Tokenizer.from_gguf(base.gguf.metadata), source, config)
        return _judged(check.compare(config, base, adapted, written, ids, advance), target, options, on_note)


def _read(
    paths: Sequence[tuple[str | os.PathLike[str], float]],
    base: folder.Folder | gguf.File,
    file: gguf.File | None,
    files: Sequence[Path],
    on_note: OnNote,
) -> Adapted:
    """The adapters, each compared with the base, whose bytes are in `files`."""

    def weight_of(name: str) -> npt.NDArray[np.float32]:
        return base.tensor(f"{name}.weight").float().numpy()

    shapes = base.shapes()
    digest = cache(lambda: sha256_of(files))
    read: list[tuple[Adapter, float]] = []
    for path, scale in paths:
        place = ia3_folder(Path(path))
        adapter = (
            read_ia3(place, weight_of)
            if place is not None
            else read_adapter(path, form=file.form if file else None, weight_of=weight_of)
        )
        adapter.check_base(shapes, str(files[0]))
        if adapter.base_sha256 and adapter.base_sha256 != digest():
            on_note(
                f"{path} was trained on {adapter.base or 'a base'} with the sha256 {adapter.base_sha256:.12}, this base has "
                f"{digest():.12}: their shapes agree, their weights do not (another type of the same model, or another model)"
            )
        read.append((adapter, scale))
    return Adapted(read)


def _ids(tokenizer_of: Callable[[Path], Tokenizer], path: Path, config: ModelConfig) -> list[list[int]]:
    """The built-in texts as ids, of a model without a tokenizer some ids from all over its vocabulary."""
    most = min(_MOST_TOKENS, config.max_position_embeddings)
    try:
        tokenizer = tokenizer_of(path)
    except (ValueError, OSError):
        step = max(1, config.vocab_size // most)
        return [list(range(0, config.vocab_size, step))[:most]]
    rows = [tokenizer.encode(text)[:most] for text in TEXTS]
    return [[i for i in row if i < config.vocab_size] for row in rows]


def _judged(comparison: Comparison, target: Path, options: Options, on_note: OnNote) -> Comparison:
    if comparison.accepted(options.max_difference):
        if comparison.too_small:
            on_note(
                f"on the texts of the check this adapter moves the base by {comparison.effect:.2g} nats only: too little to judge "
                "whether the merge kept it. Was it trained, and is its scale above 0?"
            )
        return comparison
    more = "a type with more bits (--type Q8_0 or F16)" if target.suffix == ".gguf" else "a base in float32"
    raise Different(
        f"{target} was not written, because it would not answer as the adapter does. {comparison}\n"
        f"That is above --max-difference {options.max_difference:g}; {more} loses less, and the adapter beside its base "
        "loses nothing (--adapter)",
        comparison,
    )


def _steps(config: ModelConfig, options: Options) -> int:
    return check.steps(config) if options.check else 0


def _counter(progress: Progress, total: int) -> Callable[[], None]:
    done = itertools.count(1)
    return lambda: progress(next(done), total)

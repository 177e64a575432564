"""A model to a smaller file of a mixture, in one call, and the importance matrix it is rounded with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from gangpao import kernels, machine
from gangpao.atomic import new_file
from gangpao.compress.find import runnable
from gangpao.compress.importance.run import CollectOptions, collected
from gangpao.compress.quantize.config import QuantizeConfig
from gangpao.compress.quantize.mixtures import MIXTURES, NEEDS_IMPORTANCE, named, wanted_types
from gangpao.compress.quantize.source import again, open_source
from gangpao.compress.quantize.tensors import OnNote, Source
from gangpao.compress.quantize.write import Encode, Written, imatrix_fields, plain, write_source
from gangpao.formats.imatrix import Importance, read_imatrix, write_imatrix
from gangpao.progress import Progress, Silent
from gangpao.units import show_count


@dataclass(frozen=True, slots=True)
class Guide:
    """An importance matrix and the name that the file says of it."""

    importance: Importance
    name: str


def quantized(
    source: Path,
    target: Path,
    to: str,
    *,
    guide: Guide | None = None,
    pure: bool = False,
    types: Mapping[str, str] | None = None,
    encode: Callable[[Source, Mapping[str, str]], Encode] | None = None,
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
) -> Written:
    """Write a .gguf file or a Hugging Face folder as a mixture's types.

    types: in place of the mixture's, whose number the file still bears. encode: makes the encoder in place of ggml's own rounding.
    on_note gets what a person should know: that floats were lost before, that tensors have no importance.

    Raises ValueError for an unknown mixture, one that needs an importance matrix, and a matrix of another model.
    """
    name = named(to)
    if name in NEEDS_IMPORTANCE and guide is None:
        raise ValueError(f"{name} needs an importance matrix: give --imatrix FILE, or --data own to have one made")
    with open_source(source, on_note) as opened:
        if warning := again(opened):
            on_note(warning)
        model, known = opened.shape, None if guide is None else guide.importance
        wanted = dict(types or wanted_types(name, model, known is not None, pure=pure))
        if known is not None:
            _check(known, wanted, on_note)
        chosen = encode(opened, wanted) if encode else plain(known, opened)
        fields: dict[str, object] = {"general.file_type": MIXTURES[name].file_type}
        if guide is not None:
            fields |= imatrix_fields(guide.importance, guide.name)
        return write_source(opened, target, wanted, encode=chosen, fields=fields, progress=progress)


def _check(importance: Importance, types: Mapping[str, str], on_note: OnNote) -> None:
    """Raises ValueError for an importance matrix that has none of the tensors; says how many have no entry."""
    inside = [name for name in types if name.startswith("blk.")]
    missing = [name for name in inside if importance.of(name) is None]
    if inside and len(missing) == len(inside):
        raise ValueError("the importance matrix knows none of the model's tensors: it was made with another model")
    if missing:
        on_note(f"{len(missing)} tensors of the layers have no importance ({missing[0]}): they are rounded without")


def use_threads(threads: int | None) -> None:
    """Threads of the kernels from now on; the physical cores where nothing is said."""
    kernels.set_num_threads(threads or machine.physical_cores())


def guide_of(config: QuantizeConfig, source: Path, out: Path, stream: TextIO | None) -> Guide | None:
    """The importance matrix of a step: that of a file, or out/imatrix.gguf, which is made of texts where it is not there."""
    if config.imatrix:
        return Guide(read_imatrix(config.imatrix), Path(config.imatrix).name)
    if not config.data:
        return None
    path = out / "imatrix.gguf"
    if not path.is_file():
        with Progress(stream, show=show_count) if stream is not None else Silent() as progress:
            found = collected(
                runnable(source), config.data, CollectOptions(tokens=config.tokens), threads=config.threads or None,
                state=out / ".imatrix.progress", progress=progress,
            )  # fmt: skip
        with new_file(path) as staging:
            write_imatrix(staging, found)
    return Guide(read_imatrix(path), path.name)

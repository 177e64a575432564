"""A model to one smaller file, with all that is known of making it good: what `gangpao quantize` and a step of a line share.

    importance   an importance matrix, given or made from texts
    types        those of a named mixture, or those that a budget of bytes is best spent on
    rounding     block by block, or with the calibration's inputs in view (rounding/)

A target without .gguf is a folder for servers, in int4 or int8 (folders/). Everything that takes long is kept in a folder, and a
call that was killed goes on.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from gangpao.compress.budget.amount import parse_bytes
from gangpao.compress.folders.forms import FORMS
from gangpao.compress.importance.calibration import calibrate
from gangpao.compress.importance.run import WINDOW
from gangpao.compress.quantize.config import QuantizeConfig
from gangpao.compress.quantize.mixtures import fitting, named, wanted_types
from gangpao.compress.quantize.report import facts as file_facts
from gangpao.compress.quantize.report import table as file_table
from gangpao.compress.quantize.run import Guide, guide_of, quantized, use_threads
from gangpao.compress.quantize.source import open_source
from gangpao.compress.quantize.tensors import OnNote
from gangpao.compress.quantize.write import Written, imatrix_fields
from gangpao.compress.rounding.config import RoundingConfig
from gangpao.compress.step import StepResult
from gangpao.formats.adapters.gguf import gguf_name
from gangpao.formats.imatrix import Importance
from gangpao.progress import Progress, Silent
from gangpao.units import show_bytes, show_count

Ids = npt.NDArray[np.int64]

# What a folder keeps to go on from, until the file is there.
KEPT = ("importance.npz", "budget", "rounding", "reference.gguf")
# The mixture whose number a file of a budget bears, by the type that most of its weights have.
_NUMBER = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


class FileConfig(QuantizeConfig):
    """A file in a mixture or within a budget, with an importance matrix, rounded as is said."""

    bits: float | None = Field(
        default=None, gt=0, le=32, description="Budget in bits a weight, in place of `to`: types are solved for."
    )
    bytes: str = Field(default="", description="Budget for the whole file, in place of `to`: 900MB, 1.2GiB.")
    rounding: RoundingConfig = RoundingConfig(kind="plain")

    @field_validator("to", mode="before")
    @classmethod
    def _known(cls, value: str) -> str:
        return value.lower() if str(value).lower() in FORMS else named(value)

    @model_validator(mode="after")
    def _check(self) -> FileConfig:
        if self.bits is not None and self.bytes:
            raise ValueError("bits and bytes are two budgets: give one of them")
        if self.bytes:
            parse_bytes(self.bytes)
        if self.to in FORMS and (self.bits is not None or self.bytes or self.rounding.kind != "plain"):
            raise ValueError(f"{self.to} is a folder for servers: a budget and rounding are for .gguf files")
        fields = type(self).model_fields
        if self.has_budget and (more := [key for key in ("to", "pure") if getattr(self, key) != fields[key].default]):
            raise ValueError(
                f"a budget solves for the types, so {' and '.join(more)} would say nothing: leave out the one or the other"
            )
        return self

    @property
    def has_budget(self) -> bool:
        """Whether types are solved for."""
        return self.bits is not None or bool(self.bytes)

    @property
    def nbytes(self) -> int | None:
        """The budget for the whole file; None where there is none in bytes."""
        return parse_bytes(self.bytes) if self.bytes else None

    @property
    def looks(self) -> bool:
        """Whether windows of ids are needed besides the importance matrix."""
        return self.has_budget or self.rounding.kind != "plain"


def check_source(config: FileConfig, source: Path) -> None:
    """Raises ValueError for a model that a budget or a rounding does not take, and for a budget that no file of it fits. Only its
    header is read, so that nobody waits for an importance matrix to be told."""
    if not config.looks:
        return
    from gangpao.compress.budget.solve import fitting as fitting_budget
    from gangpao.tune.base.load import base_shape

    shape = base_shape(source)
    latent = shape.mla and config.rounding.kind != "plain"
    what = "experts" if shape.moe else "Gated DeltaNet" if shape.delta else "latent attention" if latent else ""
    if what:
        raise ValueError(
            f"{source.name}: a model of {what}, for which {'rounding' if latent else 'a budget and rounding'} with texts in view "
            "cannot be had: take --to and plain rounding, with an importance matrix"
        )
    if config.has_budget:
        fitting_budget(source, nbytes=config.nbytes, bits=config.bits)


def make_file(
    config: FileConfig,
    source: Path,
    target: Path,
    *,
    guide: Guide | None,
    folder: Path,
    progress: Progress | None = None,
    on_note: OnNote = lambda _: None,
) -> tuple[Written, dict[str, Any]]:
    """Write `target` (.gguf); what became of it, and facts of budget and rounding. folder: keeps what was measured and rounded.

    Raises ValueError for a budget that nothing fits, naming the least and the most, and as its parts do.
    """
    progress = progress or Silent()
    ids = _windows(source, config) if config.looks else None
    importance = None if guide is None else guide.importance
    if not config.has_budget and config.rounding.kind == "plain":
        return quantized(
            source, target, config.to, guide=guide, pure=config.pure, progress=progress, on_note=on_note
        ), {}  # fmt: skip
    types, said, to = _types(config, source, guide, ids, folder, progress, on_note)
    if config.rounding.kind == "plain":
        return quantized(source, target, to, guide=guide, types=types, progress=progress, on_note=on_note), said
    from gangpao.compress.rounding.replace import replaced
    from gangpao.compress.rounding.run import rounded

    layers = Progress(show=show_count) if type(progress) is Progress else progress  # it counts layers, not bytes
    with layers:
        encode = rounded(source, types, config.rounding, ids, importance, folder=folder / "rounding", progress=layers)
    reference = folder / "reference.gguf"
    reference.unlink(missing_ok=True)
    done = quantized(source, reference, to, guide=guide, types=types, progress=progress, on_note=on_note)
    better = replaced(reference, target, encode)
    reference.unlink()
    said["rounding"] = {"kind": config.rounding.kind, "tensors": better}
    return Written(target, done.tensors, done.seconds, done.source_bytes), said


def _types(
    config: FileConfig, source: Path, guide: Guide | None, ids: Ids | None, folder: Path, progress: Progress, on_note: OnNote
) -> tuple[dict[str, str], dict[str, Any], str]:  # fmt: skip
    """Types of the matrices, what is to be known of them, and the mixture whose number the file bears."""
    if not config.has_budget:
        with open_source(source, on_note) as opened:
            model = opened.shape
        types = wanted_types(config.to, model, guide is not None, pure=config.pure)
        return {name: fitting(kind, model.shapes[name][-1]) for name, kind in types.items()}, {}, config.to
    from gangpao.compress.budget.solve import solve
    from gangpao.compress.budget.table import show

    assert ids is not None
    nbytes = config.nbytes
    fields = None if guide is None else imatrix_fields(guide.importance, guide.name)
    found = solve(
        source, nbytes=nbytes, bits=config.bits, importance=None if guide is None else guide.importance, ids=ids,
        progress=progress, folder=folder / "budget", fields=fields,
    )  # fmt: skip
    on_note(f"types for {show_bytes(found.nbytes)}, {found.bits:.3f} bits a weight:\n{show(found)}")
    for note in found.notes:
        on_note(note)
    most = Counter(found.types.values()).most_common(1)[0][0]
    said = {
        "budget": {"bytes": found.nbytes, "bits": found.bits, "divergence": found.divergence, "stderr": found.error}
    }
    return found.types, said, _NUMBER.get(most, most)


def _windows(source: Path, config: FileConfig) -> Ids:
    """Ids [windows, length] that a budget or a rounding looks at."""
    from gangpao.tune.base.load import base_shape, base_tokenizer

    tokenizer, architecture = base_tokenizer(source)
    length = min(WINDOW, base_shape(source).max_position_embeddings)
    count = max(6, config.tokens // length)
    return calibrate(tokenizer, config.data, windows=count, length=length, architecture=architecture).ids


def make_folder(source: Path, target: Path, form: str, importance: Importance | None, progress: Progress) -> Path:
    """The folder for servers: int4 or int8 in compressed-tensors' form, with the tokenizer's files of the source."""
    from gangpao.compress.folders import write as folders
    from gangpao.compress.prune.source import load
    from gangpao.model.weights import state

    base = load(source)
    tensors = state(base.model)
    progress.start("integers", sum(tensor.nbytes for tensor in tensors.values()))

    def matters(name: str) -> Any:
        there = gguf_name(name)
        return importance.of(there) if importance is not None and there is not None else None

    return folders.write(
        base.model.config, tensors, target, form, matters=matters, extra=base.files, progress=progress.update
    )


def run_step(
    config: FileConfig, source: Path, original: Path, out: Path, *, stream: TextIO | None = None
) -> StepResult:
    """A step of `gangpao compress`: out/model.gguf (int4, int8: the folder out/model), and out/imatrix.gguf it was made with.

    Called again it goes on with what is there, and writes the same file.
    """
    out.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    check_source(config, source)
    with Progress(stream) if stream is not None else Silent() as progress:
        guide = guide_of(config, source, out, stream)
        use_threads(config.threads or None)
        if config.to in FORMS:
            path = make_folder(source, out / "model", config.to, None if guide is None else guide.importance, progress)
            nbytes = sum(file.stat().st_size for file in path.iterdir())
            return StepResult(path, {"to": config.to, "file_bytes": nbytes})
        done, said = make_file(
            config, source, out / "model.gguf", guide=guide, folder=out, progress=progress, on_note=notes.append
        )
    for text in notes:
        print(f"note: {text}", file=stream or sys.stderr)
    if stream is not None:
        print(file_table(done), file=stream)
    return StepResult(done.path, {"to": config.to, **file_facts(done), **said, "notes": notes})

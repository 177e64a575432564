"""The step of a compression in which a model learns from its teacher; start reading here.

source (what was pruned, say) -> training.teach -> out/model
"""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from gangpao.compress.distil.config import DistilConfig
from gangpao.compress.distil.output import write_floats
from gangpao.compress.distil.training import masks_of, own_weights, teach
from gangpao.compress.prune.masks import write_masks
from gangpao.compress.step import StepResult
from gangpao.tune.base.load import Base


def run_step(
    config: DistilConfig, source: Path, original: Path, out: Path, *, stream: TextIO | None = None
) -> StepResult:
    """Train `source` towards the teacher (`original` unless the configuration names another one) and write `out/model`, a Hugging
    Face folder; `out/model.gguf` with F32 weights where neither model is a folder, since a GGUF file's tokenizer stays in one.

    Called again it goes on where it was stopped, with the same bits. Raises ValueError as training.teach does.
    """
    taught = teach(config, source, original, out, _all_weights, stream)
    student = taught.student
    path = write_floats(
        own_weights(student.model), student.config, out / "model", _with_tokenizer(source, original, config.teacher)
    )
    if masks := masks_of(source):
        write_masks(path, masks)  # for the step that follows
    return StepResult(path, taught.facts)


def _all_weights(student: Base) -> None:
    """Every weight is trained, as teach leaves them."""


def _with_tokenizer(source: Path, original: Path, teacher: str | None) -> list[Path]:
    return [source, original, *([Path(teacher)] if teacher else [])]

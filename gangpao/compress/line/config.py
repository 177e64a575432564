"""What a compression is: one TOML file, a model and the steps it goes through.

    model = "smollm2-135m"

    [[step]]
    kind = "prune"
    layers = 0.5

    [[step]]
    kind = "distil"
    tokens = 2_000_000
    data.files = ["texts.jsonl"]

    [[step]]
    kind = "quantize"
    to = "Q4_K_M"

Steps come in any order; each begins with the model of the one before. Paths are relative to the file, those of --set to the folder
where the command is typed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

from pydantic import Field

from gangpao.compress.distil.config import DistilConfig
from gangpao.compress.experts.config import ExpertsConfig
from gangpao.compress.line.file import FileConfig
from gangpao.compress.prune.config import PruneConfig
from gangpao.compress.qat.config import QatConfig
from gangpao.compress.step import StepResult
from gangpao.config import Frozen, PathText, load_toml


class PruneStep(PruneConfig):
    """Fewer layers, heads, channels; or n:m masks."""

    kind: Literal["prune"]


class DistilStep(DistilConfig):
    """Training towards a teacher, the model that all began with unless another one is named."""

    kind: Literal["distil"]


class QatStep(QatConfig):
    """Training through the arithmetic of a format."""

    kind: Literal["qat"]


class ExpertsStep(ExpertsConfig):
    """MLPs cut into experts."""

    kind: Literal["experts"]


class QuantizeStep(FileConfig):
    """A file of small weights."""

    kind: Literal["quantize"]


Step = Annotated[PruneStep | DistilStep | QatStep | ExpertsStep | QuantizeStep, Field(discriminator="kind")]
Run = Callable[..., StepResult]
_RUNS = {
    "prune": "gangpao.compress.prune.run", "distil": "gangpao.compress.distil.run", "qat": "gangpao.compress.qat.run",
    "experts": "gangpao.compress.experts.run", "quantize": "gangpao.compress.line.file",
}  # fmt: skip


class ReportConfig(Frozen):
    """What every step's model is measured with."""

    text: tuple[str, ...] = Field(
        default=(), description="Texts to be measured on, NAME=PATH names a part; none: gangpao's own held-out texts."
    )
    windows: int = Field(default=16, ge=1, description="Windows of each part of the texts at most.")
    answers: bool = Field(default=True, description="Also ask questions: do answers still end?")
    prompts: PathText | None = Field(default=None, description="Questions, a line each; none: gangpao's own.")
    max_tokens: int = Field(default=256, ge=1, description="Where an answer is cut off.")
    speed: bool = Field(default=True, description="Also measure tokens a second.")


class CompressConfig(Frozen):
    """A whole compression."""

    model: str = Field(
        min_length=1, description="Name in the catalog, .gguf file, Hugging Face folder, or run of `gangpao train`."
    )
    step: tuple[Step, ...] = Field(min_length=1, description="What is done, one after the other.")
    report: ReportConfig = ReportConfig()
    cost_profile: str | None = Field(default=None, description="Machine in cost.toml, for yuan.")


def do_step(step: Any, source: Path, original: Path, out: Path, stream: TextIO | None) -> StepResult:
    """A step with the configuration of its own room, which does not know of the line."""
    base = type(step).__mro__[1]
    assert issubclass(base, Frozen)
    run: Run = import_module(_RUNS[step.kind]).run_step
    return run(base(**step.model_dump(exclude={"kind"})), source, original, out, stream=stream)


def load_compress_config(path: Path, overrides: tuple[str, ...] = ()) -> CompressConfig:
    """A compression's TOML with `a.b=c` over it. Raises ValueError naming file, line and key.

    model, and the files of a step's data, are paths where they lie beside the file.
    """
    config = load_toml(path, CompressConfig, overrides)
    steps = tuple(_beside(step, path.parent) for step in config.step)
    config = config.model_copy(update={"step": steps})
    beside = path.parent / Path(config.model).expanduser()
    return config.model_copy(update={"model": str(beside.absolute())}) if beside.exists() else config


def _beside(step: Any, here: Path) -> Any:
    """A step whose relative paths of data start at the folder of the file that names them."""
    if isinstance(step, DistilStep | QatStep):
        return step.model_copy(update={"data": step.data.below(here)})
    if isinstance(step, QuantizeStep):
        own = tuple(one if one == "own" else str((here / Path(one).expanduser()).absolute()) for one in step.data)
        return step.model_copy(update={"data": own})
    calibration = step.calibration
    if calibration.files and not calibration.root:
        calibration = calibration.model_copy(update={"root": str(here.absolute())})
    return step.model_copy(update={"calibration": calibration})

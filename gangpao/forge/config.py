"""What a line is: one TOML file with a table for each stage. Stages that have no table are left out.

    name = "nano"

    [data]
    config = "data-tiny.toml"

    [train]
    config = "train-tiny.toml"
    set = ["optimizer.lr=0.01"]

    [tune.sft]
    config = { data.files = ["talks.jsonl"], steps = 100 }

    [export]
    type = "Q8_0"

`config` is a file of the stage's own command, or its tables inline; in inline tables a text with a slash or a dot that names files
or a folder beside this file is a path. The order of stages is fixed (ORDER), that of several [tune.NAME] is the file's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from gangpao.config import Frozen, PathText, load_toml
from gangpao.forge.content import matches_in, path_in

ORDER = ("data", "sandbox", "plan", "train", "tune", "compress", "evaluate", "export", "check")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Slurm(Frozen):
    """How a stage is run elsewhere."""

    launch: tuple[str, ...] = Field(
        default=(), description='Words in front of the command: ["torchrun", "--nproc-per-node", "2"].'
    )
    slurm: tuple[str, ...] = Field(default=(), description='Options of sbatch for the stage: ["--gres=gpu:1"].')


class Configured(Slurm):
    """A stage whose command has a TOML of its own."""

    config: PathText | dict[str, Any] = Field(description="File of the stage's own command, or its tables.")
    set: tuple[str, ...] = Field(default=(), description="key=value over it, as --set.")


class DataStage(Configured):
    """`gangpao data build`."""


class SandboxStage(Configured):
    """`gangpao sandbox NAME`, one experiment after the other."""

    experiments: tuple[str, ...] = Field(default=("lr", "scaling"), min_length=1, description="Which, in this order.")
    storage: str | None = Field(default=None, description="postgresql://... for workers on several machines.")


class PlanStage(Slurm):
    """`gangpao sandbox plan`: what the experiments found becomes the recipe of the training."""

    budget: str = Field(
        description='"1e15 flops" gives the same plan every time; hours and yuan follow what was measured.'
    )
    serve_tokens: float = Field(default=0, ge=0, description="Tokens it will answer, paid from the same budget.")
    max_params: float | None = Field(default=None, gt=0, description="Largest number of parameters.")
    memory: float | None = Field(default=None, gt=0, description="GB of the machine that trains; none: of this one.")
    force: bool = Field(default=False, description="Go further than the experiments support.")


class TrainStage(Slurm):
    """`gangpao train`."""

    config: PathText | dict[str, Any] | None = Field(default=None, description="None: what the plan wrote.")
    set: tuple[str, ...] = Field(default=(), description="key=value over it, as --set.")


class TuneStage(Configured):
    """`gangpao tune`, and `gangpao merge` where an adapter comes out."""


class CompressStage(Configured):
    """`gangpao compress`."""


class EvaluateStage(Slurm):
    """`gangpao eval perplexity` and `gangpao eval`."""

    texts: tuple[str, ...] = Field(default=(), description="Texts for perplexity: PATH or NAME=PATH.")
    limit: int | None = Field(default=None, ge=1, description="Windows of each text, or items of each task.")
    suites: tuple[str, ...] = Field(default=(), description="Suites of benchmarks.")
    tasks: tuple[str, ...] = Field(default=(), description="Single tasks.")
    data: str | None = Field(default=None, description="Folder with the data sets, or huggingface, or modelscope.")

    @model_validator(mode="after")
    def _something(self) -> EvaluateStage:
        if not (self.texts or self.suites or self.tasks):
            raise ValueError("it measures nothing: give texts, suites or tasks")
        return self


class ExportStage(Slurm):
    """`gangpao export`: the file that is the end of the line."""

    type: str = Field(default="Q8_0", description="Type of the matrices, where compression has not made a file yet.")


class CheckStage(Slurm):
    """`gangpao forge check`: the file behind a server answers as it does without."""

    prompts: tuple[str, ...] = Field(default=(), description="What is asked; none: gangpao's own.")
    max_tokens: int = Field(default=32, ge=1, le=4096, description="Where an answer is cut off.")


class ForgeConfig(Frozen):
    """A whole line."""

    name: str = Field(default="model", description="Of the file at the end: NAME.gguf.")
    model: str | None = Field(
        default=None, description="What is tuned and compressed where nothing is trained: a name, file or folder."
    )
    cost_profile: str | None = Field(default=None, description="Machine in cost.toml, for yuan.")
    data: DataStage | None = None
    sandbox: SandboxStage | None = None
    plan: PlanStage | None = None
    train: TrainStage | None = None
    tune: dict[str, TuneStage] = Field(default={}, description="Tunings by name, in their order.")
    compress: CompressStage | None = None
    evaluate: EvaluateStage | None = None
    export: ExportStage | None = None
    check: CheckStage | None = None

    @model_validator(mode="after")
    def _fits(self) -> ForgeConfig:
        for name in (self.name, *self.tune):
            if not _NAME.fullmatch(name):
                raise ValueError(f"the name {name!r:.80} must be letters, digits, dots, dashes, underscores")
        if not self.stages():
            raise ValueError(f"there is no stage; add at least one table of {', '.join(ORDER)}")
        if self.data is None and (self.sandbox is not None or self.train is not None):
            raise ValueError("[sandbox] and [train] learn from what [data] builds: add [data]")
        if self.plan is not None and self.sandbox is None:
            raise ValueError("[plan] rests on experiments: add [sandbox]")
        if self.train is not None and self.train.config is None and self.plan is None:
            raise ValueError("[train] has no config and there is no [plan] that writes one")
        if self.train is not None and self.model is not None:
            raise ValueError("model is what is tuned where nothing is trained; leave it or [train] out")
        behind = [name for name in self.stages() if name.partition("-")[0] in ORDER[4:]]
        if behind and self.train is None and self.model is None:
            raise ValueError(
                f"[{behind[0].replace('-', '.', 1)}] has no model: add [train], or model = NAME at the top"
            )
        if self.check is not None and self.export is None and self.compress is None:
            raise ValueError("[check] asks a file: add [export]")
        return self

    def stages(self) -> list[str]:
        """Names of the stages in their order: "data", ..., "tune-sft", ..."""
        return list(self._names())

    def _names(self) -> Iterator[str]:
        for name in ORDER:
            if name == "tune":
                yield from (f"tune-{one}" for one in self.tune)
            elif getattr(self, name) is not None:
                yield name

    def stage(self, name: str) -> Slurm:
        """The table of a stage by its name in `stages`."""
        kind, _, label = name.partition("-")
        found = self.tune[label] if kind == "tune" else getattr(self, kind)
        assert isinstance(found, Slurm)
        return found


def load_forge_config(path: Path, overrides: tuple[str, ...] = ()) -> ForgeConfig:
    """A line's TOML with `a.b=c` over it; paths come out absolute. Raises ValueError naming file, line and key."""
    config, here = load_toml(path, ForgeConfig, overrides), path.parent.absolute()
    changes: dict[str, Any] = {"tune": {name: _inline(stage, here) for name, stage in config.tune.items()}}
    changes |= {name: _inline(getattr(config, name), here) for name in ("data", "sandbox", "train", "compress")}
    if config.evaluate is not None:
        texts = tuple(_text_beside(text, here) for text in config.evaluate.texts)
        data = beside(config.evaluate.data, here)
        changes["evaluate"] = config.evaluate.model_copy(update={"texts": texts, "data": data})
    return config.model_copy(update=changes | {"model": beside(config.model, here)})


def _inline(stage: Any, here: Path) -> Any:
    """A stage, with paths of tables that stand inline made absolute."""
    tables = None if stage is None else stage.config
    return stage.model_copy(update={"config": beside(tables, here)}) if isinstance(tables, dict) else stage


def beside(value: Any, here: Path) -> Any:
    """`value` with every text in it that names a file or folder from `here` as an absolute path."""
    if isinstance(value, dict):
        return {key: beside(one, here) for key, one in value.items()}
    if isinstance(value, list):
        return [beside(one, here) for one in value]
    path = path_in(value, here)
    if path is not None:
        return str(path.resolve())
    return str(here.resolve() / Path(value).expanduser()) if matches_in(value, here) else value


def _text_beside(text: str, here: Path) -> str:
    name, equals, path = text.rpartition("=")
    return f"{name}{equals}{beside(path, here)}"

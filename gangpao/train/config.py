"""What a training run is: one TOML file, one frozen record, every option with its default and its meaning.

A run has stages, one after the other (stable, then anneal), each with its own mixture and length. The schedule looks at
the whole run: it warms up once and decays during the stages that say `decay = true`. Paths are relative to the file, those
of --set to the folder where the command is typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from gangpao.config import Frozen, PathText, anchored_overrides, load_toml, read_toml
from gangpao.data.config import DataConfig
from gangpao.model.init import KindRule, ParameterKind
from gangpao.train.schedule import Kind, Schedule, half_life_to


class OptimizerConfig(Frozen):
    """Which optimizer, and its constants."""

    kind: Literal["adamw", "muon", "adamh", "muonh"] = Field(
        default="adamw",
        description="muon: matrices inside the layers by Muon, the rest by AdamW; adamh, muonh: these matrices keep their first "
        "norm and turn by the learning rate.",
    )
    lr: float = Field(default=0.01, gt=0, description="Peak learning rate, before muP's factor for each parameter.")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled; not on norms and biases.")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Muon's.")
    turn: float = Field(
        default=1.0, gt=0, description="Of adamh and muonh: a step turns a matrix by lr times this, at every width."
    )
    clip: float = Field(default=1.0, ge=0, description="Largest norm of the whole gradient; 0 for no limit.")


class ScheduleConfig(Frozen):
    """The shape of the learning rate."""

    kind: Kind = "wsd"
    warmup_steps: int = Field(default=0, ge=0)
    half_life_steps: float | None = Field(
        default=None, gt=0, description="Of wsd's decay; none: so that it ends at `final`."
    )
    final: float = Field(default=0.1, gt=0, le=1, description="Share of the peak at the last step.")


class StageConfig(Frozen):
    """A part of a run with one mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    steps: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1, description="Instead of steps; rounded up to whole ones.")
    decay: bool = Field(default=False, description="The learning rate of wsd falls during this stage.")
    mixture: dict[str, float] = Field(
        default={}, description="Source -> weight; empty: the mixture that the data has for this name, else by tokens."
    )

    @model_validator(mode="after")
    def _check(self) -> StageConfig:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError(f"stage {self.name}: give either steps or tokens")
        if any(weight < 0 for weight in self.mixture.values()) or (self.mixture and not sum(self.mixture.values())):
            raise ValueError(f"stage {self.name}: weights of a mixture are not below zero, and not all zero")
        return self


class ModelChoice(Frozen):
    """A preset with changes, or the changes alone when they are a whole shape. vocab_size comes from the data."""

    preset: str | None = None
    change: dict[str, Any] = Field(default={}, description="Keys of a model's configuration.")


class UpcycleConfig(Frozen):
    """Make experts of the MLPs of `init_from`."""

    num_experts: int = Field(ge=2)
    num_experts_per_tok: int = Field(default=2, ge=1)


class GuardConfig(Frozen):
    """What to do with a step whose loss or gradient is not finite, or far above the usual."""

    on_bad_step: Literal["skip", "rollback", "stop"] = "skip"
    spike_factor: float = Field(
        default=0.0, ge=0, description="Bad when the loss exceeds this many medians of the last 50; 0: off."
    )
    max_bad_steps: int = Field(
        default=10, ge=0, description="Skipped steps in a row, or rollbacks in all, before the run stops."
    )


class SaveConfig(Frozen):
    """When checkpoints are written and which are kept. The end of every stage is always kept."""

    every_steps: int = Field(default=1000, ge=1)
    every_minutes: float = Field(default=30.0, gt=0, description="Also after so much time, whichever comes first.")
    keep_last: int = Field(default=2, ge=1)
    keep_best: bool = Field(
        default=True,
        description="Also the one with the lowest held-out loss, of those saved at a step that was evaluated: take for "
        "save.every_steps a multiple of evaluation.every_steps.",
    )


class EvaluationConfig(Frozen):
    """Held-out loss during the run: at these steps and no others, and at the last one."""

    every_steps: int = Field(default=500, ge=1)
    limit_tokens: int | None = Field(default=100_000, ge=1, description="Of every source; none: all of it.")
    rows: int = Field(default=8, ge=1, description="Rows in one forward pass.")
    stages: Literal["all", "last"] = Field(default="all", description="all: also at the end of every stage.")


class TrainConfig(Frozen):
    """A whole run."""

    data: PathText = Field(min_length=1, description="TOML of the data build.")
    data_dir: PathText | None = Field(default=None, description="Where the build lies or goes; none: <run>/data.")
    data_set: tuple[str, ...] = Field(default=(), description="key=value over the TOML of the data.")
    model: ModelChoice = ModelChoice()
    rules: dict[ParameterKind, KindRule] = Field(
        default={},
        description="First values and learning rates by kind of parameter, in place of the model's own rules.",
    )
    init_from: PathText | None = Field(
        default=None, description="Run, or Hugging Face folder, whose weights to begin with."
    )
    branch_from: PathText | None = Field(
        default=None, description="Run, or checkpoint of one, to go on from; it is only read."
    )
    upcycle: UpcycleConfig | None = None
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    seq_len: int = Field(default=512, ge=2)
    shuffle_rows: int = Field(
        default=1024,
        ge=1,
        description="Rows of a source that are shuffled together; as many as it has mix it whole.",
    )
    batch_tokens: int = Field(
        default=16_384, ge=2, description="Tokens of an optimizer step, over all micro-batches and ranks."
    )
    micro_batch_size: int = Field(default=8, ge=1, description="Rows of one forward pass on one rank.")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware multiplies it."
    )
    recompute: bool = Field(
        default=False, description="Keep one input a layer for the backward pass: less memory, a third slower."
    )
    compile: bool = Field(default=False, description="Through torch.compile.")
    z_loss: float = Field(default=0.0, ge=0)
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of an average of the weights, which is then exported; 0: none."
    )
    guard: GuardConfig = GuardConfig()
    save: SaveConfig = SaveConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | None = Field(
        default=None, ge=1, description="None: one a core where the run begins; kept when it goes on."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["replicate", "shard"] = Field(
        default="replicate", description="Over ranks of torchrun; shard: FSDP2."
    )
    shard_ranks: int | None = Field(
        default=None,
        ge=1,
        description="Ranks that share one sharded copy, usually those of a machine (HSDP); none: all.",
    )
    offload: bool = Field(
        default=False, description="Sharded: weights and optimizer in the machine's memory, also with one GPU."
    )
    no_sync: bool = Field(
        default=False,
        description="Sharded: exchange gradients once a step, not once a micro-batch; each rank then holds whole ones.",
    )
    cost_profile: str | None = Field(default=None, description="Machine in cost.toml, for yuan so far.")
    peak_tflops: float | None = Field(
        default=None, gt=0, description="For mfu; none: measured with one matrix product."
    )
    tensorboard: bool = False
    export: bool = Field(default=True, description="Write the trained model as a Hugging Face folder at the end.")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, these are {', '.join(names)}")
        decays = [stage.decay for stage in self.stages]
        if decays != sorted(decays):
            raise ValueError(
                "a stage with decay = true is followed by one without: the learning rate would have to rise again"
            )
        if self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of seq_len {self.seq_len}")
        if self.init_from and self.branch_from:
            raise ValueError(
                "init_from begins a new run with given weights, branch_from goes on with a run: choose one"
            )
        if self.upcycle and not self.init_from:
            raise ValueError("upcycle makes experts of a trained model: name it in init_from")
        if self.parallel != "shard" and (self.offload or self.no_sync or self.shard_ranks):
            raise ValueError('offload, no_sync and shard_ranks are ways to shard: set parallel = "shard" with them')
        return self

    @property
    def rows(self) -> int:
        """Rows of an optimizer step."""
        return self.batch_tokens // self.seq_len

    def stage_steps(self) -> list[int]:
        """Optimizer steps of every stage."""
        return [s.steps or -(-(s.tokens or 0) // self.batch_tokens) for s in self.stages]

    def schedule_from(self, begin: int = 0) -> Schedule:
        """The learning rate of the run, whose first step is `begin` + 1 (a branch goes on counting)."""
        steps = self.stage_steps()
        total = begin + sum(steps)
        stable = begin + sum(n for n, stage in zip(steps, self.stages, strict=True) if not stage.decay)
        s = self.schedule
        room = stable if s.kind.startswith("wsd") else total - 1
        if s.warmup_steps > room:
            raise ValueError(
                f"schedule.warmup_steps {s.warmup_steps} is more than the {room} steps there are before the decay"
            )
        half_life = s.half_life_steps or (
            half_life_to(s.final, total - stable) if total > stable and s.final < 1 else 1e30
        )
        return Schedule(s.kind, self.optimizer.lr, total, s.warmup_steps, stable, half_life, s.final)


def load_train_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """A run's TOML with `a.b=c` over it, its paths absolute. Raises ValueError naming file, line and key."""
    if "sources" in read_toml(path):
        raise ValueError(
            f"{path}: this describes data (it has [sources]): `gangpao data build {path} --out FOLDER` builds it, and a run's TOML "
            "names it as data"
        )
    config = load_toml(path, TrainConfig, overrides)
    data_set = anchored_overrides(config.data_set, DataConfig, path, "data_set", overrides)
    return config.model_copy(update={"data_set": data_set})

"""What a tuning run is: one TOML file, or a model and a file of rows, every option with its default and its meaning.

    model = "smollm2-135m"

    [data]
    files = ["conversations.jsonl"]

The learning rate is that of the method where none is given (LEARNING_RATES). Paths are relative to the file, those of --set to the
folder where the command is typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from gangpao.config import Frozen, from_overrides, load_toml
from gangpao.train.config import EvaluationConfig, GuardConfig, OptimizerConfig, SaveConfig
from gangpao.train.schedule import Kind as ScheduleKind
from gangpao.train.schedule import Schedule, half_life_to
from gangpao.train.step.lean import LeanConfig
from gangpao.tune.data.config import Kind as DataKind
from gangpao.tune.data.config import TuneData
from gangpao.tune.methods.config import Kind as MethodKind
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.objectives.config import Kind as ObjectiveKind
from gangpao.tune.objectives.config import ObjectiveConfig
from gangpao.tune.objectives.rewards import reward_of
from gangpao.tune.pictures.config import MERGER_RATE, Drawn, NewConfig, SightConfig

# Peaks for models of 0.1 to 2 B parameters. Adapters take some ten times the rate of full tuning (docs/tuning.md says what was
# measured); preferences take a tenth of what imitation takes, or answers fall apart.
LEARNING_RATES: dict[MethodKind, float] = {
    "full": 2e-5, "lora": 4e-4, "dora": 4e-4, "bitfit": 4e-4, "ia3": 3e-3, "adapter": 4e-4, "parallel_adapter": 4e-4,
    "low_rank_adapter": 4e-4, "compacter": 1e-3,
}  # fmt: skip
PREFERENCE_FACTOR = 0.1
_DATA_KINDS: dict[ObjectiveKind, DataKind] = {
    "sft": "answers", "pretrain": "texts", "kto": "labelled", "grpo": "answers", "dpo": "pairs", "ipo": "pairs",
    "simpo": "pairs", "orpo": "pairs",
}  # fmt: skip
WARMUP = 0.03  # of all steps


class TuneOptimizer(Frozen):
    """AdamW and its constants, as they are usual for tuning."""

    kind: Literal["adamw", "muon", "lean"] = Field(
        default="adamw",
        description="muon: matrices by Muon, the rest by AdamW; lean: AdamW of all weights in 3 to 5 bytes each, see [lean].",
    )
    lr: float | None = Field(default=None, gt=0, description="Peak learning rate; none: that of the method.")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled.")
    clip: float = Field(default=1.0, ge=0, description="Largest norm of the whole gradient; 0 for no limit.")


class TuneSchedule(Frozen):
    """The shape of the learning rate."""

    kind: ScheduleKind = "linear"
    warmup_steps: int | None = Field(default=None, ge=0, description="None: 3 % of all steps.")
    decay_share: float = Field(default=0.2, gt=0, le=1, description="Share of the steps in which wsd decays.")
    final: float = Field(default=0.1, gt=0, le=1, description="Share of the peak at the last step.")

    def over(self, steps: int, peak: float) -> Schedule:
        """The learning rate of a run of so many steps. Raises ValueError where warming up leaves nothing of it."""
        warmup = round(WARMUP * steps) if self.warmup_steps is None else self.warmup_steps
        stable = steps - max(1, round(self.decay_share * steps)) if self.kind.startswith("wsd") else steps
        if warmup > max(stable - 1, 0) and warmup:
            raise ValueError(f"schedule.warmup_steps {warmup} leaves nothing of a run of {steps} steps")
        half_life = half_life_to(self.final, max(1, steps - stable)) if self.final < 1 else 1e30
        return Schedule(self.kind, peak, steps, warmup, stable, half_life, self.final)


class TuneConfig(Frozen):
    """A whole run."""

    model: str = Field(
        default="", description="Name in the catalog, .gguf file, Hugging Face folder, or run of `gangpao train`."
    )
    new: NewConfig | None = Field(default=None, description="In place of model: one that sees, put together here.")
    vision: SightConfig = SightConfig()
    pictures: tuple[Drawn, ...] = Field(default=(), description="Pictures that the run draws, beside its files.")
    storage: Literal["auto", "fp32", "bf16", "fp16", "nf4"] = Field(
        default="auto", description="How the frozen base lies in memory; auto: in the file's own types."
    )
    data: TuneData = TuneData()
    method: MethodConfig = MethodConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    epochs: float = Field(default=2.0, gt=0, description="How often every row is seen, where steps is not given.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps, instead of epochs.")
    seq_len: int = Field(default=512, ge=8, description="Tokens of a packed row, and of the longest conversation.")
    batch_tokens: int = Field(default=4096, ge=8, description="Tokens of an optimizer step.")
    batch_answers: int = Field(
        default=8,
        ge=1,
        description="Pairs, or answers with labels, of an optimizer step, where preferences are learned; generated answers (grpo).",
    )
    micro_batch_size: int = Field(
        default=2, ge=1, description="Rows (or pairs, or answers) of one forward pass; grpo: a prompt."
    )
    optimizer: TuneOptimizer = TuneOptimizer()
    lean: LeanConfig = LeanConfig()
    schedule: TuneSchedule = TuneSchedule()
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="Of the computation; auto: bf16 where the hardware multiplies it."
    )
    recompute: bool = Field(
        default=False, description="Keep one input a layer for the backward pass: less memory, a third slower."
    )
    guard: GuardConfig = GuardConfig()
    save: SaveConfig = SaveConfig(every_steps=200)
    evaluation: EvaluationConfig = EvaluationConfig(every_steps=100)
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | None = Field(
        default=None, ge=1, description="None: one a core where the run begins; kept when it goes on."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["replicate", "shard"] = Field(
        default="replicate",
        description="Over ranks of torchrun; shard: every rank keeps a part of base, adapter and optimizer (FSDP2).",
    )
    shard_ranks: int | None = Field(
        default=None,
        ge=1,
        description="Ranks that share one sharded copy, usually those of a machine (HSDP); none: all.",
    )
    cost_profile: str | None = Field(default=None, description="Machine in cost.toml, for yuan so far.")
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check(self) -> TuneConfig:
        if bool(self.model) == (self.new is not None):
            raise ValueError("name a model, or say in [new] what one is put together from")
        if self.objective.kind == "grpo":
            self._check_grpo()
        if self.counts_tokens and self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of seq_len {self.seq_len}")
        if self.rows % self.micro_rows:
            of = "batch_tokens / seq_len" if self.counts_tokens else "batch_answers"
            raise ValueError(
                f"a step has {self.rows} rows ({of}), which is no multiple of micro_batch_size {self.micro_batch_size}"
            )
        lean = self.optimizer.kind == "lean"
        self._check_parallel(lean)
        if self.method.kind == "full" and self.storage not in ("auto", "fp32", *(["bf16"] if lean else [])):
            raise ValueError(
                f"method full changes the weights, and in {self.storage} small changes are lost: leave storage out, or take "
                'optimizer.kind = "lean" with bf16'
            )
        if lean and self.lean.release and self.rows != self.micro_batch_size:
            raise ValueError(
                f"lean.release uses gradients as they come, so a step is one pass: set micro_batch_size to {self.rows}, the rows "
                "of a step, or fewer batch_tokens"
            )
        return self

    def _check_parallel(self, lean: bool) -> None:
        if self.parallel != "shard":
            if self.shard_ranks:
                raise ValueError('shard_ranks is a way to shard: set parallel = "shard" with it')
            return
        if lean:
            raise ValueError(
                'optimizer.kind = "lean" is for whole weights: take "adamw" with parallel = "shard", whose state is in parts too'
            )
        if self.new is not None or self.pictures:
            raise ValueError('a model that sees is tuned on whole copies: leave out parallel = "shard"')

    def _check_grpo(self) -> None:
        answers = self.objective.answers
        reward_of(self.objective.rewards)
        if self.method.kind != "lora":
            raise ValueError(f"grpo asks the engine, which computes with adapters of kind lora, not {self.method.kind}")
        if self.batch_answers % answers:
            raise ValueError(
                f"batch_answers {self.batch_answers} is no multiple of objective.answers {answers}: a step has all answers "
                "to a prompt"
            )

    @property
    def data_kind(self) -> DataKind:
        """What the objective needs of the data."""
        return _DATA_KINDS[self.objective.kind]

    @property
    def counts_tokens(self) -> bool:
        """Whether a step is so many tokens (batch_tokens); else it is so many answers or pairs (batch_answers)."""
        return self.data_kind not in ("pairs", "labelled") and self.objective.kind != "grpo"

    @property
    def step_size(self) -> str:
        """What a step learns from, in words."""
        if self.counts_tokens:
            return f"{self.batch_tokens:,} tokens"
        return f"{self.batch_answers:,} {'pairs' if self.data_kind == 'pairs' else 'answers'}"

    @property
    def rows(self) -> int:
        """Rows of an optimizer step: packed ones, or pairs, or answers with labels, or prompts with all their answers."""
        if self.objective.kind == "grpo":
            return self.batch_answers // self.objective.answers
        return self.batch_tokens // self.seq_len if self.counts_tokens else self.batch_answers

    @property
    def micro_rows(self) -> int:
        """Rows of one forward pass: of GRPO a prompt with all its answers."""
        return 1 if self.objective.kind == "grpo" else self.micro_batch_size

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        factor = 1.0 if self.objective.kind in ("sft", "pretrain") else PREFERENCE_FACTOR
        if "text" not in self.vision.train:
            return self.optimizer.lr or MERGER_RATE
        return self.optimizer.lr or LEARNING_RATES[self.method.kind] * factor

    def optimizer_config(self) -> OptimizerConfig:
        """What the optimizer is made of."""
        kind = "muon" if self.optimizer.kind == "muon" else "adamw"
        return OptimizerConfig(**self.optimizer.model_dump(exclude={"lr", "kind"}), kind=kind, lr=self.peak)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the computation; None: what the device is good at."""
        return {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]

    @property
    def base_storage(self) -> str:
        """How the base lies in memory. Weights that are trained are float32, or bf16 where the lean optimizer keeps what rounding
        would lose; plain bf16 would stand still under small steps."""
        if self.storage == "auto" and self.method.kind == "full":
            return "bf16" if self.optimizer.kind == "lean" else "fp32"
        return self.storage

    def schedule_of(self, steps: int) -> Schedule:
        """The learning rate of a run of so many steps."""
        return self.schedule.over(steps, self.peak)


def load_tune_config(path: Path, overrides: tuple[str, ...] = ()) -> TuneConfig:
    """A run's TOML with `a.b=c` over it, its paths absolute. Raises ValueError naming file, line and key.

    model is a path where one stands beside the file, else a name.
    """
    config = load_toml(path, TuneConfig, overrides)
    here = Path() if any(_sets(text, "data.files") for text in overrides) else path.parent
    config = config.model_copy(update={"data": config.data.below(here)})
    beside = path.parent / Path(config.model).expanduser()
    if not any(_sets(text, "model") for text in overrides) and beside.exists():
        return config.model_copy(update={"model": str(beside.absolute())})
    return config


def typed_config(overrides: tuple[str, ...]) -> TuneConfig:
    """The same from `a.b=c` alone; paths start where the command is typed."""
    config = from_overrides(TuneConfig, overrides)
    return config.model_copy(update={"data": config.data.below(Path())})


def _sets(override: str, key: str) -> bool:
    return override.partition("=")[0].strip() == key

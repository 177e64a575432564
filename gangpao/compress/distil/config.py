"""What a model that learns from a teacher is told: `[step]` kind distil, and what quantization-aware training shares with it.

    [[step]]
    kind = "distil"
    tokens = 5_000_000
    data.files = ["texts.jsonl"]

The teacher is the model that the compression began with, unless another one is named. Learning rates are those for models of 0.1 to
2 B weights that were trained before, tried on the models of docs/compression.md.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from gangpao.compress.distil.divergence import Kind
from gangpao.compress.distil.inner import Alike, Pair, Seen
from gangpao.compress.distil.logits import Spec
from gangpao.compress.distil.store import Precision
from gangpao.config import Frozen, PathText
from gangpao.model.config import ModelConfig
from gangpao.train.config import EvaluationConfig, GuardConfig, OptimizerConfig, SaveConfig
from gangpao.train.step.lean import LeanConfig
from gangpao.tune.config import TuneOptimizer, TuneSchedule
from gangpao.tune.data.config import TuneData

LEARNING_RATE = 2e-4
SCALED = 10.0  # more for models whose layers learn at a share of the rate (dim_model_base, as MiniCPM's do)


class LogitsConfig(Frozen):
    """How the student's distribution is compared with the teacher's."""

    kind: Kind = Field(
        default="forward",
        description="forward: KL(teacher || student), reverse: KL(student || teacher), mix: both, js: Jensen-Shannon.",
    )
    weight: float = Field(default=0.5, gt=0, lt=1, description="mix: the share of reverse KL; js: that of the teacher.")
    temperature: float = Field(default=1.0, gt=0, le=100, description="Logits of both are divided by it.")
    hard: float = Field(default=0.0, ge=0, le=1, description="Share of plain cross-entropy with the text.")

    def spec(self) -> Spec:
        """As the objective takes it."""
        return Spec(self.kind, self.weight, self.temperature, self.hard)


class HiddenConfig(Frozen):
    """Hidden states after layers; nothing with weight 0."""

    weight: float = Field(
        default=0.0, ge=0, description="Factor of their part of the loss; 1 is usual, 0 leaves them out."
    )
    kind: Alike = Field(default="mse", description="mse: of states divided by their root mean square; cosine.")
    layers: tuple[Pair, ...] | None = Field(
        default=None, description="Pairs [student's layer, teacher's], from 0; none: all, evenly, last to last."
    )


class AttentionConfig(Frozen):
    """What attention looks at; nothing with weight 0."""

    weight: float = Field(
        default=0.0, ge=0, description="Factor of their part of the loss; 0.1 is usual, 0 leaves it out."
    )
    kind: Seen = Field(default="kl", description="kl: KL(teacher || student) of each query's probabilities; mse.")
    layers: tuple[Pair, ...] | None = Field(
        default=None, description="Pairs [student's layer, teacher's], from 0; none: all, evenly, last to last."
    )


class KeepConfig(Frozen):
    """What the teacher says, kept on the disk, so that it works once."""

    top_k: int = Field(
        default=0, ge=0, description="Likeliest tokens that are kept of each; 0: the teacher works in every step."
    )
    precision: Precision = Field(default="float16", description="Of the kept log-probabilities.")
    folder: PathText | None = Field(default=None, description="Where; none: in the folder of the step.")


class TeachingConfig(Frozen):
    """What distillation and quantization-aware training are both told."""

    teacher: PathText | None = Field(
        default=None, description="Folder or .gguf file; none: the model that the compression began with."
    )
    data: TuneData = TuneData()
    tokens: int = Field(default=4_000_000, ge=8, description="Of the whole training; texts that end begin anew.")
    seq_len: int = Field(default=512, ge=8, description="Tokens of a packed row.")
    batch_tokens: int = Field(default=8192, ge=8, description="Tokens of an optimizer step.")
    micro_batch_size: int = Field(default=4, ge=1, description="Rows of one forward pass.")
    logits: LogitsConfig = LogitsConfig()
    hidden: HiddenConfig = HiddenConfig()
    attention: AttentionConfig = AttentionConfig()
    keep: KeepConfig = KeepConfig()
    optimizer: TuneOptimizer = TuneOptimizer(beta2=0.95)
    lean: LeanConfig = LeanConfig()
    schedule: TuneSchedule = TuneSchedule(kind="wsd_linear", decay_share=0.3, final=0.05)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="fp32", description="Of the computation; auto: bf16 where the hardware multiplies it."
    )
    recompute: bool = Field(
        default=False, description="Keep one input a layer for the backward pass: less memory, a third slower."
    )
    guard: GuardConfig = GuardConfig()
    save: SaveConfig = SaveConfig(every_steps=200, every_minutes=10, keep_best=False)
    evaluation: EvaluationConfig = EvaluationConfig(every_steps=100, limit_tokens=50_000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | None = Field(
        default=None, ge=1, description="None: one a core where the run begins; kept when it goes on."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cost_profile: str | None = Field(default=None, description="Machine in cost.toml, for yuan so far.")

    @model_validator(mode="after")
    def _check(self) -> TeachingConfig:
        if self.batch_tokens % self.seq_len:
            raise ValueError(f"batch_tokens {self.batch_tokens} is not a multiple of seq_len {self.seq_len}")
        if self.rows % self.micro_batch_size:
            raise ValueError(
                f"a step has {self.rows} rows (batch_tokens / seq_len), which is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        if self.keep.top_k and self.looks_inside:
            raise ValueError(
                "keep.top_k keeps what the teacher says, not what is inside it: set it to 0 where hidden.weight or "
                "attention.weight is above 0"
            )
        if self.optimizer.kind == "lean" and self.lean.release and self.rows != self.micro_batch_size:
            raise ValueError(
                f"lean.release uses gradients as they come, so a step is one pass: set micro_batch_size to {self.rows}, or fewer "
                "batch_tokens"
            )
        return self

    @property
    def looks_inside(self) -> bool:
        """Whether layers are compared."""
        return bool(self.hidden.weight or self.attention.weight)

    @property
    def rows(self) -> int:
        """Packed rows of an optimizer step."""
        return self.batch_tokens // self.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / self.batch_tokens))

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the computation; None: what the device is good at."""
        return {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16}[self.precision]

    def peak(self, shape: ModelConfig) -> float:
        """The peak learning rate for a model."""
        return self.optimizer.lr or LEARNING_RATE * (SCALED if shape.dim_model_base else 1.0)

    def optimizer_config(self, shape: ModelConfig) -> OptimizerConfig:
        """What the optimizer is made of."""
        kind = "muon" if self.optimizer.kind == "muon" else "adamw"
        return OptimizerConfig(**self.optimizer.model_dump(exclude={"lr", "kind"}), kind=kind, lr=self.peak(shape))


class DistilConfig(TeachingConfig):
    """A step in which a model learns from its teacher: after pruning, or into another shape."""

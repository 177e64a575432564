"""What quantization-aware training is told: what distillation is told, and the file that comes out.

[[step]]
kind = "qat"
to = "Q4_0"
tokens = 5_000_000
data.files = ["texts.jsonl"]
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gangpao.compress.distil.config import SCALED, TeachingConfig
from gangpao.compress.qat.arithmetic import TERNARY, Ternary
from gangpao.config import PathText
from gangpao.model.config import ModelConfig

# Peaks: 4 bits and more lie close to the floats that they come from, three values do not. Scales are
# trained by gains around 1.
LEARNING_RATE, TERNARY_LEARNING_RATE, SCALES_LEARNING_RATE = 5e-5, 4e-4, 1e-3


class QatConfig(TeachingConfig):
    """A step in which a model is trained with the weights that its file will hold."""

    to: str = Field(default="Q4_0", description="A type, or a mixture that llama-quantize knows, such as Q4_K_M.")
    types: dict[str, str] = Field(
        default={}, description='Types of other tensors by patterns of their GGUF names, such as "*ffn_down*" = "Q5_0".'
    )
    importance: PathText | None = Field(
        default=None, description="Importance matrix (`gangpao imatrix`) that weighs errors of rounding."
    )
    train: Literal["weights", "scales"] = Field(
        default="weights", description="scales: integers stay as they are; scales, norms and biases are trained."
    )
    ternary: Ternary = Field(
        default="mean",
        description="Scale of TQ1_0 and TQ2_0: mean magnitude of 256 weights (BitCPM's), or the largest (ggml's).",
    )
    rotate: bool = Field(
        default=False,
        description="Turn the residual stream by a Hadamard matrix that goes into the weights: no cost at run time, a tied head "
        "becomes its own. Sources are folders.",
    )
    activations: bool = Field(default=False, description="Inputs of products in int8, as the engine has them.")

    @model_validator(mode="after")
    def _fits(self) -> QatConfig:
        if self.optimizer.kind == "lean":
            raise ValueError("qat keeps float32 weights behind the rounded ones: take optimizer.kind adamw or muon")
        if self.train == "scales" and self.optimizer.kind == "muon":
            raise ValueError('train = "scales" leaves no matrix to Muon: take optimizer.kind adamw')
        return self

    def peak(self, shape: ModelConfig) -> float:
        """The peak learning rate for a model."""
        if self.train == "scales":
            return self.optimizer.lr or SCALES_LEARNING_RATE
        usual = TERNARY_LEARNING_RATE if self.to in TERNARY else LEARNING_RATE
        return self.optimizer.lr or usual * (SCALED if shape.dim_model_base else 1.0)

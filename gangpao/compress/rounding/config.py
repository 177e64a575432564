"""How weights are rounded. The defaults need no thought: error feedback, descent, then a short training of what is not whole."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gangpao.config import Frozen

Kind = Literal["plain", "gptq", "learned"]


class RoundingConfig(Frozen):
    """plain: every block for itself, in seconds. gptq: layer after layer with the calibration's inputs in view. learned: gptq, then
    scales, norms and biases of the whole model trained towards the float model's predictions."""

    kind: Kind = Field(default="gptq", description="plain, gptq or learned; each contains the one before.")
    damping: float = Field(
        default=0.01, gt=0, le=1, description="Of the mean of the Hessian's diagonal, added to the diagonal."
    )
    shrink: float | None = Field(
        default=None, ge=0, le=1,
        description="How far the Hessian is taken back to its diagonal; none: columns / (columns + tokens), its noise.",
    )  # fmt: skip
    share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Of what earlier roundings broke, how much a matrix tries to mend (GPTAQ); 0: GPTQ.",
    )
    passes: int = Field(
        default=3, ge=0, le=100, description="Of descent over values and scales behind the error feedback."
    )
    batch: int = Field(default=4, ge=1, description="Windows that go through a layer at once; memory, not results.")
    steps: int = Field(default=200, ge=1, description="Of learned: steps of training.")
    step_windows: int = Field(default=2, ge=1, description="Of learned: windows of a step.")
    lr: float = Field(
        default=1e-3, gt=0, description="Of learned: largest relative change of a scale in a step, about."
    )
    save_every: int = Field(default=25, ge=1, description="Of learned: steps between checkpoints.")

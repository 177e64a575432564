"""What a step that cuts MLPs into experts is told; every key with its default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from gangpao.compress.importance.config import CalibrationConfig
from gangpao.config import Frozen

Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[StrictInt, Field(ge=1)]


class ExpertsConfig(Frozen):
    """A step that cuts the MLP of every layer into experts. active is a number of experts, or a share with a point: 0.25."""

    experts: int = Field(default=8, ge=2, le=512, description="Experts of a layer, all of the same size.")
    active: Count | Share = Field(
        default=2, description="Experts that a token meets: a number of them, or a share with a point."
    )
    shared: float = Field(
        default=0.0, ge=0, lt=1,
        description="Share of the channels, those that carry most, that every expert holds a copy of: GGUF's llama and minicpm "
        "have no shared expert. The file grows by the copies.",
    )  # fmt: skip
    clustering: Literal["coactivation", "random", "index"] = Field(
        default="coactivation", description="Which channels are put together; the others are for comparing."
    )
    reconstruct: bool = Field(
        default=True, description="Least squares: the down projections take over from what is left out."
    )
    router_steps: int = Field(default=400, ge=1, description="Steps in which a layer's router is trained.")
    calibration: CalibrationConfig = CalibrationConfig()  # every fourth window only measures
    dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Of the weights that are written.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int | None = Field(default=None, ge=1, description="None: one a core.")

    @model_validator(mode="after")
    def _check(self) -> ExpertsConfig:
        if self.chosen > self.experts:
            raise ValueError(f"active is {self.active}, and there are {self.experts} experts")
        return self

    @property
    def chosen(self) -> int:
        """Experts that a token meets."""
        return self.active if isinstance(self.active, int) else max(1, round(self.active * self.experts))

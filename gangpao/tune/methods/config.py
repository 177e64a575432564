"""Which method tunes a model, and with what numbers; names and defaults are PEFT's where it has them."""

from __future__ import annotations

import re
from typing import Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from gangpao.config import Frozen

Kind = Literal["lora", "dora", "full", "bitfit", "ia3", "adapter", "parallel_adapter", "low_rank_adapter", "compacter"]
ALL_LINEAR = "all-linear"
Number = TypeVar("Number", int, float)


class MethodConfig(Frozen):
    """One method. What a kind has no use for is ignored by it: `rank` of full tuning, `targets` of BitFit."""

    kind: Kind = "lora"
    rank: int = Field(default=32, ge=1, description="Of the adapters; or the width of a bottleneck.")
    alpha: float | None = Field(
        default=None, gt=0, description="An adapter is scaled by alpha / rank; none: the rank, so by 1."
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) (rsLoRA).")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of an adapter's input. The rows then share one lane.")
    targets: str | tuple[str, ...] = Field(
        default=ALL_LINEAR,
        description='"all-linear": every linear inside the layers; a list of names or their ends ("q_proj", "lm_head", '
        '"embed_tokens"), "all-linear" among them; other text is a regular expression for whole names.',
    )
    rank_pattern: dict[str, int] = Field(default={}, description="Name, its end or a regular expression -> rank.")
    alpha_pattern: dict[str, float] = Field(default={}, description="Name, its end or a regular expression -> alpha.")
    lora_plus: float = Field(
        default=1.0,
        gt=0,
        description="How many times faster B learns than A (LoRA+; 16 in its paper), of LoRA and DoRA.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value  # TOML has lists

    @model_validator(mode="after")
    def _check(self) -> MethodConfig:
        if not self.targets:
            raise ValueError('targets are empty: name the linears, or leave "all-linear"')
        patterns = [*self.rank_pattern, *self.alpha_pattern, *([self.targets] if isinstance(self.targets, str) else [])]
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        wrong = [f"{name} {value}" for name, value in {**self.rank_pattern, **self.alpha_pattern}.items() if value <= 0]
        if wrong:
            raise ValueError(f"ranks and alphas are above zero, not {', '.join(wrong)}")
        return self

    def rank_of(self, name: str) -> int:
        """The rank of the adapter on a module."""
        return _by_pattern(self.rank_pattern, name, self.rank)

    def alpha_of(self, name: str) -> float:
        """The alpha of the adapter on a module."""
        return _by_pattern(self.alpha_pattern, name, float(self.rank) if self.alpha is None else self.alpha)

    def scale_of(self, name: str) -> float:
        """What the product B A of a module is multiplied by."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (rank**0.5 if self.rslora else rank)


def _by_pattern(patterns: dict[str, Number], name: str, otherwise: Number) -> Number:
    """The value of the first pattern that matches a name from one of its dots on, as in PEFT."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)

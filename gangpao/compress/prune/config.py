"""What a pruning step is told: what stays, how it is chosen, and whether what stays takes over; every key with its default."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gangpao.compress.importance.config import CalibrationConfig
from gangpao.compress.prune.layers import LayerScore, LayerSearch
from gangpao.compress.prune.measure import Measure
from gangpao.compress.prune.patterns import PatternBy
from gangpao.compress.prune.scores import By
from gangpao.compress.prune.shape import Target
from gangpao.config import Frozen, PathText

_PATTERN = re.compile(r"([1-9]\d*):([1-9]\d*)")


def _is_pattern(text: str) -> str:
    match = _PATTERN.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]) <= 32:
        raise ValueError(f'pattern {text!r:.20}: write n:m, n weights that stay in every m of a row, such as "2:4"')
    return text


class Calibration(CalibrationConfig):
    """The text on which everything is measured: windows are for importance and reconstruction."""

    windows: int = Field(default=32, ge=1, description="Windows for importance and reconstruction.")
    measured: int = Field(
        default=8, ge=1, description="Further windows, on which layers left out and candidates are compared."
    )


class GatesConfig(Frozen):
    """L0 gates: what stays is learned by training with a penalty (arXiv:1712.01312, with targets as arXiv:2310.06694)."""

    data: PathText = Field(min_length=1, description="TOML of the data build, as for gangpao train.")
    data_dir: PathText | None = Field(
        default=None, description="Where the build lies or goes; none: in the step's folder."
    )
    steps: int = Field(default=200, ge=2)
    warmup: float = Field(
        default=0.5, ge=0, lt=1, description="Share of the steps in which the target falls from all to what is wanted."
    )
    seq_len: int = Field(default=512, ge=8)
    batch_tokens: int = Field(default=8192, ge=8)
    micro_batch_size: int = Field(default=4, ge=1)
    lr: float = Field(
        default=1e-4, ge=0, description="Of the weights, before muP's factors; 0: only gates are trained."
    )
    gate_lr: float = Field(
        default=0.1, gt=0, description="Of the gates and of the multipliers that enforce the target."
    )
    save_every_steps: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> GatesConfig:
        rows, rest = divmod(self.batch_tokens, self.seq_len)
        if rest or rows % self.micro_batch_size:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} must be whole rows of seq_len {self.seq_len}, and those whole micro-batches of "
                f"{self.micro_batch_size}"
            )
        return self


class PruneConfig(Frozen):
    """A pruning step. What stays is a whole number, or a share with a point: 0.5 is half, 1.0 all."""

    layers: Target | None = Field(default=None, description="Layers that stay.")
    ffn: Target | None = Field(default=None, description="FFN channels that stay in every layer.")
    heads: Target | None = Field(default=None, description="Query heads that stay in every layer.")
    kv_heads: Target | None = Field(
        default=None, description="Heads of keys and values that stay; none: whichever go best with `heads`."
    )
    width: Target | None = Field(default=None, description="Channels of the residual stream that stay.")
    parameters: Target | None = Field(
        default=None,
        description="Parameters of the whole model that stay: what is given above is kept to, the rest is solved for.",
    )
    multiple: int = Field(
        default=32, ge=1, description="ffn and width stay multiples of it; 256 is what K-quants need, 32 all others."
    )
    score: By = Field(default="contribution", description="Of channels and heads.")
    layer_score: LayerScore = "kl"
    layer_search: LayerSearch = "greedy"
    measure: Measure = Field(default="kl", description="What candidates for `parameters` are compared by.")
    least: float = Field(
        default=0.5, gt=0, le=1, description="Smallest share of layers, heads and width among the candidates."
    )
    candidates: int = Field(default=16, ge=1, description="Shapes for `parameters` that are cut and measured.")
    reconstruct: bool = Field(default=True, description="Least squares: what stays takes over from what goes.")
    damping: float = Field(default=0.01, gt=0, description="Of the least squares, in mean squared activations.")
    pattern: Annotated[str, AfterValidator(_is_pattern)] | None = Field(
        default=None, description='Masks over the matrices in the layers: "2:4" keeps 2 weights in every 4 of a row.'
    )
    pattern_by: PatternBy = "sparsegpt"
    gates: GatesConfig | None = None
    calibration: Calibration = Calibration()
    dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="Of the weights that are written.")
    threads: int | None = Field(default=None, ge=1, description="None: one a core.")

    @model_validator(mode="after")
    def _check(self) -> PruneConfig:
        if not self.cuts and self.pattern is None:
            raise ValueError("nothing to do: give layers, ffn, heads, kv_heads, width, parameters or pattern")
        if self.layer_search == "greedy" and self.layer_score == "influence":
            raise ValueError(
                'layer_search = "greedy" measures again after each layer, which layer_score = "influence" does not do: '
                'take "kl" or "loss", or search "each" or "block"'
            )
        if self.gates and not self.cuts:
            raise ValueError("gates learn what stays of layers, ffn, heads or width: give one of them")
        return self

    @property
    def cuts(self) -> bool:
        """Whether the shape changes."""
        wanted = (self.layers, self.ffn, self.heads, self.kv_heads, self.width, self.parameters)
        return any(target is not None for target in wanted)

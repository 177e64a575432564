"""What an experiment is: one TOML file for all of them, a part that they share and a table for each.

The shared part says what every trial is unless an experiment varies it: data, shape, rule of transfer, tokens, schedule. An
experiment's table lists the values that it tries. Paths are relative to the file.

What makes no sense is refused here, with the name of its field, before anything runs (values.py has the kinds of values).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gangpao.config import PathText, anchored_overrides, load_toml, said
from gangpao.data.config import DataConfig
from gangpao.sandbox.trials.field_types import (
    Base,
    Layers,
    Once,
    Positive,
    Seed,
    Share,
    Some,
    Table,
    Tokens,
    Width,
    filled,
)
from gangpao.sandbox.trials.transfer import get_rule
from gangpao.train.schedule import Kind


def _known_rule(name: str) -> str:
    get_rule(name)
    return name


Optimizer = Literal["adamw", "muon"]
Rule = Annotated[str, AfterValidator(_known_rule)]


class Size(Table):
    """Width and depth of a trial's model; heads and MLP follow."""

    width: Width
    layers: Layers

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"


class Ladder(Size):
    """A size of the law, with token counts of its own where small models are to be followed further than large ones."""

    tokens: Once[Tokens] = Field(default=(), description="Where its decays end; empty: at those of all sizes.")


class Common(Table):
    """What a trial is where an experiment does not say otherwise."""

    width: Width = 128
    layers: Layers = 4
    lr: Positive = 0.01
    batch_tokens: Tokens = 4096
    tokens: Tokens = 1_000_000
    rule: Rule = Field(default="minicpm", description="Of gangpao.sandbox.trials.transfer.")
    optimizer: Optimizer = "adamw"
    schedule: Kind = "wsd"
    decay: float = Field(
        default=0.1, ge=0, le=1, description="Share of the tokens during which wsd's learning rate falls."
    )
    warmup: float = Field(default=0.02, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.1, ge=0)
    seed: Seed = 0


class LrConfig(Table):
    """The best learning rate across widths and depths."""

    widths: Once[Width] = Field(default=(64, 128, 256), description="At the common depth; empty: only depths.")
    layers: Once[Layers] = Field(default=(), description="Also these depths, at the common width.")
    rates: Some[Positive] = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)
    standard_rates: Once[Positive] = Field(
        default=(), description="For rules named standard*, whose rates live elsewhere; empty: rates."
    )
    rules: Some[Rule] = ("minicpm", "standard")
    tokens: Tokens | None = Field(default=None, description="Of each trial; none: the common number.")
    seeds: Some[Seed] = (0,)


def _of_each(tokens: tuple[int, ...], info: ValidationInfo, name: str, more: str = "") -> tuple[int, ...]:
    """Numbers of tokens that belong to the sizes of the field `name`."""
    sizes = info.data.get(name)
    if tokens and sizes is not None and len(tokens) != len(sizes):
        raise ValueError(f"{len(tokens)} numbers for {len(sizes)} in {name}; give one for each{more}, or none")
    return tokens


def _pairs_once(name: str, sizes: Sequence[Size], tokens: Sequence[int]) -> None:
    """A size may come again with other tokens, as that is another run."""
    runs: list[Any] = list(zip(sizes, tokens, strict=True)) if tokens else list(sizes)
    if again := [run for i, run in enumerate(runs) if run in runs[:i]]:
        where = f"{again[0][0]} with {again[0][1]:,} tokens" if tokens else str(again[0])
        raise ValueError(f"{name}: {where} is there twice; the same again tells nothing new: give every run once")


class BatchConfig(Table):
    """Loss against batch size at equal tokens, several sizes."""

    sizes: Annotated[tuple[Size, ...], AfterValidator(filled)] = (
        Size(width=64, layers=4),
        Size(width=96, layers=4),
        Size(width=128, layers=4),
    )
    check: tuple[Size, ...] = Field(default=(), description="Sizes that the law is not fitted to, to test it on.")
    batches: Some[Tokens] = (1024, 2048, 4096, 8192, 16384, 32768)
    tokens: tuple[Tokens, ...] = Field(default=(), description="Tokens of each size; empty: the common number for all.")
    check_tokens: tuple[Tokens, ...] = Field(default=(), description="The same for those of check.")
    seeds: Some[Seed] = (0,)

    @field_validator("tokens", "check_tokens")
    @classmethod
    def _belong(cls, tokens: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        return _of_each(tokens, info, "sizes" if info.field_name == "tokens" else "check")

    @model_validator(mode="after")
    def _differ(self) -> BatchConfig:
        _pairs_once("sizes", self.sizes, self.tokens)
        _pairs_once("check", self.check, self.check_tokens)
        return self


class ScheduleExperiment(Table):
    """One stable run with decays of several shares and shapes, against cosine runs of the same lengths."""

    horizons: Some[Tokens] = Field(default=(1_000_000, 2_000_000, 4_000_000), description="Tokens.")
    decays: Some[Share] = (0.025, 0.05, 0.1, 0.2)
    shapes: Some[Literal["wsd", "wsd_linear"]] = ("wsd", "wsd_linear")
    cosine_rates: Some[Positive] = Field(default=(1.0,), description="Factors on lr for the cosine runs: a tuned one.")
    seeds: Some[Seed] = (0,)


class ScalingConfig(Table):
    """One stable run a size, decays branched at several token counts, and a law of loss over N and D."""

    sizes: Some[Ladder] = (Ladder(width=64, layers=2), Ladder(width=96, layers=3), Ladder(width=128, layers=4))
    tokens: Some[Tokens] = Field(default=(500_000, 1_000_000, 2_000_000, 4_000_000), description="Where decays end.")
    cosine: bool = Field(
        default=False, description="Also cosine runs, one for each point: a plain Chinchilla fit beside ours."
    )
    floor: tuple[Annotated[float, Field(ge=0)], Positive] | None = Field(
        default=None,
        description="Bits per byte that no model is expected to get below, and the standard deviation of that: also a law of "
        "coupled terms (gangpao.sandbox.laws.coupled).",
    )
    targets: tuple[Size, ...] = Field(default=(), description="Larger runs, predicted before they start, then run.")
    target_tokens: tuple[Tokens, ...] = Field(
        default=(), description="Of each target, or one number for all; empty: the largest of tokens."
    )
    seeds: Some[Seed] = (0,)

    @field_validator("target_tokens")
    @classmethod
    def _belong(cls, tokens: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if len(tokens) == 1 or not info.data.get("targets"):  # without targets it is not looked at
            return tokens
        return _of_each(tokens, info, "targets", ", or one for all")

    @model_validator(mode="after")
    def _differ(self) -> ScalingConfig:
        several = self.target_tokens if self.targets and len(self.target_tokens) > 1 else ()
        _pairs_once("targets", self.targets, several)
        return self


class MixConfig(Table):
    """What goes into the decay stage."""

    mixtures: dict[str, dict[str, float]] = Field(
        default={}, description="Name -> source -> weight; empty: the data's stable mixture against its decay mixture."
    )
    seeds: Some[Seed] = (0, 1)


class OptimConfig(Table):
    """AdamW against Muon: the tokens each needs for the same loss."""

    optimizers: Some[Optimizer] = ("adamw", "muon")
    rates: Some[Positive] = (0.005, 0.01, 0.02)
    tokens: Some[Tokens] = (500_000, 1_000_000, 2_000_000)
    seeds: Some[Seed] = (0,)


class Range(Table):
    """Values that a search may take: low to high (log: evenly in logs), or choices."""

    low: float | None = None
    high: float | None = None
    log: bool = True
    choices: Once[Any] = ()
    points: int = Field(default=0, ge=0, description="Of a grid between low and high.")

    @model_validator(mode="after")
    def _check(self) -> Range:
        interval = self.low is not None and self.high is not None
        if interval == bool(self.choices) or (self.low is None) != (self.high is None):
            raise ValueError("give low and high, or choices")
        if interval and not (self.low or 0) < (self.high or 0):
            raise ValueError("low is not below high")
        if interval and self.log and (self.low or 0) <= 0:
            raise ValueError("log = true needs low above zero")
        return self


class SearchConfig(Table):
    """A search over any fields of a trial."""

    space: dict[str, Range] = Field(
        default={"lr": Range(low=0.002, high=0.05)}, description="Field of a trial -> range."
    )
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: int = Field(default=30, ge=1, description="Of tpe and random; a grid has as many as it has.")
    pruner: Literal["median", "hyperband", "none"] = "median"
    seeds: Some[Seed] = Field(default=(0,), description="Each trial is the mean over these.")
    sampler_seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("space")
    @classmethod
    def _known(cls, space: dict[str, Range]) -> dict[str, Range]:
        """Fields of a trial, and values that it can have. Raises ValueError here rather than in a worker."""
        if not space:
            raise ValueError("it is empty; name one field of a trial or more")
        fields = [name for name in Common.model_fields if name != "seed"]
        for name, r in space.items():
            if name == "seed":
                raise ValueError("seed: give search.seeds, over which every trial is averaged")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=3, cutoff=0.4) or fields
                raise ValueError(f"{name!r:.40} is no field of a trial; did you mean {', '.join(near)}?")
            for value in r.choices or (r.low, r.high):
                _possible(name, int(value) if isinstance(value, float) and value.is_integer() else value)
        return space


def _possible(name: str, value: Any) -> None:
    """Raises ValueError for a value that no trial can have in this field."""
    try:
        Common.model_validate({name: value}, strict=True)
    except ValidationError as error:
        raise ValueError(f"{name}: {value!r:.40} cannot be: it {said(error.errors()[0])}") from error


class SandboxConfig(Table):
    """A sandbox: its common part and its experiments."""

    data: PathText = Field(min_length=1, description="TOML of the data build.")
    data_dir: PathText | None = Field(default=None, description="Where the build lies or goes; none: <out>/data.")
    data_set: tuple[str, ...] = Field(default=(), description="key=value over the TOML of the data.")
    seq_len: int = Field(default=256, ge=2)
    shuffle_rows: int = Field(
        default=1024, ge=1, description="Rows that are shuffled together; all of a source: runs differ by less luck."
    )
    head_dim: int = Field(default=32, ge=8)
    mlp_ratio: float = Field(default=2.5, gt=0, description="intermediate_size / hidden_size, as in the wind tunnel.")
    base: Base = Base()
    common: Common = Common()
    heldout_tokens: int = Field(default=16_384, ge=1, description="Of every source, at the end of a trial.")
    micro_tokens: int = Field(default=4096, ge=1, description="Tokens of one forward pass.")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int | None = Field(default=None, ge=1, description="Trials at a time; none: a core each.")
    threads: int = Field(default=1, ge=1, description="Of each trial.")
    cost_profile: str | None = None
    lr: LrConfig = LrConfig()
    batch: BatchConfig = BatchConfig()
    schedule: ScheduleExperiment = ScheduleExperiment()
    scaling: ScalingConfig = ScalingConfig()
    mix: MixConfig = MixConfig()
    optim: OptimConfig = OptimConfig()
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _divides(self) -> SandboxConfig:
        """Of a search; experiments find out before they start a worker."""
        for name, whole in (("width", "head_dim"), ("batch_tokens", "seq_len")):
            r, unit = self.search.space.get(name), getattr(self, whole)
            if r is not None and any(value % unit for value in r.choices):
                raise ValueError(f"search.space.{name}: give choices that are multiples of {whole} {unit}")
            if (
                r is not None
                and r.low is not None
                and r.high is not None
                and r.high // unit < max(1, -(-r.low // unit))
            ):
                raise ValueError(
                    f"search.space.{name}: no multiple of {whole} {unit} is between {r.low:g} and {r.high:g}"
                )
        return self


def load_sandbox_config(path: Path, overrides: tuple[str, ...] = ()) -> SandboxConfig:
    """A sandbox's TOML with `a.b=c` over it, its paths absolute. Raises ValueError naming file, line and key."""
    config = load_toml(path, SandboxConfig, overrides)
    data_set = anchored_overrides(config.data_set, DataConfig, path, "data_set", overrides)
    return config.model_copy(update={"data_set": data_set})

"""What an experiment is: one TOML file for all of them, a part that they share and a table for each.

The shared part says what every trial is unless an experiment varies it: data, shape, rule of transfer, tokens, schedule. An
experiment's table lists the values that it tries. Paths are relative to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from gangpao.config import Frozen, load_toml
from gangpao.train.schedule import Kind

Optimizer = Literal["adamw", "muon"]
Rates = tuple[float, ...]


class Size(Frozen):
    """Width and depth of a trial's model; heads and MLP follow."""

    width: int = Field(ge=8)
    layers: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"


class Ladder(Size):
    """A size of the law, with token counts of its own where small models are to be followed further than large ones."""

    tokens: tuple[int, ...] = Field(default=(), description="Where its decays end; empty: at those of all sizes.")


class Base(Frozen):
    """Where a transfer rule's factors are all one."""

    width: int = Field(default=256, ge=8)
    layers: int = Field(default=4, ge=1)
    batch_tokens: int = Field(default=4096, ge=2)


class Common(Frozen):
    """What a trial is where an experiment does not say otherwise."""

    width: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    lr: float = Field(default=0.01, gt=0)
    batch_tokens: int = Field(default=4096, ge=2)
    tokens: int = Field(default=1_000_000, ge=2)
    rule: str = Field(default="minicpm", description="Of gangpao.sandbox.transfer.")
    optimizer: Optimizer = "adamw"
    schedule: Kind = "wsd"
    decay: float = Field(
        default=0.1, ge=0, le=1, description="Share of the tokens during which wsd's learning rate falls."
    )
    warmup: float = Field(default=0.02, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.1, ge=0)
    seed: int = Field(default=0, ge=0)


class LrConfig(Frozen):
    """The best learning rate across widths and depths."""

    widths: tuple[int, ...] = (64, 128, 256)
    layers: tuple[int, ...] = Field(default=(), description="Also these depths, at the common width.")
    rates: Rates = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)
    standard_rates: Rates = Field(
        default=(), description="For rules named standard*, whose rates live elsewhere; empty: rates."
    )
    rules: tuple[str, ...] = ("minicpm", "standard")
    tokens: int | None = Field(default=None, ge=2, description="Of each trial; none: the common number.")
    seeds: tuple[int, ...] = (0,)


class BatchConfig(Frozen):
    """Loss against batch size at equal tokens, several sizes."""

    sizes: tuple[Size, ...] = (Size(width=64, layers=4), Size(width=96, layers=4), Size(width=128, layers=4))
    check: tuple[Size, ...] = Field(default=(), description="Sizes that the law is not fitted to, to test it on.")
    batches: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    tokens: tuple[int, ...] = Field(default=(), description="Tokens of each size; empty: the common number for all.")
    check_tokens: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)


class ScheduleExperiment(Frozen):
    """One stable run with decays of several shares and shapes, against cosine runs of the same lengths."""

    horizons: tuple[int, ...] = Field(default=(1_000_000, 2_000_000, 4_000_000), description="Tokens.")
    decays: tuple[float, ...] = (0.025, 0.05, 0.1, 0.2)
    shapes: tuple[Literal["wsd", "wsd_linear"], ...] = ("wsd", "wsd_linear")
    cosine_rates: Rates = Field(default=(1.0,), description="Factors on lr for the cosine runs: a tuned one.")
    seeds: tuple[int, ...] = (0,)


class ScalingConfig(Frozen):
    """One stable run a size, decays branched at several token counts, and a law of loss over N and D."""

    sizes: tuple[Ladder, ...] = (Ladder(width=64, layers=2), Ladder(width=96, layers=3), Ladder(width=128, layers=4))
    tokens: tuple[int, ...] = Field(default=(500_000, 1_000_000, 2_000_000, 4_000_000), description="Where decays end.")
    cosine: bool = Field(
        default=False, description="Also cosine runs, one for each point: a plain Chinchilla fit beside ours."
    )
    floor: tuple[float, float] | None = Field(
        default=None,
        description="Bits per byte that no model is expected to get below, and the standard deviation of that: also a law of "
        "coupled terms (gangpao.sandbox.coupled).",
    )
    targets: tuple[Size, ...] = Field(default=(), description="Larger runs, predicted before they start, then run.")
    target_tokens: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)


class MixConfig(Frozen):
    """What goes into the decay stage."""

    mixtures: dict[str, dict[str, float]] = Field(
        default={}, description="Name -> source -> weight; empty: the data's stable mixture against its decay mixture."
    )
    seeds: tuple[int, ...] = (0, 1)


class OptimConfig(Frozen):
    """AdamW against Muon: the tokens each needs for the same loss."""

    optimizers: tuple[Optimizer, ...] = ("adamw", "muon")
    rates: Rates = (0.005, 0.01, 0.02)
    tokens: tuple[int, ...] = (500_000, 1_000_000, 2_000_000)
    seeds: tuple[int, ...] = (0,)


class Range(Frozen):
    """Values that a search may take: low to high (log: evenly in logs), or choices."""

    low: float | None = None
    high: float | None = None
    log: bool = True
    choices: tuple[Any, ...] = ()
    points: int = Field(default=0, ge=0, description="Of a grid between low and high.")

    @model_validator(mode="after")
    def _check(self) -> Range:
        interval = self.low is not None and self.high is not None
        if interval == bool(self.choices):
            raise ValueError("give low and high, or choices")
        if interval and not (self.low or 0) < (self.high or 0):
            raise ValueError("low is not below high")
        if interval and self.log and (self.low or 0) <= 0:
            raise ValueError("log = true needs low above zero")
        return self


class SearchConfig(Frozen):
    """A search over any fields of a trial."""

    space: dict[str, Range] = Field(
        default={"lr": Range(low=0.002, high=0.05)}, description="Field of a trial -> range."
    )
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    trials: int = Field(default=30, ge=1, description="Of tpe and random; a grid has as many as it has.")
    pruner: Literal["median", "hyperband", "none"] = "median"
    seeds: tuple[int, ...] = Field(default=(0,), description="Each trial is the mean over these.")
    sampler_seed: int = 0


class SandboxConfig(Frozen):
    """A sandbox: its common part and its experiments."""

    data: str = Field(min_length=1, description="TOML of the data build.")
    data_dir: str | None = Field(default=None, description="Where the build lies or goes; none: <out>/data.")
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


def load_sandbox_config(path: Path, overrides: tuple[str, ...] = ()) -> SandboxConfig:
    """A sandbox's TOML with `a.b=c` over it; its relative paths become relative to the folder of the file."""
    config = load_toml(path, SandboxConfig, overrides)
    given = {name: value for name in ("data", "data_dir") if (value := getattr(config, name))}
    return config.model_copy(
        update={name: str((path.parent / Path(value).expanduser()).absolute()) for name, value in given.items()}
    )

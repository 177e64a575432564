"""The common part of a sandbox's TOML: what every trial is unless an experiment varies it.

Data, shape, rule of transfer, tokens, schedule. An experiment's own table, which lists the values that it tries, stands in the
experiment's file. Paths are relative to the TOML.

What makes no sense is refused when the file is read, with the name of its field (field_types.py has the kinds of values).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from gangpao.config import PathText
from gangpao.sandbox.trials.field_types import Base, Layers, Positive, Seed, Table, Tokens, Width
from gangpao.sandbox.trials.transfer import get_rule
from gangpao.train.schedule import Kind


def _known_rule(name: str) -> str:
    get_rule(name)
    return name


Optimizer = Literal["adamw", "muon", "adamh", "muonh"]
Rule = Annotated[str, AfterValidator(_known_rule)]


class Size(Table):
    """Width and depth of a trial's model; heads and MLP follow."""

    width: Width
    layers: Layers

    def __str__(self) -> str:
        return f"{self.width}x{self.layers}"


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


def of_each(tokens: tuple[int, ...], info: ValidationInfo, name: str, more: str = "") -> tuple[int, ...]:
    """Numbers of tokens that belong to the sizes of the field `name`."""
    sizes = info.data.get(name)
    if tokens and sizes is not None and len(tokens) != len(sizes):
        raise ValueError(f"{len(tokens)} numbers for {len(sizes)} in {name}; give one for each{more}, or none")
    return tokens


def pairs_once(name: str, sizes: Sequence[Size], tokens: Sequence[int]) -> None:
    """A size may come again with other tokens, as that is another run."""
    runs: list[Any] = list(zip(sizes, tokens, strict=True)) if tokens else list(sizes)
    if again := [run for i, run in enumerate(runs) if run in runs[:i]]:
        where = f"{again[0][0]} with {again[0][1]:,} tokens" if tokens else str(again[0])
        raise ValueError(f"{name}: {where} is there twice; the same again tells nothing new: give every run once")


class ExperimentTable(Table):
    """Base of an experiment's table."""

    def fits(self, config: SandboxConfig) -> None:
        """Raises ValueError for what does not go with the common part of a configuration."""


_T = TypeVar("_T", bound=ExperimentTable)


class SandboxConfig(Table):
    """The common part of a sandbox, which is all that trials look at. The whole one, with a table for each experiment, is
    `gangpao.sandbox.experiments.config.config_type`."""

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

    def table(self, kind: type[_T]) -> _T:
        """The table of an experiment, by its class. Raises LookupError where this configuration has only the common part."""
        for value in (getattr(self, name) for name in type(self).model_fields):
            if type(value) is kind:
                return value
        raise LookupError(f"this configuration has no {kind.__name__}")

    @model_validator(mode="after")
    def _tables_fit(self) -> SandboxConfig:
        for value in (getattr(self, name) for name in type(self).model_fields):
            if isinstance(value, ExperimentTable):
                value.fits(self)
        return self

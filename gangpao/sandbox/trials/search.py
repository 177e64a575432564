"""What a search looks through: ranges of fields, made so that every value can be a trial, and a name for the whole.

The name of a search's study follows from all that decides its answer: another space, sampler, common value or text is another
study.
What it gives up: a change that would not have mattered begins anew as well; its runs are known by their keys all the same.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from gangpao.config import said
from gangpao.sandbox.trials.config import Common, ExperimentTable, SandboxConfig
from gangpao.sandbox.trials.field_types import Once, Seed, Some, Table
from gangpao.sandbox.trials.trial import Lab

SEARCH = "search"
# Of the common part, what a search does not depend on. Whatever is new there counts until it is named here; tables of other
# experiments never do.
_NOT_OF_A_SEARCH = {"data", "data_dir", "data_set", "common", "micro_tokens", "workers", "threads", "cost_profile"}


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


class SearchConfig(ExperimentTable):
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

    def fits(self, config: SandboxConfig) -> None:
        """Widths are whole heads, batches whole rows; experiments find out before they start a worker."""
        for name, whole in (("width", "head_dim"), ("batch_tokens", "seq_len")):
            r, unit = self.space.get(name), getattr(config, whole)
            if r is None:
                continue
            if any(value % unit for value in r.choices):
                raise ValueError(f"search.space.{name}: give choices that are multiples of {whole} {unit}")
            if r.low is not None and r.high is not None and r.high // unit < max(1, -(-r.low // unit)):
                raise ValueError(
                    f"search.space.{name}: no multiple of {whole} {unit} is between {r.low:g} and {r.high:g}"
                )


def _possible(name: str, value: Any) -> None:
    """Raises ValueError for a value that no trial can have in this field."""
    try:
        Common.model_validate({name: value}, strict=True)
    except ValidationError as error:
        raise ValueError(f"{name}: {value!r:.40} cannot be: it {said(error.errors()[0])}") from error


def search_name(lab: Lab, search: SearchConfig, given: str = SEARCH) -> str:
    """The study of a search, named by all that decides its answer, so that a changed one begins anew; the number of its trials may
    grow. Raises ValueError where the given name is that of another one."""
    free = {"seed", *search.space}
    decides = {
        "search": search.model_dump(mode="json", exclude={"trials"}),
        "common": lab.config.common.model_dump(mode="json", exclude=free),
        "config": lab.config.model_dump(mode="json", include=SandboxConfig.model_fields.keys() - _NOT_OF_A_SEARCH),
        "data": [lab.built.fingerprint, lab.stable, lab.decay],
    }
    name = f"{SEARCH}-{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]}"
    if given not in (SEARCH, name):
        raise ValueError(
            f"study {given!r:.80}: this configuration's search is {name}; give the worker the driver's TOML and --set"
        )
    return name


def grid_of(name: str, r: Range) -> list[Any]:
    """The points of a range. Raises ValueError for an interval without a number of points."""
    if r.choices:
        return list(r.choices)
    if r.points < 2:
        raise ValueError(f"search.space.{name}: a grid needs points = 2 or more between low and high")
    assert r.low is not None
    assert r.high is not None
    steps = [i / (r.points - 1) for i in range(r.points)]
    return [r.low * (r.high / r.low) ** s if r.log else r.low + (r.high - r.low) * s for s in steps]


def fitted(search: SearchConfig, config: SandboxConfig) -> SearchConfig:
    """A search whose ranges hold only what a trial can be: whole numbers, batches of whole rows, widths of whole heads; a grid's
    points are choices."""
    space = {name: _fitted(name, r, step_of(name, config), search) for name, r in search.space.items()}
    return search.model_copy(update={"space": space})


def step_of(name: str, config: SandboxConfig) -> int | None:
    """What the values of a field are multiples of; None where they are no whole numbers."""
    steps = {"width": config.head_dim, "batch_tokens": config.seq_len, "layers": 1, "tokens": 1, "steps": 1}
    return steps.get(name)


def _fitted(name: str, r: Range, step: int | None, search: SearchConfig) -> Range:
    if r.choices:
        return r
    assert r.low is not None
    assert r.high is not None
    if step:  # there is a multiple inside: the configuration was checked
        low, high = max(1, math.ceil(r.low / step)) * step, math.floor(r.high / step) * step
        r = r.model_copy(update={"low": float(low), "high": float(high)})
    if search.sampler != "grid":
        return r
    points = grid_of(name, r)
    return Range(choices=tuple(sorted({round(p / step) * step for p in points}) if step else points))


def number_of(search: SearchConfig) -> int:
    """Trials of a search."""
    if search.sampler != "grid":
        return search.trials
    number = 1
    for name, r in search.space.items():
        number *= len(grid_of(name, r))
    return number

"""What a search looks through: ranges of fields, made so that every value can be a trial, and a name for the whole.

The name of a search's study follows from all that decides its answer: another space, sampler, common value or text is another
study.
What it gives up: a change that would not have mattered begins anew as well; its runs are known by their keys all the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from gangpao.sandbox.trials.config import Range, SandboxConfig, SearchConfig
from gangpao.sandbox.trials.trial import Lab

SEARCH = "search"
# What a search does not depend on. Whatever is new in a configuration counts until it is named here.
_NOT_OF_A_SEARCH = {
    "data", "data_dir", "data_set", "common", "search", "micro_tokens", "workers", "threads", "cost_profile",
    "lr", "batch", "schedule", "scaling", "mix", "optim",
}  # fmt: skip


def search_name(lab: Lab, search: SearchConfig, given: str = SEARCH) -> str:
    """The study of a search, named by all that decides its answer, so that a changed one begins anew; the number of its trials may
    grow. Raises ValueError where the given name is that of another one."""
    free = {"seed", *search.space}
    decides = {
        "search": search.model_dump(mode="json", exclude={"trials"}),
        "common": lab.config.common.model_dump(mode="json", exclude=free),
        "config": lab.config.model_dump(mode="json", exclude=_NOT_OF_A_SEARCH),
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

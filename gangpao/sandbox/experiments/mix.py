"""What goes into the decay stage: the same stable run goes on with one mixture and with another.

MiniCPM's recipe (arXiv:2404.06395, section 5) puts supervised and other choice data into the decay, and not only into tuning
afterwards. Here a stable run for each seed ends where the decay would begin, and every mixture is a decay that branches off there.
Mixtures are compared within a seed: what one stable run has better luck than another falls out of the difference. Judged is the
held-out text of each source, by language, and all of it.

What it gives up: a source of conversations has no bits per byte (only the answers are predicted, while bytes count it all), so
whether the model answers better is seen only where nats a token are known, and the total holds plain text alone. Text
that is thinned out to make room is a difference too: the data's own two mixtures differ in more than supervised data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from gangpao.sandbox.experiments.outcome import LeftOut, Outcome, Submit, ended_badly, finite
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.scaling_law import student
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Answer, Verdict, about, decide
from gangpao.sandbox.trials.config import ExperimentTable
from gangpao.sandbox.trials.field_types import Seed, Some
from gangpao.sandbox.trials.trial import Lab, Result, Spec

Mixtures = dict[str, dict[str, float]]

_PREFIXES = ("zh", "en", "code")
_GROUPS = ("total", "zh", "en", "code", "other", "answers")


class MixConfig(ExperimentTable):
    """What goes into the decay stage."""

    mixtures: dict[str, dict[str, float]] = Field(
        default={}, description="Name -> source -> weight; empty: the data's stable mixture against its decay mixture."
    )
    seeds: Some[Seed] = (0, 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a less mean of b. error: half the 95 % interval, infinite where nothing tells it."""

    value: float
    error: float

    @property
    def answer(self) -> Answer:
        """Is it lower?"""
        return decide(*about(self.value, self.error), BELOW_ZERO)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A mixture on a group of sources. change: against the first mixture; None for that one."""

    mixture: str
    group: str
    sources: int
    loss: float
    noise: float | None
    change: Difference | None


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for mixtures that cannot be made, or that are the same."""
    mixtures = _mixtures(lab)
    stables = [_stable(lab, seed) for seed in dict.fromkeys(lab.config.table(MixConfig).seeds)]
    branches = {name: [_branch(lab, parent, weights) for parent in stables] for name, weights in mixtures.items()}
    found = submit([*stables, *(spec for group in branches.values() for spec in group)])
    rest = iter(found[len(stables) :])
    results = {name: [next(rest) for _ in group] for name, group in branches.items()}
    kept, seeds = _complete(results)
    table = {name: [_groups(results[name][i]) for i in seeds] for name in kept}
    cells = _cells(table)
    left = [stables[i].seed for i in range(len(stables)) if i not in seeds]
    return _outcome(lab, mixtures, cells, kept, seeds, left, found)


def _mixtures(lab: Lab) -> Mixtures:
    """Those that are configured, else the data's own two. The first is what the others are compared to."""
    plain = dict(lab.stable) or {name: float(shards.num_tokens) for name, shards in lab.built.train.items()}
    chosen = dict(lab.config.table(MixConfig).mixtures)
    if not chosen:
        if not lab.decay or _shares(plain) == _shares(lab.decay):
            raise ValueError(
                "mix: the data has no decay mixture of its own and there is nothing to compare: give mix.mixtures"
            )
        return {"stable": plain, "decay": dict(lab.decay)}
    if len(chosen) < 2:
        raise ValueError(
            "mix.mixtures: one mixture has nothing to be compared to; give two or more, the usual one first"
        )
    for name, weights in chosen.items():
        if unknown := [source for source in weights if source not in lab.built.train]:
            known = ", ".join(lab.built.train)
            raise ValueError(f"mix.mixtures.{name}: no source {unknown[0]!r:.60} in the data; there are {known}")
        if not all(0 <= w < math.inf for w in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(
                f"mix.mixtures.{name}: weights are numbers from zero up, and one is above it; they are {weights}"
            )
    names = list(chosen)
    for i, name in enumerate(names):
        if same := [other for other in names[:i] if _shares(chosen[other]) == _shares(chosen[name])]:
            raise ValueError(f"mix.mixtures: {same[0]} and {name} are the same shares")
    return chosen


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    whole = sum(weights.values())
    return {name: round(w / whole, 9) for name, w in weights.items() if w > 0}


def _steps(lab: Lab) -> tuple[int, int]:
    """Where the decay begins, and how long it is."""
    common, steps = lab.config.common, lab.spec().steps
    decay = round(common.decay * steps)
    if not 1 <= decay < steps:
        raise ValueError(
            f"common.decay: {common.decay:g} of {steps} steps leaves no decay or no stable run; take 0.1 and more tokens"
        )
    if round(common.warmup * steps) >= steps - decay:
        raise ValueError(
            f"common.warmup: its {round(common.warmup * steps)} steps leave no stable run before the decay"
        )
    return steps - decay, decay


def _kind(lab: Lab) -> str:
    kind = lab.config.common.schedule
    return kind if kind.startswith("wsd") else "wsd"


def _stable(lab: Lab, seed: int) -> Spec:
    start, decay = _steps(lab)
    warmup = round(lab.config.common.warmup * (start + decay))
    return lab.stable_run([start], warmup, schedule=_kind(lab), seed=seed)


def _branch(lab: Lab, parent: Spec, weights: dict[str, float]) -> Spec:
    start, decay = _steps(lab)
    return lab.branch(parent, start, decay, mixture=weights)


def _complete(results: Mapping[str, Sequence[Result]]) -> tuple[list[str], list[int]]:
    """Mixtures of which any trial ended well, and places of the seeds for which all of those did: a difference is within a seed.
    No seeds without the first mixture, to which all differences are."""
    kept = [name for name, group in results.items() if any(r.bpb is not None for r in group)]
    first = next(iter(results))
    if first not in kept:
        return kept, []
    return kept, [i for i in range(len(results[first])) if all(results[name][i].bpb is not None for name in kept)]


def _groups(r: Result) -> dict[str, tuple[float, int]]:
    """Group -> mean over its sources, and their number. Every source weighs the same: the same tokens of each are held out."""
    texts = {k.removesuffix("_bpb"): v for k, v in r.heldout.items() if k.endswith("_bpb") and k != "heldout_bpb"}
    found: dict[str, list[float]] = {}
    for source, bpb in texts.items():
        prefix = source.partition("-")[0]
        found.setdefault(prefix if "-" in source and prefix in _PREFIXES else "other", []).append(bpb)
    nats = {k.removesuffix("_nats"): v for k, v in r.heldout.items() if k.endswith("_nats")}
    answers = [v for source, v in nats.items() if source not in texts]
    if answers:
        found["answers"] = answers
    assert r.bpb is not None
    means = {name: (sum(found[name]) / len(found[name]), len(found[name])) for name in _GROUPS if name in found}
    return {"total": (r.bpb, len(texts)), **means}


def _cells(table: Mapping[str, Sequence[Mapping[str, tuple[float, int]]]]) -> list[_Cell]:
    """Every mixture on every group."""
    rows = [row for group in table.values() for row in group]
    names = list(table)
    out = []
    for group in [name for name in _GROUPS if rows and all(name in row for row in rows)]:
        losses = np.array([[row[group][0] for row in table[name]] for name in names])
        changes = _paired(losses)
        scatter = fit.seed_noise([list(row) for row in losses])
        noise = scatter and scatter.sigma
        for i, name in enumerate(names):
            number = table[name][0][group][1]
            out.append(_Cell(name, group, number, float(losses[i].mean()), noise, changes[i - 1] if i else None))
    return out


def _paired(losses: np.ndarray[Any, np.dtype[np.float64]]) -> list[Difference]:
    """Each mixture (row) less the first, over the same seeds (columns). The noise is what is left when every seed's own level
    and every mixture's mean are taken away, and has as few degrees of freedom as that leaves."""
    mixtures, seeds = losses.shape
    rest = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean()
    dof = (mixtures - 1) * (seeds - 1)
    error = student(dof) * math.sqrt(float((rest**2).sum()) / dof * 2 / seeds) if dof else math.inf
    out = []
    for row in losses[1:]:
        value = float((row - losses[0]).mean())
        out.append(Difference(value, max(error, 1e-12 * float(np.abs(losses).max()))))
    return out


# --- the outcome


def _outcome(
    lab: Lab, mixtures: Mixtures, cells: Sequence[_Cell], kept: Sequence[str], seeds: Sequence[int], left: Sequence[int],
    results: list[Result],
) -> Outcome:  # fmt: skip
    return Outcome(
        name="mix",
        verdicts=[_asked(lab, mixtures, c) for c in cells if c.change is not None],
        facts={
            "configured": _configured(lab),
            "mixtures": {name: _shares(weights) for name, weights in mixtures.items()},
            "supervised": {name: _supervised(lab, weights) for name, weights in mixtures.items()},
            "kept": list(kept),
            "seeds": len(seeds),
            "lost_seeds": list(left),
            "begins": _steps(lab)[0] * lab.config.common.batch_tokens,
            "noise": next((c.noise for c in cells if c.group == "total"), None),
            "cells": [
                {"mixture": c.mixture, "group": c.group, "sources": c.sources, "loss": c.loss, "noise": c.noise, **_change(c)}
                for c in cells
            ],
        },
        left_out=_left_out(lab, mixtures, results),
        results=results,
    )  # fmt: skip


def _configured(lab: Lab) -> bool:
    """Are the mixtures those of the configuration, or the data's own two?"""
    return bool(lab.config.table(MixConfig).mixtures)


def _asked(lab: Lab, mixtures: Mixtures, c: _Cell) -> Verdict:
    """Is a mixture better than the first on a group of held-out text?"""
    assert c.change is not None
    first, interval = next(iter(mixtures)), about(c.change.value, c.change.error)
    subject = {"mixture": c.mixture, "first": first, "group": c.group, "configured": _configured(lab)}
    return Verdict("lower", c.change.value, interval, BELOW_ZERO, about=subject)


def _change(c: _Cell) -> dict[str, Any]:
    """Against the first mixture; empty for that one."""
    if c.change is None:
        return {}
    return {"difference": c.change.value, "error": finite(c.change.error), "verdict": c.change.answer}


def _left_out(lab: Lab, mixtures: Mixtures, results: Sequence[Result]) -> list[LeftOut]:
    """Names of branches say their mixture."""
    names = {tuple(sorted(weights.items())): name for name, weights in mixtures.items()}
    out = []
    for r in results:
        mixture = names.get(tuple(sorted(r.spec.mixture.items()))) if r.spec.mixture else None
        own = {"mixture": mixture, "configured": _configured(lab)}
        out += [one.model_copy(update={"values": {**one.values, **own}}) for one in ended_badly([r])]
    return out


def _supervised(lab: Lab, weights: Mapping[str, float]) -> float:
    """Share of a mixture that is conversations."""
    return sum(share for name, share in _shares(weights).items() if lab.built.train[name].supervised)

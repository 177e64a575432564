"""WSD against cosine: one stable run with decays of several lengths and shapes, and cosine runs tuned for each horizon.

The claim (MiniCPM, arXiv:2404.06395, section 4): a run that keeps its rate and falls only at the end is as good as a cosine
made for exactly that length, and a tenth of the tokens is enough for the fall, a fortieth is not. So every decay branches off
the same stable run, and at each horizon the best of several cosine runs, each with another peak, is what it has to reach.

Only the schedule differs: every run sees the stable mixture to its end, in the same order, after the same number of warmup
steps. What it gives up: the stable run's own rate is not tuned, and the best of several cosines is lucky by some noise; both
favour cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import Field

from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import LeftOut, Outcome, Submit
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Answer, Verdict, decide
from gangpao.sandbox.trials.config import ExperimentTable
from gangpao.sandbox.trials.field_types import Positive, Seed, Share, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

PAPER = (0.1, 0.025)  # the share that the paper finds enough, and the one that it does not
MARGIN = 0.003  # of the loss: a share is enough that surely costs less than this against the best one


class ScheduleExperiment(ExperimentTable):
    """One stable run with decays of several shares and shapes, against cosine runs of the same lengths."""

    horizons: Some[Tokens] = Field(default=(1_000_000, 2_000_000, 4_000_000), description="Tokens.")
    decays: Some[Share] = (0.025, 0.05, 0.1, 0.2)
    shapes: Some[Literal["wsd", "wsd_linear"]] = ("wsd", "wsd_linear")
    cosine_rates: Some[Positive] = Field(default=(1.0,), description="Factors on lr for the cosine runs: a tuned one.")
    seeds: Some[Seed] = (0,)


class _Arm(NamedTuple):
    """What is compared: steps in all, schedule, share of the steps that decay (cosine: 0), factor on the rate (WSD: 1)."""

    steps: int
    kind: str
    share: float
    factor: float


@dataclass(frozen=True, slots=True)
class _Cell:
    """An arm with its mean loss over the seeds. before: held-out loss where its decay began."""

    arm: _Arm
    D: int
    bpb: float
    before: float | None
    losses: tuple[float, ...]
    flops: float

    def json(self) -> dict[str, Any]:
        """Plain data."""
        own = {"kind": self.arm.kind, "share": self.arm.share, "factor": self.arm.factor, "D": self.D}
        return own | {"bpb": self.bpb, "before": self.before, "flops": self.flops}


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for a horizon that is too short for a decay."""
    stables, arms = _grid(lab)
    specs = [*stables, *(spec for group in arms.values() for spec in group)]
    results = submit(specs)
    found = iter(results[len(stables) :])
    grouped = {arm: [next(found) for _ in group] for arm, group in arms.items()}
    curves = [r.curve for r in results[: len(stables)]]
    cells, excluded = _cells(grouped, curves)
    return _outcome(lab, cells, excluded, results, sum(r.flops for r in results[: len(stables)]))


def _grid(lab: Lab) -> tuple[list[Spec], dict[_Arm, list[Spec]]]:
    """A stable run for each seed, and for each arm a spec for each seed."""
    c, common = lab.config.table(ScheduleExperiment), lab.config.common
    horizons = sorted({lab.spec(tokens=tokens).steps for tokens in c.horizons})
    starts = {(h, share): h - _decay_steps(h, share, common.batch_tokens) for h in horizons for share in c.decays}
    warmup = round(common.warmup * horizons[-1])
    if min(starts.values()) <= warmup:
        raise ValueError(
            f"schedule.horizons: with the longest decay the shortest one begins to decay at step {min(starts.values())}, within "
            f"the {warmup} steps of warmup (common.warmup of the longest horizon): take longer horizons or a shorter warmup"
        )
    stables = [lab.stable_run(starts.values(), warmup, schedule="wsd", seed=seed) for seed in c.seeds]
    mixture = dict(lab.stable) or {name: float(shards.num_tokens) for name, shards in lab.built.train.items()}
    arms: dict[_Arm, list[Spec]] = {}
    for h in reversed(horizons):  # long trials first: the last ones to end are then short
        for factor in sorted(set(c.cosine_rates)):
            changes: dict[str, Any] = {"lr": common.lr * factor, "steps": h, "decay": 0.0, "warmup": warmup / h}
            arms[_Arm(h, "cosine", 0.0, factor)] = [lab.spec(schedule="cosine", seed=s, **changes) for s in c.seeds]
    for (h, share), start in starts.items():
        for shape in c.shapes:
            arm = [lab.branch(p, start, h - start, schedule=shape, mixture=mixture) for p in stables]
            arms[_Arm(h, shape, share, 1.0)] = arm
    return stables, arms


def _decay_steps(horizon: int, share: float, batch_tokens: int) -> int:
    steps = round(share * horizon)
    if not 1 <= steps < horizon:
        raise ValueError(
            f"schedule.decays: {share:g} of {horizon} steps is no decay: take a share below 1, and horizons of at least "
            f"{math.ceil(1 / max(share, 1e-9)) * batch_tokens:,} tokens"
        )
    return steps


def _cells(grouped: dict[_Arm, list[Result]], curves: Sequence[dict[int, float]]) -> tuple[list[_Cell], list[LeftOut]]:
    """Means over the seeds. An arm that lacks a seed is left out: its mean would be over other seeds than its neighbours'."""
    cells, excluded = [], []
    for arm, group in grouped.items():
        bad = [r for r in group if r.bpb is None]
        if bad:
            own = {
                "schedule": arm.kind,
                "tokens": group[0].D,
                "number": arm.share or arm.factor,
                "seed": bad[0].spec.seed,
            }
            excluded.append(LeftOut(kind="arm", values=own, state=bad[0].state, reason=bad[0].reason))
            continue
        losses = tuple(r.bpb for r in group if r.bpb is not None)
        at = group[0].spec.parent_step * group[0].spec.batch_tokens
        befores = [curve[at] for curve in curves if at in curve] if arm.share else []
        before = sum(befores) / len(befores) if befores else None
        cells.append(
            _Cell(arm, group[0].D, sum(losses) / len(losses), before, losses, sum(r.flops for r in group) / len(group))
        )
    return cells, excluded


# --- what follows from the losses


def _judge(lab: Lab, cells: list[_Cell], noise: fit.Noise | None) -> dict[str, Any]:
    """For each horizon the best cosine, the best of each shape, and the smallest share that is enough."""
    wide = noise and noise.between(len(lab.config.table(ScheduleExperiment).seeds))
    horizons = []
    for steps in sorted({cell.arm.steps for cell in cells}):
        here = [cell for cell in cells if cell.arm.steps == steps]
        cosine = min((cell for cell in here if cell.arm.kind == "cosine"), key=lambda cell: cell.bpb, default=None)
        shapes = {}
        for shape in lab.config.table(ScheduleExperiment).shapes:
            of_shape = [cell for cell in here if cell.arm.kind == shape]
            if of_shape:
                best = min(of_shape, key=lambda cell: cell.bpb)
                above = {str(cell.arm.share): cell.bpb - best.bpb for cell in of_shape}
                shapes[shape] = {"best_share": best.arm.share, "bpb": best.bpb, "above_best": above}
        horizons.append(
            {
                "D": here[0].D,
                "cosine": cosine.bpb if cosine else None,
                "cosine_factor": cosine.arm.factor if cosine else None,
                "shapes": shapes,
                "best": min(((s["bpb"], name) for name, s in shapes.items()), default=(None, None))[1],
            }
        )
    shares = {
        shape: smallest_enough_share(horizons, shape, wide) for shape in lab.config.table(ScheduleExperiment).shapes
    }
    return {"wide": wide, "horizons": horizons, "shares": shares}


class DecayShare(NamedTuple):
    """What each share of the decay costs against the best one, of the loss, in the mean over the horizons. noise: half the 95 %
    interval of such a difference; None where it is not known, or trials are missing. MARGIN is the most that is enough."""

    costs: dict[float, float]
    noise: float | None

    def answer(self, share: float) -> Answer:
        """Is a share enough?"""
        return decide(*verdict.about(self.costs.get(share), self.noise), (-math.inf, MARGIN))

    @property
    def enough(self) -> float | None:
        """The smallest share that surely is; what noise hides is not taken to be nothing."""
        return next((share for share in self.costs if self.answer(share) == "yes"), None)

    @property
    def noisy(self) -> bool:
        """Is the noise alone more than the margin, so that no share can be told to be enough?"""
        return self.noise is not None and self.noise >= MARGIN

    def json(self) -> dict[str, Any]:
        """Plain data."""
        answers = {str(share): self.answer(share) for share in self.costs}
        costs = {str(share): cost for share, cost in self.costs.items()}
        return {"costs": costs, "noise": self.noise, "answers": answers, "enough": self.enough}


def smallest_enough_share(horizons: Sequence[dict[str, Any]], shape: str, wide: float | None) -> DecayShare:
    """From the horizons of an outcome, also as JSON has them."""
    here = [h["shapes"][shape] for h in horizons if shape in h["shapes"]]
    if wide is None or not here or len(here) < len(horizons):
        return DecayShare({}, None)
    above = [{float(share): value for share, value in h["above_best"].items()} for h in here]
    shares = sorted(set.intersection(*(set(a) for a in above)))
    means = {share: sum(a[share] for a in above) / len(above) for share in shares}
    best = min(means.values(), default=0.0)
    loss = sum(h["bpb"] for h in here) / len(here) + best
    return DecayShare(
        {share: (mean - best) / loss for share, mean in means.items()}, wide / math.sqrt(len(here)) / loss
    )


def _outcome(
    lab: Lab, cells: list[_Cell], excluded: list[LeftOut], results: list[Result], stable_flops: float
) -> Outcome:
    noise = fit.seed_noise([list(cell.losses) for cell in cells])
    judged = _judge(lab, cells, noise)
    c, cost = lab.config.table(ScheduleExperiment), _cost(lab, cells, stable_flops)
    against = [_against(lab, h, judged["wide"]) for h in judged["horizons"]]
    for h, verdict_ in zip(judged["horizons"], against, strict=True):
        h["against"] = _compared(h, verdict_)
    return Outcome(
        name="schedule",
        verdicts=[*(v for v in against if v), *_enough(lab, judged["shares"])],
        facts={
            "conditions": conditions(lab),
            "noise": noise and noise.sigma,
            "wide": judged["wide"],
            "seeds": len(c.seeds),
            "shapes": list(c.shapes),
            "decays": sorted(set(c.decays)),
            "usual": _usual(lab),
            "cosine_rates": sorted(set(c.cosine_rates)),
            "horizons": judged["horizons"],
            "shares": {shape: share.json() for shape, share in judged["shares"].items()},
            "enough": {shape: share.enough for shape, share in judged["shares"].items()},
            "margin": MARGIN,
            "paper": list(PAPER),
            "cost": cost,
            "cells": [cell.json() for cell in sorted(cells, key=lambda cell: (cell.D, *cell.arm[1:]))],
        },
        left_out=excluded,
        results=results,
    )


def _compared(h: dict[str, Any], against: Verdict | None) -> dict[str, Any] | None:
    """Where WSD with the usual share ends, and how far from the best cosine; None where trials are missing."""
    if against is None or against.value is None:
        return None
    return {"bpb": h["cosine"] + against.value, "difference": against.value, "answer": against.answer}


def _cost(lab: Lab, cells: list[_Cell], stable_flops: float) -> dict[str, float]:
    """FLOPs of one stable run with a decay of the usual share at every horizon, and of one cosine run for each."""
    seeds, shape = len(lab.config.table(ScheduleExperiment).seeds), lab.config.table(ScheduleExperiment).shapes[0]
    share = _usual(lab)
    decays = sum(cell.flops for cell in cells if (cell.arm.kind, cell.arm.share) == (shape, share))
    cosines = {cell.D: cell.flops for cell in cells if cell.arm.kind == "cosine"}
    return {"wsd": stable_flops / seeds + decays, "cosine": sum(cosines.values())}


def _usual(lab: Lab) -> float:
    """The tried share that is nearest to the sandbox's own."""
    return min(lab.config.table(ScheduleExperiment).decays, key=lambda share: abs(share - lab.config.common.decay))


def _against(lab: Lab, h: dict[str, Any], wide: float | None) -> Verdict | None:
    """Does WSD with the usual share end below the best cosine of a horizon? None where trials are missing."""
    share, shape = _usual(lab), lab.config.table(ScheduleExperiment).shapes[0]
    found = h["shapes"].get(shape, {})
    above = found.get("above_best", {}).get(str(share))
    if above is None or h["cosine"] is None:
        return None
    d = found["bpb"] + above - h["cosine"]
    about = {"D": h["D"], "shape": shape, "share": share}
    return Verdict("against", d, verdict.about(d, wide), BELOW_ZERO, about=about)


def _enough(lab: Lab, shares: dict[str, DecayShare]) -> list[Verdict]:
    """Is a share of the decay enough? For every shape and share that was tried."""
    out = []
    for shape in lab.config.table(ScheduleExperiment).shapes:
        known = shares[shape]
        for share in sorted(set(lab.config.table(ScheduleExperiment).decays)):
            cost, percent = known.costs.get(share), None if known.noise is None else 100 * known.noise
            value = None if cost is None else 100 * cost
            about = {"shape": shape, "share": share, "margin": MARGIN}
            out.append(Verdict("enough", value, verdict.about(value, percent), (-math.inf, 100 * MARGIN), " %", about))
    return out

"""The law of loss over model size N and tokens D, from one stable run a size, and a test of it on larger runs.

The idea (MiniCPM, arXiv:2404.06395, section 4): a stable run can be decayed at any point, so one run a size gives the losses of
all token counts, at a cost that grows with the longest one and not with their sum. On these points
L(N, D) = E + A / N^alpha + B / D^beta is fitted. Beside it, if asked, a plain Chinchilla fit: a cosine run for each point, with
as many of them as cost no more than the stable runs and their decays did.

A law is worth what it predicts: the losses of larger runs are written to predictions.json, with the time and the fingerprint of
the points, before those runs are submitted, and are never changed afterwards.

What it gives up: one learning rate for all sizes (the transfer rule's), one batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator, model_validator

from gangpao import machine
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import LeftOut, Outcome, Submit, finite
from gangpao.sandbox.experiments.study.predictions import Record, judged, predict, target_of
from gangpao.sandbox.experiments.study.study import Fitted, Study, fits_of, points_of, seed_noise, size_of
from gangpao.sandbox.laws import doubts, fit, verdict
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Size, of_each, pairs_once
from gangpao.sandbox.trials.field_types import Once, Positive, Seed, Some, Tokens
from gangpao.sandbox.trials.trial import Lab, Result, Spec

MIN_POINTS = 6
GOAL = 1.0  # percent that a prediction may miss by
Kind = Literal["stable", "branch", "cosine"]


class Ladder(Size):
    """A size of the law, with token counts of its own where small models are to be followed further than large ones."""

    tokens: Once[Tokens] = Field(default=(), description="Where its decays end; empty: at those of all sizes.")


class ScalingConfig(ExperimentTable):
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
        return of_each(tokens, info, "targets", ", or one for all")

    @model_validator(mode="after")
    def _differ(self) -> ScalingConfig:
        several = self.target_tokens if self.targets and len(self.target_tokens) > 1 else ()
        pairs_once("targets", self.targets, several)
        return self


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for a grid from which no decay or no law can come."""
    grid, targets = specs_of(lab), later(lab)
    order = [(kind, spec) for kind in grid for spec in grid[kind]]
    found: dict[str, list[Result]] = {"stable": [], "branch": [], "cosine": []}
    for (kind, _), result in zip(order, submit([spec for _, spec in order]), strict=True):
        found[kind].append(result)
    study = Study(**found)
    fits = fits_of(study, floor=lab.config.table(ScalingConfig).floor)
    record = predict(lab, fits, targets, lab.config.table(ScalingConfig).floor) if targets else None
    ran = submit(targets) if targets else []
    return outcome_of(lab, study, fits, record, ran)


# --- which trials


def specs_of(lab: Lab) -> dict[Kind, list[Spec]]:
    """Stable runs, their decays, and cosine runs of the same lengths with the same warmup; large ones first."""
    c = lab.config.table(ScalingConfig)
    shape = lab.config.common.schedule if lab.config.common.schedule.startswith("wsd") else "wsd"
    ladder = _ladder(lab)
    out: dict[Kind, list[Spec]] = {"stable": [], "cosine": [], "branch": []}  # parents first, short decays last
    for size, horizons in ladder.items():
        starts, warmup = _starts(lab, horizons)
        for seed in c.seeds:
            one = {"width": size.width, "layers": size.layers, "seed": seed}
            stable = lab.stable_run(starts.values(), warmup, **one, schedule=shape)
            out["stable"].append(stable)
            for h in reversed(horizons):
                out["branch"].append(lab.branch(stable, starts[h], h - starts[h]))
                if c.cosine:
                    out["cosine"].append(lab.spec(**one, schedule="cosine", steps=h, warmup=warmup / h))
    return out


def _ladder(lab: Lab) -> dict[Size, list[int]]:
    """Sizes, large ones first, and the steps at which their decays end. Raises ValueError where no law can come from them."""
    c = lab.config.table(ScalingConfig)
    found: dict[Size, set[int]] = {}
    for size in sorted(c.sizes, key=lambda s: -s.width * s.width * s.layers):
        steps = {lab.spec(tokens=tokens).steps for tokens in size.tokens or c.tokens}
        found.setdefault(Size(width=size.width, layers=size.layers), set()).update(steps)
    points = sum(map(len, found.values()))
    if len(found) < 2 or len(set().union(*found.values())) < 2 or points < MIN_POINTS:
        counts = f"{len(found)} sizes with {points} token counts in all"
        raise ValueError(f"scaling: {counts} are too few for a law: two or more of both, and {MIN_POINTS} points")
    return {size: sorted(steps) for size, steps in found.items()}


def _starts(lab: Lab, horizons: list[int]) -> tuple[dict[int, int], int]:
    """Where the decays of a stable run begin, by their ends, and its steps of warmup."""
    common = lab.config.common
    starts = {h: h - round(common.decay * h) for h in horizons}
    short = [h for h in horizons if not 0 < starts[h] < h]
    if short:
        raise ValueError(
            f"scaling.tokens: {short[0]} steps with common.decay {common.decay:g} leave no stable part or no decay; take longer "
            "runs, a smaller batch, or a decay between 0 and 1"
        )
    warmup = round(common.warmup * horizons[-1])
    if starts[horizons[0]] <= warmup:
        raise ValueError(
            f"scaling.tokens: the shortest run begins to decay at step {starts[horizons[0]]}, within the {warmup} steps of warmup "
            "(common.warmup of the longest): take a larger smallest count or a shorter warmup"
        )
    return starts, warmup


def later(lab: Lab) -> list[Spec]:
    """The runs to predict, which are asked for when the laws are known: ordinary ones, with the common schedule."""
    c = lab.config.table(ScalingConfig)
    if not c.targets:
        return []
    tokens = c.target_tokens or (max(c.tokens),)
    if len(tokens) not in (1, len(c.targets)):
        raise ValueError(
            f"scaling.target_tokens has {len(tokens)} numbers for {len(c.targets)} targets: give one for each, or one for all"
        )
    counts = tokens if len(tokens) == len(c.targets) else tokens * len(c.targets)
    seed = c.seeds[0]
    return [
        lab.spec(width=size.width, layers=size.layers, tokens=count, seed=seed)
        for size, count in zip(c.targets, counts, strict=True)
    ]


# --- the outcome


def outcome_of(lab: Lab, study: Study, fits: dict[str, Fitted], record: Record | None, ran: list[Result]) -> Outcome:
    """All that a plan and a page need."""
    noise = seed_noise(study)
    by_target = {target_of(lab, r.spec): r for r in ran}
    tests = judged(record.predictions, fits, by_target) if record else []
    everything = [*study.stable, *study.branch, *study.cosine, *ran]
    ratios = [size.width / size.layers for size in lab.config.table(ScalingConfig).sizes]
    facts = {
        "points": {name: [[r.N, r.N_total, r.D, r.bpb] for r in f.results] for name, f in fits.items()},
        "laws": {name: _law(name, f) for name, f in fits.items()},
        "flops": {name: f.flops for name, f in fits.items() if name != "total"} | {"separate": study.separate_flops},
        "noise": noise and noise.sigma, "noise_of_one": noise and noise.wide(), "targets": tests, "goal": GOAL,
        "predictions": record.model_dump(mode="json") if record else None, "conditions": conditions(lab),
        "aspects": [min(ratios), max(ratios)], "speed": _speed(study), "held_out": _held_out(fits["wsd"]),
        "train_tokens": sum(shards.num_tokens for shards in lab.built.train.values()),
        "runs": [*_runs("wsd", study.branch, fits["wsd"]), *_runs("cosine", study.cosine, fits.get("cosine"))],
        "equal": [[size_of(r), r.D] for r in fits["equal"].results] if "equal" in fits else None,
        "picture": curves(fits, tests),
    }  # fmt: skip
    return Outcome(
        name="scaling",
        verdicts=_verdicts(fits, tests, noise),
        facts=facts,
        left_out=_left_out(everything, fits),
        results=everything,
    )


def _left_out(results: list[Result], fits: dict[str, Fitted]) -> list[LeftOut]:
    """Trials that did not end well, and points that a law leaves out."""
    out = []
    for r in results:
        if r.state != "done":
            own = {"size": size_of(r), "tokens": r.D, "schedule": r.spec.schedule, "seed": r.spec.seed}
            out.append(LeftOut(kind="run", values=own, state=r.state, reason=r.reason))
    for name, f in fits.items():
        for p, why in f.additive.excluded if f.additive else ():
            own = {"N": p.N, "D": p.D, "loss": p.loss, "law": name}
            out.append(LeftOut(kind="point", values=own, reason=why))
    return out


def _runs(kind: str, results: Sequence[Result], fitted: Fitted | None) -> list[dict[str, Any]]:
    """Every run with what its law says of it; error: percent."""
    runs = []
    for r in sorted(results, key=lambda r: (r.N, r.D, r.spec.seed)):
        law = fitted.law.predict(r.N, r.D) if fitted and fitted.law else None
        error = 100 * (law / r.bpb - 1) if law is not None and r.bpb is not None else None
        own = {"kind": kind, "size": size_of(r), "N": r.N, "D": r.D, "bpb": r.bpb}
        runs.append({**own, "law": law, "error": error, "flops": r.flops})
    return runs


def _law(name: str, f: Fitted) -> dict[str, Any]:
    """A law as plain data, with its best D / N at its largest run (None for what is infinite) and what to doubt about it; or the
    reason why there is none."""
    if f.law is None:
        return {"reason": f.reason.model_dump(mode="json") if f.reason else None}
    out = f.law.json()
    if name in ("wsd", "coupled"):
        out["doubts"] = [doubt.model_dump(mode="json") for doubt in doubts.of_law(f.law)]
    if f.additive:
        C = doubts.largest(f.law.points)
        ratio, (low, high) = doubts.ratio_of(f.law, C)
        out["optimum"] = {"C": C, "ratio": finite(ratio), "low": finite(low), "high": finite(high)}
    return out


def _held_out(f: Fitted) -> dict[str, float] | None:
    """Evidence that does not rest on the intervals, where there are sizes enough: the largest size, predicted from the others."""
    try:
        h = fit.held_out(points_of(f.results))
    except ValueError:
        return None
    return {"worst": h.worst, "inside": h.inside}


def _verdicts(fits: dict[str, Fitted], tests: list[dict[str, Any]], noise: fit.Noise | None) -> list[Verdict]:
    """Of the law that a plan goes by: its targets, its floor, its best D / N."""
    name = "coupled" if "coupled" in fits else "wsd"
    out = []
    for t in tests:
        if t["law"] == name:
            wide = None
            if noise is not None and t["actual"] is not None:
                wide = 100 * noise.wide() * t["predicted"] / t["actual"] ** 2
            about = {"size": t["size"], "D": t["D"], "goal": GOAL}
            out.append(Verdict("predicted", t["error"], verdict.about(t["error"], wide), (-GOAL, GOAL), " %", about))
    law = fits[name].law
    return [*out, *(doubts.verdicts(law) if law else [])]


def curves(fits: dict[str, Fitted], tests: list[dict[str, Any]]) -> dict[str, Any]:
    """For the picture: the law that a plan goes by as lines of [D, loss] for each size and target, beside the points of the sizes,
    and [what it says, what came] of its own points."""
    name = "coupled" if "coupled" in fits else "wsd"
    law, results = fits[name].law, fits[name].results
    assert law is not None
    ends = [min(r.D for r in results) / 1.3, 1.3 * max([r.D for r in results] + [t["D"] for t in tests])]
    grid = [float(D) for D in np.geomspace(ends[0], ends[1], 50)]
    sizes = [(r.N, size_of(r)) for r in {r.N: r for r in sorted(results, key=lambda r: r.N)}.values()]
    mine = sorted((t for t in tests if t["law"] == name), key=lambda t: int(t["N"]))
    return {
        "law": name,
        "sizes": [
            {
                "size": size, "N": N, "points": [[r.D, r.bpb] for r in results if r.N == N],
                "line": [[D, law.predict(N, D)] for D in grid],
            }
            for N, size in sizes
        ],
        "targets": [
            {"size": t["size"], "D": t["D"], "actual": t["actual"], "line": [[D, law.predict(t["N"], D)] for D in grid]}
            for t in mine
        ],
        "fitted": [[law.predict(r.N, r.D), r.bpb] for r in results],
    }  # fmt: skip


def _speed(study: Study) -> float | None:
    """FLOP/s of the machine: of the largest size's trials, times the trials that ran at a time when they did, never more than this
    machine has cores."""
    timed = [r for r in (*study.stable, *study.branch) if r.busy > 0 and r.state == "done"]
    most = max((r.N for r in timed), default=0)
    largest = [r for r in timed if most == r.N]
    busy, cores = sum(r.busy for r in largest), machine.physical_cores()
    return sum(r.flops * min(cores, r.workers) for r in largest) / busy if busy else None

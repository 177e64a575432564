"""The trials of a scaling study, and the laws that are fitted to them: ours, and a plain Chinchilla fit of equal cost beside it.

What it gives up: the equal-cost fit is chosen from the cosine runs that were trained; runs that nobody asked for might do better.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.coupled import CoupledFit, fit_coupled
from gangpao.sandbox.reasons import NoLaw, Reason
from gangpao.sandbox.trials.trial import Result


@dataclass(frozen=True, slots=True)
class Study:
    """The trials that the laws are fitted to."""

    stable: list[Result]
    branch: list[Result]
    cosine: list[Result]

    @property
    def flops(self) -> float:
        """What the stable runs and their decays cost."""
        return sum(r.flops for r in {r.key: r for r in (*self.stable, *self.branch)}.values())

    @property
    def separate_flops(self) -> float:
        """What a run of its own for each decay would have cost."""
        return sum(whole_flops(r) for r in self.branch)


def whole_flops(result: Result) -> float:
    """Of a branch together with the part of its parent that led to it; of other runs their own."""
    q = result.spec
    return result.flops * (q.parent_step + q.steps) / q.steps


def size_of(result: Result) -> str:
    return f"{result.spec.width}x{result.spec.layers}"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law with the trials it comes from and their cost, or the reason why there is none."""

    law: fit.ScalingFit | CoupledFit | None
    results: list[Result]
    flops: float
    reason: Reason | None = None

    @property
    def additive(self) -> fit.ScalingFit | None:
        """The law, where it is Chinchilla's."""
        return self.law if isinstance(self.law, fit.ScalingFit) else None


def fits_of(study: Study, *, floor: tuple[float, float] | None = None) -> dict[str, Fitted]:
    """wsd: the law. coupled, with a floor: of the same trials, see its module. total: with N of all parameters. cosine: of all
    cosine runs. equal: of as many cosine runs as cost what the stable runs and decays did."""
    branch = [r for r in study.branch if r.bpb is not None]
    out = {"wsd": _fit(branch, study.flops), "total": _fit(branch, study.flops, total=True)}
    additive, why = out["wsd"].law, out["wsd"].reason
    if not isinstance(additive, fit.ScalingFit):
        raise ValueError(f"scaling: no law from {len(branch)} trials: {why.text().en if why else ''}")
    if floor is not None:
        out["coupled"] = Fitted(fit_coupled(points_of(branch), floor=floor), branch, study.flops)
    cosine = [r for r in study.cosine if r.bpb is not None]
    if cosine:
        out["cosine"] = _fit(cosine, sum(r.flops for r in cosine))
        chosen = affordable(cosine, study.flops, additive.law)
        out["equal"] = _fit(chosen, sum(r.flops for r in chosen))
    return out


def _fit(results: Sequence[Result], flops: float, *, total: bool = False) -> Fitted:
    try:
        return Fitted(fit.fit_scaling(points_of(results, total=total)), list(results), flops)
    except NoLaw as error:  # too few points, or all alike: the outcome says so
        return Fitted(None, list(results), flops, error.reason)


def points_of(results: Sequence[Result], *, total: bool = False) -> list[fit.Point]:
    """N, D and held-out bits per byte of finished trials."""
    return [fit.Point(N=r.N_total if total else r.N, D=r.D, loss=r.bpb) for r in results if r.bpb is not None]


def fingerprint(groups: dict[str, list[Result]]) -> str:
    """sha256 of the points that the laws are fitted to."""
    points = {name: sorted([r.N, r.D, r.bpb] for r in results) for name, results in groups.items()}
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def law_of(facts: dict[str, Any]) -> fit.ScalingFit | CoupledFit:
    """The law to plan by, from the facts of an outcome: that of coupled terms where there is a floor."""
    points = [fit.Point(N=N, D=D, loss=bpb) for N, _, D, bpb in facts["points"]["wsd"]]
    floor = facts["laws"].get("coupled", {}).get("floor")
    return fit_coupled(points, floor=(floor[0], floor[1])) if floor else fit.fit_scaling(points)


def affordable(results: Sequence[Result], flops: float, law: fit.ScalingLaw) -> list[Result]:
    """Trials that together cost no more than `flops` and still tell most about a law: from all of them, the one is dropped that
    takes the least information (determinant, at the law that is known) for its cost, until they fit; what fits again comes back.

    So the cheaper study is given its best chance; "the longest that fit" would leave it one token count.
    """
    rows = np.array([_sensitivity(law, r) for r in results])

    def information(kept: set[int]) -> float:
        picked = rows[sorted(kept)]
        return float(np.linalg.slogdet(picked.T @ picked + 1e-12 * np.eye(rows.shape[1]))[1])

    def cost(kept: set[int]) -> float:
        return sum(results[i].flops for i in kept)

    kept = set(range(len(results)))
    while cost(kept) > flops:
        now = information(kept)
        kept.remove(min(kept, key=lambda i: (now - information(kept - {i})) / results[i].flops))
    while back := [i for i in range(len(results)) if i not in kept and cost(kept | {i}) <= flops]:
        kept.add(max(back, key=lambda i: information(kept | {i})))
    return [results[i] for i in sorted(kept)]


def _sensitivity(law: fit.ScalingLaw, r: Result) -> list[float]:
    """Gradient of log L by E, log A, log B, alpha, beta."""
    loss, n, d = law.predict(r.N, r.D), law.A * r.N**-law.alpha, law.B * r.D**-law.beta
    return [v / loss for v in (1.0, n, d, -n * math.log(r.N), -d * math.log(r.D))]


def seed_noise(study: Study) -> fit.Noise | None:
    """Of one trial, from those that differ by the seed only; None with one seed."""
    groups: dict[tuple[int, int, str], list[float]] = {}
    for r in (*study.branch, *study.cosine):
        if r.bpb is not None:
            groups.setdefault((r.N, r.D, r.spec.schedule), []).append(r.bpb)
    return fit.seed_noise(list(groups.values()))

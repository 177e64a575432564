"""Loss against batch size at equal tokens, and the law of the best batch.

A small batch makes more steps of the same tokens, a large one has less noise in each; between them lies a best one, and it
grows as the loss falls. MiniCPM (arXiv:2404.06395, section 3.2) found 1.21e9 / L^6.24 tokens, L in nats a token on C4. Here the
best batch of each size gives a law over the loss in bits per byte, and one over tokens beside it. Sizes that the law does not see
test it: what does the law's batch lose against the best of their own grid?

The interval of a law comes from the intervals of the best batches, each drawn anew, widened where the points miss the law by more
than those allow: three sizes leave too little for an interval from the misses alone.

What it gives up: the learning rate is the common one, times what the rule says about batches, and is not tuned for each
batch. Loss and tokens rise together here, so the two laws cannot both be blamed for the same points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Outcome, Submit, ended_badly
from gangpao.sandbox.experiments.sweep import Sweep, sweeps_of
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.scaling_law import WIDE
from gangpao.sandbox.laws.verdict import BELOW_ZERO, UNKNOWN, Verdict
from gangpao.sandbox.trials.config import ExperimentTable, Size, of_each, pairs_once
from gangpao.sandbox.trials.field_types import Seed, Some, Tokens, filled
from gangpao.sandbox.trials.trial import Lab, Result, Spec

GOAL = 0.3  # percent of loss that the law's batch may cost
_UNEQUAL = 0.01  # share by which tokens may differ between batches
_DRAWS = 2000


class BatchConfig(ExperimentTable):
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
        return of_each(tokens, info, "sizes" if info.field_name == "tokens" else "check")

    @model_validator(mode="after")
    def _differ(self) -> BatchConfig:
        pairs_once("sizes", self.sizes, self.tokens)
        pairs_once("check", self.check, self.check_tokens)
        return self


class _Case(NamedTuple):
    """A size and the tokens that its trials see. check: the law is not fitted to it."""

    size: Size
    tokens: int
    check: bool


@dataclass(frozen=True)
class _Law:
    """batch = a x^b. draws: log a and b; scale: how much farther the points lie than their intervals say, at least 1."""

    law: fit.PowerLaw
    scale: float
    draws: np.ndarray[Any, np.dtype[np.float64]] = field(repr=False, compare=False)

    @property
    def exponent(self) -> tuple[float, float]:
        """95 % interval of b."""
        low, high = np.quantile(self.draws[:, 1], [0.025, 0.975])
        return float(low), float(high)

    def interval(self, x: float) -> tuple[float, float]:
        """95 % interval of the batch at x."""
        low, high = np.exp(np.quantile(self.draws @ np.array([1.0, math.log(x)]), [0.025, 0.975]))
        return float(low), float(high)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        spread: list[list[float]] = np.cov(self.draws.T).tolist()
        same = {"a": self.law.a, "b": self.law.b, "exponent": list(self.exponent), "scale": self.scale}
        return same | {"covariance": spread}


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for batches that cannot see equal tokens, and for a test on sizes that are fitted."""
    cases = _cases(lab)
    groups = {case: _specs(lab, case) for case in cases}
    order = sorted(groups, key=lambda case: -case.size.layers * case.size.width**2 * case.tokens)
    found = iter(submit([spec for case in order for row in groups[case].values() for spec in row]))
    results = {case: {b: [next(found) for _ in row] for b, row in groups[case].items()} for case in order}
    sweeps, noise = sweeps_of(results)
    fitted = [case for case in cases if not case.check and _inside(sweeps[case])]
    laws = {
        "loss": _law([_loss(sweeps[c]) for c in fitted], [sweeps[c] for c in fitted]),
        "tokens": _law([float(c.tokens) for c in fitted], [sweeps[c] for c in fitted]),
    }
    everything = [r for group in results.values() for row in group.values() for r in row]
    return _outcome(lab, cases, sweeps, laws, noise, everything)


def _cases(lab: Lab) -> list[_Case]:
    c, common = lab.config.table(BatchConfig), lab.config.common
    if len(set(c.batches)) < 3:
        raise ValueError(f"batch.batches: {len(set(c.batches))} different values; a minimum needs three, better six")
    unit = math.lcm(*c.batches)
    out: list[_Case] = []
    for name, sizes, tokens in (("sizes", c.sizes, c.tokens), ("check", c.check, c.check_tokens)):
        for size, asked in zip(sizes, tokens or [common.tokens] * len(sizes), strict=True):
            # Whole steps of every batch, so that all see the same number of tokens.
            equal = max(1, round(asked / unit)) * unit
            out.append(_Case(size, equal if abs(equal / asked - 1) <= 0.2 else asked, name == "check"))
    again = {case[:2] for case in out if case.check} & {case[:2] for case in out if not case.check}
    if again:
        which = min(str(size) for size, _ in again)
        raise ValueError(f"batch.check: {which} is also in batch.sizes, with the same tokens, so it tests nothing")
    return list(dict.fromkeys(out))


def _specs(lab: Lab, case: _Case) -> dict[float, list[Spec]]:
    """Batch -> a spec for each seed."""
    out = {}
    for batch in sorted(set(lab.config.table(BatchConfig).batches)):
        changes = {"width": case.size.width, "layers": case.size.layers, "batch_tokens": batch, "tokens": case.tokens}
        out[float(batch)] = [lab.spec(**changes, seed=seed) for seed in lab.config.table(BatchConfig).seeds]
        D = out[float(batch)][0].tokens
        if abs(D / case.tokens - 1) > _UNEQUAL:
            raise ValueError(
                f"batch.batches: steps of {batch:,} tokens make {D:,}, not {case.tokens:,}, and unequal tokens do not compare; "
                "let every batch divide the largest one, and give more tokens than that"
            )
    return out


def _inside(sweep: Sweep) -> bool:
    """Is a best batch known?"""
    return sweep.optimum is not None and not sweep.more()


def _loss(sweep: Sweep) -> float:
    assert sweep.optimum is not None
    return sweep.optimum.loss


# --- the law


def _law(x: Sequence[float], sweeps: Sequence[Sweep]) -> _Law | None:
    """None with fewer than three different x."""
    if len(set(x)) < 3:
        return None
    best = np.array([s.optimum.best for s in sweeps if s.optimum is not None])
    bounds = np.array([s.closed for s in sweeps])
    sigma = np.maximum(np.log(bounds[:, 1] / bounds[:, 0]) / (2 * WIDE), 1e-6)
    law = fit.fit_power(x, [float(b) for b in best]).law
    X = np.stack([np.ones(len(x)), np.log(x)], axis=1)
    missed = np.log(best) - X @ np.array([math.log(law.a), law.b])
    scale = max(1.0, math.sqrt(float(((missed / sigma) ** 2).sum()) / (len(x) - 2)))
    noise = np.random.default_rng(0).standard_normal((_DRAWS, len(x))) * sigma * scale
    # Around the law itself: the fit is robust, a draw's is not.
    draws = np.array([math.log(law.a), law.b]) + noise @ np.linalg.pinv(X).T
    return _Law(law, scale, draws)


def _test(case: _Case, sweep: Sweep, law: _Law, x: float, error: float | None) -> dict[str, Any]:
    """What the law's batch costs a size: percent of the best loss of its own grid. None outside the grid."""
    low, high = law.interval(x)
    batch = law.law.predict(x)
    best = min((v for v in sweep.means if v < math.inf), default=None)
    lost = None
    if best is not None and sweep.optimum is not None and sweep.x[0] <= batch <= sweep.x[-1]:
        try:
            lost = 100 * (sweep.optimum.loss_at(batch) / best - 1)
        except ValueError:  # it diverges there
            lost = None
    error = None if error is None or best is None else 100 * error / best
    where = {"size": str(case.size), "D": case.tokens, "batch": batch, "low": low, "high": high}
    return {**where, "lost": lost, "error": error}


# --- the outcome


def _outcome(
    lab: Lab,
    cases: Sequence[_Case],
    sweeps: Mapping[_Case, Sweep],
    laws: dict[str, _Law | None],
    noise: fit.Noise | None,
    results: list[Result],
) -> Outcome:
    error = noise and noise.between(len(lab.config.table(BatchConfig).seeds))
    tests, goals = [], []
    for name, law in laws.items():
        for case in cases:
            sweep = sweeps[case]
            if law is not None and case.check and sweep.optimum is not None:
                x = _loss(sweep) if name == "loss" else float(case.tokens)
                test = {"law": name, **_test(case, sweep, law, x, error)}
                goals.append(_goal(test))
                tests.append(test | {"answer": goals[-1].answer})
    by_loss = laws["loss"]
    direction = _direction(by_loss)
    usable = by_loss is not None and direction.answer == "yes"
    return Outcome(
        name="batch",
        verdicts=[direction, *goals],
        facts={
            "conditions": conditions(lab),
            "noise": noise and noise.sigma,
            "error": error,
            "row_tokens": lab.config.seq_len,
            "law": {"a": by_loss.law.a, "b": by_loss.law.b} if by_loss and usable else None,
            "laws": {name: law.json() if law else None for name, law in laws.items()},
            "curve": _curve(by_loss, [s.optimum.loss for s in sweeps.values() if s.optimum]),
            "paper": -fit.MINICPM.batch.b,
            "checks": tests,
            "goal": GOAL,
            "sweeps": [_swept(case, sweeps[case], by_loss) for case in cases],
        },
        left_out=ended_badly(results),
        results=results,
    )


def _swept(case: _Case, sweep: Sweep, law: _Law | None) -> dict[str, Any]:
    """A sweep as plain data; grid: the batch of its lowest loss, law: what the law over the loss gives."""
    best, means = sweep.optimum, sweep.means
    return {
        "size": str(case.size), "D": case.tokens, "check": case.check, **sweep.json(),
        "grid": round(sweep.x[means.index(min(means))]) if best else None,
        "law": law.law.predict(best.loss) if law and best else None,
    }  # fmt: skip


def _curve(law: _Law | None, bottoms: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """Loss, batch of the law and its 95 % interval, from the lowest of the best losses to the highest."""
    if law is None or not bottoms:
        return []
    grid = [float(v) for v in np.geomspace(0.99 * min(bottoms), 1.01 * max(bottoms), 60)]
    return [(x, law.law.predict(x), *law.interval(x)) for x in grid]


def _direction(law: _Law | None) -> Verdict:
    """Does the best batch grow as the loss falls?"""
    return Verdict("grows", None if law is None else law.law.b, UNKNOWN if law is None else law.exponent, BELOW_ZERO)


def _goal(t: dict[str, Any]) -> Verdict:
    """Is the law's batch good enough at a size that it does not know?"""
    about = {"law": t["law"], "size": t["size"], "goal": GOAL}
    return Verdict("good", t["lost"], verdict.about(t["lost"], t["error"]), (-math.inf, GOAL), " %", about)

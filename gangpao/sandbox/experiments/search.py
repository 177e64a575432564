"""What a search found: the best trial, which others noise does not tell from it, and how loss goes with each field.

The best of many trials is lucky: its loss is measured with the noise of its seeds, and so is that of all others. So the one
question is whether the best is better than the second by more than noise, and the trials that may be as good are counted. A
best value at the end of its range is said, as a better one may lie beyond.

What it gives up: how fields act together; a sampler looks where it hopes for much, so a picture of one field is not a fair sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.outcome import Outcome, ended_badly
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.trials.search import SEARCH, Range, SearchConfig, fitted
from gangpao.sandbox.trials.trial import Lab, Result

if TYPE_CHECKING:
    from optuna.study import Study


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial of a search: its number, the values that were chosen, a result for each seed; bpb: their mean where it ended well."""

    number: int
    values: dict[str, Any]
    results: list[Result]
    bpb: float | None
    state: str


def tried(lab: Lab, study: Study) -> list[Tried]:
    """Trials that ended, the best first, then those that did not end well."""
    from optuna.trial import TrialState  # whoever only reads a configuration needs no Optuna

    out = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.user_attrs.get("values")
        if values is None or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        specs = [lab.spec(**values, seed=seed) for seed in lab.config.table(SearchConfig).seeds]
        results = [r for r in map(lab.result, specs) if r is not None] or [
            Result.model_validate(r) for r in [trial.user_attrs.get("result")] if r is not None
        ]
        good = trial.state == TrialState.COMPLETE and trial.values
        bpb = float(trial.values[0]) if good and trial.values else None
        state = "done" if good else next((r.state for r in results if r.state != "done"), "pruned")
        out.append(Tried(trial.number, values, results, bpb, state))
    return sorted(out, key=lambda t: (math.inf if t.bpb is None else t.bpb, t.number))


def outcome_of(lab: Lab, study: Study) -> Outcome:
    """The facts of a search. Raises ValueError where no trial has ended well."""
    search, found = fitted(lab.config.table(SearchConfig), lab.config), tried(lab, study)
    good = [t for t in found if t.bpb is not None]
    if not good:
        raise ValueError(f"study {study.study_name}: no trial has ended well, all diverged or were pruned")
    noise = fit.seed_noise([[r.bpb for r in t.results if r.bpb is not None] for t in good])
    wide = noise and noise.between(len(search.seeds))
    near = [t for t in good if wide is not None and t.bpb is not None and t.bpb - (good[0].bpb or 0.0) <= wide]
    results = [r for t in found for r in t.results]
    return Outcome(
        name=SEARCH,
        verdicts=[_asked(good, wide)],
        facts={
            "conditions": conditions(lab), "study": study.study_name, "sampler": search.sampler, "pruner": search.pruner,
            "best": good[0].values, "bpb": good[0].bpb, "as_good": [t.number for t in near],
            "noise": noise and noise.sigma, "wide": wide,
            "at_end": [name for name, value in good[0].values.items() if _at_end(search.space[name], value)],
            "space": {name: r.model_dump(mode="json") for name, r in search.space.items()},
            "tried": [{"number": t.number, "values": t.values, "bpb": t.bpb, "state": t.state} for t in found],
        },
        left_out=ended_badly([r for r in results if r.state == "diverged"]),
        results=results,
    )  # fmt: skip


def _asked(good: Sequence[Tried], wide: float | None) -> Verdict:
    """Is the best trial better than the second?"""
    if len(good) < 2:
        return Verdict("better", None, verdict.UNKNOWN, (0.0, math.inf))
    d = (good[1].bpb or 0.0) - (good[0].bpb or 0.0)
    low, high = verdict.about(d, wide)
    return Verdict("better", d, (low, max(high, 1e-12)), (0.0, math.inf))


def _at_end(r: Range, value: Any) -> bool:
    """Within a twentieth of an end of the range, or the first or last of several numbers."""
    if r.choices:
        numbers = [v for v in r.choices if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) > 1 and len(numbers) == len(r.choices) and value in (min(numbers), max(numbers))
    assert r.low is not None
    assert r.high is not None
    low, high, at = (math.log(v) for v in (r.low, r.high, value)) if r.log else (r.low, r.high, value)
    return not 0.05 * (high - low) < at - low < 0.95 * (high - low)

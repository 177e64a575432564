"""Quality against price: one score a model over the tasks that all of them have, and what a million of its tokens costs.

A score is the mean of main scores as shares of the best possible, in percent. Tasks that one of the runs lacks are left out for
all of them, and said. A run without a speed has no price and is left out, and said, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gangpao.cost import CostProfile
from gangpao.evaluate.pricing import api, measured
from gangpao.evaluate.pricing.plots import Point
from gangpao.evaluate.pricing.workload import Workload, yuan_per_million
from gangpao.evaluate.results import RunResult


@dataclass(slots=True)
class Comparison:
    """points: (name, score in percent, yuan per million tokens). tasks: what the score is over. notes: what was left out."""

    points: list[Point] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def shares(run: RunResult) -> dict[str, float]:
    """Main scores by task as shares of the best possible; those of which less is better have no best and are left out."""
    return {t.task: t.value / t.scale for t in run.tasks if t.main and t.higher_is_better}


def compare(
    runs: Mapping[str, RunResult],
    speeds: Mapping[str, measured.Measured],
    profile: CostProfile,
    prices: api.ApiPrices,
    *,
    input_share: float = 0.0,
    served: bool = False,
) -> Comparison:
    """Runs by the name to show, on one machine, and the APIs whose published scores cover the same tasks.

    speeds: measured apart, by the same names; the others have that of their run, if any.
    served: answers of all at once, where a run has that speed. Raises ValueError where no task is common to all runs.
    """
    out = Comparison()
    scores = {name: shares(run) for name, run in runs.items()}
    out.tasks = _common(scores)
    every = sorted({task for found in scores.values() for task in found})
    if len(every) > len(out.tasks):
        left = [task for task in every if task not in out.tasks]
        out.notes.append(f"not in all runs, so not in the score: {', '.join(left)}")
    for name, run in runs.items():
        try:
            work = workload(speeds.get(name) or measured.of_run(run, name), input_share=input_share, served=served)
        except ValueError as error:
            out.notes.append(f"left out: {error} (a speed measured apart: RUN=BENCH)")
            continue
        out.points.append((name, _mean(scores[name], out.tasks), yuan_per_million(profile, work)))
    for name, row in prices.prices.items():
        if set(out.tasks) <= row.scores.keys():
            out.points.append((row.title, _mean(row.scores, out.tasks), prices.yuan_per_million(name, input_share)))
    return out


def workload(found: measured.Measured, *, input_share: float, served: bool) -> Workload:
    """What a measured speed says of tokens. served: of all answers together. Raises ValueError where that was not measured."""
    tps = found.batch_tps if served else found.decode_tps
    if tps is None:
        raise ValueError(
            f"{found.what}: the speed of {'many answers together' if served else 'one answer'} was not measured"
        )
    return Workload(tps, found.prefill_tps, input_share)


def _common(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    first = next(iter(scores.values()), {})
    common = [task for task in first if all(task in other for other in scores.values())]
    if not common:
        each = "; ".join(f"{name}: {', '.join(found) or 'no score'}" for name, found in scores.items())
        raise ValueError(f"no task is in all of the runs, so their scores cannot be compared ({each})")
    return common


def _mean(scores: Mapping[str, float], tasks: Sequence[str]) -> float:
    return 100 * sum(scores[task] for task in tasks) / len(tasks)

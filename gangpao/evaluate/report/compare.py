"""Differences: two runs item by item, and a run against what others published.

What is compared is what tables show: the main score of each task, in each mode. Chances are corrected for the number of tasks
that are compared (Holm). Which conditions differ is told with every difference: a score with five examples and one without are two
things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gangpao.evaluate.report.published import Cell, Published
from gangpao.evaluate.report.runs import Run
from gangpao.evaluate.results import Mode, TaskResult
from gangpao.evaluate.statistics import (
    Difference,
    clustered_error,
    holm,
    mean_error,
    paired,
    share_error,
    unpaired,
)

MIN_SUBJECTS = 20  # below, an error over subjects is itself too unsure (Cameron and Miller 2015 ask for 20 to 50)
TWO_MODES: tuple[Mode, ...] = ("loglikelihood", "generation")
_SHARES = ("acc", "exact_match")  # two names of the share of right answers


@dataclass(frozen=True, slots=True)
class Compared:
    """One score of two runs. differ: conditions that are not the same, by the names of `_conditions`."""

    first: TaskResult
    second: TaskResult
    difference: Difference
    differ: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Against:
    """A score of a run and a published one; the difference is ours minus theirs."""

    task: str
    score: TaskResult
    cell: Cell
    difference: Difference
    differ: tuple[str, ...] = ()


# --- units


def is_share(score: TaskResult) -> bool:
    """Whether a score is a share of right answers, shown in percent."""
    return score.mode not in ("perplexity", "speed") and score.scale == 1 and 0 <= score.value <= 1


def stderr_of(run: Run | None, score: TaskResult) -> float | None:
    """The standard error that a run says, else what its items give, else a share's own."""
    if score.stderr is not None:
        return score.stderr
    found = run.scores(score) if run else {}
    if found:
        return mean_error([one.score for one in found.values()])
    return share_error(score.value, score.items) if is_share(score) else None


def clustered(run: Run, score: TaskResult) -> tuple[float, int] | None:
    """The standard error over subjects and how many there are; None where items have none, or a single one."""
    found = [one for one in run.scores(score).values() if one.subject]
    subjects = [one.subject for one in found]
    error = clustered_error([one.score for one in found], subjects) if found else None
    return None if error is None else (error, len(set(subjects)))


# --- which scores


def shown(run: Run) -> list[TaskResult]:
    """The scores of a run that tables show: the main ones, and the other mode of a task that ran in both."""
    out: dict[tuple[str, Mode], TaskResult] = {}
    for score in sorted(run.result.tasks, key=lambda s: not s.main):
        if score.mode != "speed" and (score.main or score.mode in TWO_MODES):
            out.setdefault((score.task, score.mode), score)
    order = {id(score): place for place, score in enumerate(run.result.tasks)}
    return sorted(out.values(), key=lambda score: order[id(score)])


def matching(scores: Sequence[TaskResult], wanted: TaskResult, published: Published) -> TaskResult | None:
    """The score of the same task, metric and mode."""
    name = published.task_of(wanted.task)
    return next(
        (s for s in scores if published.task_of(s.task) == name and (s.metric, s.mode) == (wanted.metric, wanted.mode)),
        None,
    )


def same_metric(one: str, other: str) -> bool:
    """Whether two metrics are one: acc and exact_match are, acc and acc_norm are not."""
    one, other = one.partition(",")[0], other.partition(",")[0]
    return one == other or {one, other} <= set(_SHARES)


def asked_as(mode: Mode) -> Mode:
    """The mode, where a program that is run is an answer that was generated."""
    return "generation" if mode == "program" else mode


def closest(scores: Sequence[TaskResult], cell: Cell, published: Published) -> TaskResult | None:
    """The score that was measured most like a published one: same metric, then same mode, then the main one."""
    mine = [s for s in scores if published.task_of(s.task) == cell.task and s.mode != "speed"]

    def unlike(score: TaskResult) -> tuple[bool, bool, bool]:
        metric = bool(cell.metric) and not same_metric(cell.metric, score.metric)
        mode = cell.mode is not None and asked_as(cell.mode) != asked_as(score.mode)
        return metric, mode, not score.main

    return min(mine, key=unlike) if mine else None


# --- differences


def between(first: Run, second: Run, published: Published) -> list[Compared]:
    """second - first on every score that both have, with Holm's correction over them."""
    found = []
    for score in shown(first):
        other = matching(second.result.tasks, score, published)
        if other is not None and (other.scale, other.higher_is_better) == (score.scale, score.higher_is_better):
            found.append(Compared(score, other, _difference(first, score, second, other), _conditions(score, other)))
    chances = holm({i: c.difference.p for i, c in enumerate(found)})
    return [replace(c, difference=replace(c.difference, holm=chances[i])) for i, c in enumerate(found)]


def _difference(first: Run, score: TaskResult, second: Run, other: TaskResult) -> Difference:
    """Item by item where both are made of items with the same names and answers, else by their errors alone."""
    ours, theirs = first.scores(score), second.scores(other)
    names = [name for name, one in ours.items() if name in theirs and theirs[name].target == one.target]
    if len(names) < 2:
        return unpaired(
            score.value, stderr_of(first, score), other.value, stderr_of(second, other),
            higher_is_better=score.higher_is_better,
        )  # fmt: skip
    subjects = [ours[name].subject for name in names]
    several = all(subjects) and len(set(subjects)) >= MIN_SUBJECTS
    return paired(
        [ours[name].score for name in names],
        [theirs[name].score for name in names],
        subjects if several else None,
        higher_is_better=score.higher_is_better,
    )


def _conditions(score: TaskResult, other: TaskResult) -> tuple[str, ...]:
    """What was not the same between two of our scores."""
    names = ("shots", "prompt_version", "grader", "stop", "data")
    differ = [name for name in names if getattr(score, name) != getattr(other, name)]
    return (*(("items",) if (score.items, score.of) != (other.items, other.of) else ()), *differ)


def against(run: Run, key: str, published: Published) -> list[Against]:
    """Ours minus theirs for every published score of a row that the run has one for, with Holm's correction over them."""
    found = []
    for task in published.rows[key].scores:
        cell = published.cell(key, task)
        score = closest(run.result.tasks, cell, published) if cell else None
        if cell is None or score is None or not score.higher_is_better:
            continue
        error = stderr_of(run, score)
        ours = None if error is None else error / score.scale
        difference = unpaired(cell.value, cell.stderr, score.value / score.scale, ours)
        found.append(Against(task, score, cell, difference, unlike(score, cell)))
    chances = holm({i: a.difference.p for i, a in enumerate(found)})
    return [replace(a, difference=replace(a.difference, holm=chances[i])) for i, a in enumerate(found)]


def unlike(score: TaskResult, cell: Cell) -> tuple[str, ...]:
    """What was not the same between our score and a published one, or is not known of it."""
    differ = []
    if score.items < score.of:
        differ.append("limit")
    if cell.shots is not None and cell.shots != score.shots:
        differ.append("shots")
    if cell.mode is not None and asked_as(cell.mode) != asked_as(score.mode):
        differ.append("mode")
    if cell.metric and not same_metric(cell.metric, score.metric):
        differ.append("metric")
    if cell.shots is None or cell.mode is None:
        differ.append("unknown")
    return tuple(differ)

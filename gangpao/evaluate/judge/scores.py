"""Marks and verdicts as scores: means by category, win rates with both orders of a pair, agreement of two judges.

Errors are over questions, not over judgments: the two turns of a question and the two orders of a pair are no independent draws.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from gangpao.evaluate.judge import agreement
from gangpao.evaluate.judge.marking import Judgment, Kind
from gangpao.evaluate.results import TaskResult

MAX_MARK = 10.0
# Arena-Hard counts "much better" as three games.
MUCH = 3
DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one question's turn (or game) is worth: value of the best possible 1 or MAX_MARK, and its weight in the mean."""

    question: str
    category: str
    turn: int
    value: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """What all scores of a run share."""

    task: str
    of: int  # judgments that the whole set would have
    grader: str
    prompt_version: str
    data: str


def outcomes(kind: Kind, judgments: Sequence[Judgment]) -> list[Outcome]:
    """A mark is one; of a pair both orders have to agree, else it is a tie; an arena's games count one by one."""
    if kind == "single":
        return [_outcome(j, j.value) for j in judgments if j.value is not None]
    if kind == "arena":
        return [_outcome(j, _win(j.value), MUCH if abs(j.value) == 2 else 1) for j in judgments if j.value is not None]
    pairs = _pairs(judgments)
    return [_outcome(first, _win(a if a == b else 0)) for first, a, b in pairs]


def _pairs(judgments: Sequence[Judgment]) -> list[tuple[Judgment, float, float]]:
    """Both orders of each turn that has a verdict for both: the first judgment, and who is better by the one and the other."""
    games: dict[tuple[str, int], list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        games[judgment.asking.question.id, judgment.asking.turn].append(judgment)
    return [(a, a.value, b.value) for a, b in games.values() if a.value is not None and b.value is not None]


def _win(value: float) -> float:
    return 0.5 if value == 0 else float(value > 0)


def _outcome(judgment: Judgment, value: float, weight: float = 1.0) -> Outcome:
    asking = judgment.asking
    return Outcome(asking.question.id, asking.question.category, asking.turn, value, weight)


def mean(found: Sequence[Outcome]) -> float:
    """Weighted."""
    return math.fsum(o.value * o.weight for o in found) / math.fsum(o.weight for o in found)


def by_category(found: Sequence[Outcome]) -> dict[str, float]:
    """The mean of each, in the order of the questions."""
    names = dict.fromkeys(o.category for o in found)
    return {name: mean([o for o in found if o.category == name]) for name in names}


def draws(found: Sequence[Outcome], seed: int = 0) -> list[float]:
    """Means of questions drawn with replacement, in ascending order."""
    names = list(dict.fromkeys(o.question for o in found))
    place = {name: i for i, name in enumerate(names)}
    sums, weights = np.zeros(len(names)), np.zeros(len(names))
    for o in found:
        sums[place[o.question]] += o.value * o.weight
        weights[place[o.question]] += o.weight
    chosen = np.random.default_rng(seed).integers(0, len(names), (DRAWS, len(names)))
    return sorted((sums[chosen].sum(1) / weights[chosen].sum(1)).tolist())


def interval(found: Sequence[Outcome]) -> tuple[float, float]:
    """95 % of the bootstrap's means lie between these."""
    values = draws(found)
    return values[int(0.025 * DRAWS)], values[int(0.975 * DRAWS) - 1]


def results(kind: Kind, judgments: Sequence[Judgment], place: Place, *, main: bool, name: str = "") -> list[TaskResult]:
    """The scores of one judge, the one that tables show first. name: put behind the metrics of a second judge.

    Raises ValueError where no judgment holds a verdict.
    """
    found = outcomes(kind, judgments)
    if not found:
        said = next((a.text for j in judgments for a in j.answers if a.text), "")
        raise ValueError(
            f"{place.grader}: none of {len(judgments)} judgments holds a verdict in double square brackets; "
            f"the first says {said[:200]!r}. Take a judge that follows instructions"
        )
    scale = MAX_MARK if kind == "single" else 1.0
    metric = ("score" if kind == "single" else "win_rate") + name
    left_out = dict(Counter(j.missing for j in judgments if j.missing))
    common: dict[str, Any] = {
        "task": place.task, "mode": "judge", "grader": place.grader, "prompt_version": place.prompt_version,
        "data": place.data, "left_out": left_out,
    }  # fmt: skip
    out = [
        TaskResult(
            metric=metric, value=mean(found), stderr=_stderr(kind, found), items=len(found), of=place.of, scale=scale,
            main=main, parts=by_category(found), **common,
        )
    ]  # fmt: skip
    turns = sorted({o.turn for o in found})
    for turn in turns if len(turns) > 1 else ():
        part = [o for o in found if o.turn == turn]
        value, error = mean(part), _stderr(kind, part)
        out.append(_more(f"{metric}_turn_{turn}", value, part, scale, common, place.of // 2, error))
    if kind == "pair":
        shares = Counter(o.value for o in found)
        for label, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0)):
            out.append(_more(label + name, shares[value] / len(found), found, 1.0, common, place.of))
    if kind != "single":
        out += _positions(judgments, common, place.of, name)
    return out


def _more(
    metric: str,
    value: float,
    found: Sequence[Any],
    scale: float,
    common: Mapping[str, Any],
    of: int,
    stderr: float | None = None,
) -> TaskResult:
    """A score beside the one that tables show."""
    return TaskResult(
        metric=metric, value=value, stderr=stderr, items=len(found), of=of, scale=scale, main=False, **common
    )


def _positions(judgments: Sequence[Judgment], common: Mapping[str, Any], of: int, name: str) -> list[TaskResult]:
    """How far the order of two answers decides: share of pairs judged alike in both, and of verdicts for what stands first."""
    pairs = _pairs(judgments)
    alike = fmean(float(np.sign(a) == np.sign(b)) for _, a, b in pairs) if pairs else 0.0
    decided = [j for j in judgments if j.value]
    first = fmean(float((j.value > 0) != j.asking.swapped) for j in decided if j.value) if decided else 0.5
    return [
        _more(f"order_agreement{name}", alike, pairs, 1.0, common, of),
        _more(f"first_preferred{name}", first, decided, 1.0, common, of),
    ]


def _stderr(kind: Kind, found: Sequence[Outcome]) -> float | None:
    """Of a mean of marks by the spread of the questions' means; of a win rate by the bootstrap."""
    questions = dict.fromkeys(o.question for o in found)
    if len(questions) < 2:
        return None
    if kind != "single":
        return stdev(draws(found))
    means = [fmean(o.value for o in found if o.question == name) for name in questions]
    return stdev(means) / math.sqrt(len(means))


def agreements(kind: Kind, first: Sequence[Judgment], second: Sequence[Judgment], place: Place) -> list[TaskResult]:
    """Of two judges over what both gave a verdict for."""
    both = [
        (a.value, b.value) for a, b in zip(first, second, strict=True) if a.value is not None and b.value is not None
    ]
    if not both:
        return []
    a, b = zip(*both, strict=True)
    found: dict[str, float | None] = {"agreement_exact": agreement.exact(a, b)}
    if kind == "single":
        found |= {"agreement_within_1": agreement.within(a, b, 1), "agreement_spearman": agreement.spearman(a, b)}
    else:
        found["agreement_kappa"] = agreement.kappa(a, b)
    common = {"task": place.task, "mode": "judge", "grader": place.grader, "data": place.data}
    return [_more(m, value, both, 1.0, common, place.of) for m, value in found.items() if value is not None]

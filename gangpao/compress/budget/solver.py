"""The mixture of least loss that fits: one option of every group, their bytes within a budget.

    best       exact, by dynamic programming over bytes; where these are too many to count one by one, over coarser steps, and what
               the steps leave is spent by single exchanges
    nested     steps up the convex hull of every group, in the order of loss saved a byte: the mixture of a larger budget is in no
               group worse than that of a smaller one

Losses add up. What `best` gives can only become better with more bytes, because every mixture of a budget fits a larger one.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST_STEPS = 1 << 18  # of bytes in the table of the dynamic program


class Option(NamedTuple):
    """A type of a tensor: its bytes, and what it costs (any unit that adds up)."""

    nbytes: int
    loss: float


Options = Sequence[Option]


class Step(NamedTuple):
    """From an option of a group to a larger one, and the loss saved a byte."""

    group: int
    option: int
    nbytes: int
    saved: float


def limits(groups: Sequence[Options]) -> tuple[int, int]:
    """Bytes of the smallest mixture, and of the one that no bytes make better."""
    least = sum(min(o.nbytes for o in options) for options in groups)
    most = sum(min((o.loss, o.nbytes) for o in options)[1] for options in groups)
    return least, most


def frontier(options: Options) -> list[int]:
    """Numbers of the options that no other beats in bytes and in loss, the smallest first."""
    kept: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: options[i]):
        if not kept or options[i].loss < options[kept[-1]].loss:
            kept.append(i)
    return kept


def hull(options: Options) -> list[int]:
    """Those of the frontier at which each further byte saves less than the one before."""
    kept: list[int] = []
    for i in frontier(options):
        while len(kept) > 1 and _slope(options, kept[-2], kept[-1]) <= _slope(options, kept[-2], i):
            kept.pop()
        kept.append(i)
    return kept


def _slope(options: Options, a: int, b: int) -> float:
    return (options[a].loss - options[b].loss) / (options[b].nbytes - options[a].nbytes)


def steps(groups: Sequence[Options]) -> list[Step]:
    """All steps up the hulls, the one that saves most a byte first."""
    found = [
        Step(g, to, options[to].nbytes - options[at].nbytes, options[at].loss - options[to].loss)
        for g, options in enumerate(groups)
        for at, to in itertools.pairwise(hull(options))
    ]
    return sorted(found, key=lambda s: (-s.saved / s.nbytes, s.group, s.option))


def nested(groups: Sequence[Options], budget: int) -> list[int]:
    """An option of each group. Raises ValueError where not even the smallest fit."""
    chosen = [hull(options)[0] for options in groups]
    left = budget - sum(groups[g][i].nbytes for g, i in enumerate(chosen))
    if left < 0:
        raise ValueError(f"the smallest options are {-left:,} bytes more than the budget of {budget:,}")
    for step in steps(groups):
        if step.nbytes > left:  # none behind it either: a smaller one now would be missing from a larger budget's
            break
        chosen[step.group], left = step.option, left - step.nbytes
    return chosen


def best(groups: Sequence[Options], budget: int, most_steps: int = MOST_STEPS) -> list[int]:
    """An option of each group. Raises ValueError where not even the smallest fit."""
    lines = [frontier(options) for options in groups]
    floor = [groups[g][line[0]].nbytes for g, line in enumerate(lines)]
    room = min(budget - sum(floor), sum(groups[g][line[-1]].nbytes - floor[g] for g, line in enumerate(lines)))
    if room < 0:
        raise ValueError(f"the smallest options are {-room:,} bytes more than the budget of {budget:,}")
    more = [[groups[g][i].nbytes - floor[g] for i in line] for g, line in enumerate(lines)]
    unit = functools.reduce(math.gcd, (x for line in more for x in line), 0) or 1
    exact = room // unit <= most_steps
    unit = unit if exact else -(-room // most_steps)
    chosen = _table([[-(-x // unit) for x in line] for line in more], groups, lines, room // unit)
    return chosen if exact else _exchanged(groups, lines, chosen, budget)


def _table(
    costs: Sequence[Sequence[int]], groups: Sequence[Options], lines: Sequence[list[int]], capacity: int
) -> list[int]:
    """The dynamic program: least loss of the first groups for every number of steps, and which option made it."""
    least = np.zeros(capacity + 1)
    picked = np.zeros((len(groups), capacity + 1), np.uint8)
    for g, (cost, line) in enumerate(zip(costs, lines, strict=True)):
        now = np.full(capacity + 1, np.inf)
        for place, (price, option) in enumerate(zip(cost, line, strict=True)):
            if price > capacity:
                continue
            found = least[: capacity + 1 - price] + groups[g][option].loss
            better = found < now[price:]
            now[price:][better] = found[better]
            picked[g, price:][better] = place
        least = now
    at, chosen = capacity, [0] * len(groups)
    for g in reversed(range(len(groups))):
        place = int(picked[g, at])
        chosen[g], at = lines[g][place], at - costs[g][place]
    return chosen


def _exchanged(groups: Sequence[Options], lines: Sequence[list[int]], chosen: list[int], budget: int) -> list[int]:
    """Spend what is left: the single change that saves most, as long as one fits."""
    left = budget - sum(groups[g][i].nbytes for g, i in enumerate(chosen))
    while True:
        found = [
            (groups[g][chosen[g]].loss - groups[g][i].loss, -g, i)
            for g, line in enumerate(lines)
            for i in line
            if 0 < groups[g][i].nbytes - groups[g][chosen[g]].nbytes <= left
        ]
        saved, place, option = max(found, default=(0.0, 0, 0))
        if saved <= 0:
            return chosen
        left -= groups[-place][option].nbytes - groups[-place][chosen[-place]].nbytes
        chosen[-place] = option

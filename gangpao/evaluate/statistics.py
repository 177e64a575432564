"""How sure a score is, and whether two of them differ.

    share_error, mean_error, clustered_error    standard errors of shares, of means, of means over items that come in subjects
    paired, unpaired                            a difference with its standard error and the chance that it is none
    holm                                        those chances for several tasks looked at together
    Difference.word                             better, worse or cannot tell

Two runs on the same items are compared item by item: what is hard for both cancels, and the interval is narrower. For right and
wrong the chance is exact (McNemar's test: an item that only one run got right was as likely the other's). For other scores of few
items it is exact too (all ways to swap the two runs), for many it is the normal distribution's.

What it gives up: a bootstrap; with hundreds of items it gives the same interval, and it needs a seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z95 = 1.959963984540054  # standard errors to both sides that hold 95 % of a normal distribution
LEVEL = 0.05
EXACT_ITEMS = 14  # 2 ** 14 ways to swap two runs

Word = Literal["better", "worse", "cannot tell"]
How = Literal["mcnemar", "swaps", "paired", "clustered", "unpaired", "one_sided_error"]


def share_error(share: float, count: int) -> float | None:
    """Standard error of a share of right answers; None below two items."""
    return math.sqrt(share * (1 - share) / (count - 1)) if count > 1 else None


def mean_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean: sample standard deviation over the root of the count; None below two values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Standard error of a mean whose values come in clusters, such as the questions of a subject or of one text.

    Values of a cluster may hang together in any way; clusters are independent. With every value its own cluster this is
    mean_error. None below two clusters.
    """
    if len(values) != len(clusters):
        raise ValueError(f"clusters: {len(clusters)} for {len(values)} values")
    mean, sums = float(np.mean(values)) if len(values) else 0.0, dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    count = len(sums)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) / len(values)


def normal_p(value: float, error: float) -> float:
    """The chance of a value at least this far from zero where nothing but the error is at work."""
    if error <= 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / error / math.sqrt(2))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The exact chance, two-sided, that counts of items which one run alone got right are this far apart: each is a fair coin."""
    count, less = only_first + only_second, min(only_first, only_second)
    if only_first == only_second:
        return 1.0
    logs = [_log_choose(count, k) - count * math.log(2) for k in range(less + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def swaps_p(differences: Sequence[float]) -> float:
    """The exact chance, two-sided, of a mean difference this large when the two runs may be swapped on each item."""
    d = np.array([x for x in differences if x], dtype=float)
    if not len(d):
        return 1.0
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(d))))
    sums = np.abs(signs @ d)
    return float(np.mean(sums >= abs(d.sum()) * (1 - 1e-12)))


@dataclass(frozen=True, slots=True)
class Difference:
    """second - first, as shares of the best possible value or in the metric's own unit.

    error: standard error; None where nothing tells it. p: the chance of such a difference between equals; holm: the same for
    all differences that are looked at together. items: that both have.
    """

    value: float
    error: float | None
    p: float | None
    how: How
    items: int = 0
    holm: float | None = None
    higher_is_better: bool = True

    @property
    def interval(self) -> float | None:
        """Half of the 95 % interval."""
        return None if self.error is None else Z95 * self.error

    @property
    def word(self) -> Word:
        """better or worse where a chance below 5 % remains, after Holm's correction if there was one."""
        p = self.p if self.holm is None else self.holm
        if p is None or p >= LEVEL or self.value == 0:
            return "cannot tell"
        return "better" if (self.value > 0) == self.higher_is_better else "worse"


def paired(
    first: Sequence[float],
    second: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    higher_is_better: bool = True,
) -> Difference:
    """Two runs on the same items, in the same order. clusters: of the items, where they come in any."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired: {len(first)} and {len(second)} items; it takes the same ones, at least one")
    d = [b - a for a, b in zip(first, second, strict=True)]
    value = math.fsum(d) / len(d)
    if clusters is not None:
        error = clustered_error(d, clusters)
        p, how = (None if error is None else normal_p(value, error)), "clustered"
    else:
        error, p, how = mean_error(d), *_chance(first, second, d)
    return Difference(value, error, p, how, len(d), higher_is_better=higher_is_better)  # type: ignore[arg-type]


def _chance(first: Sequence[float], second: Sequence[float], d: Sequence[float]) -> tuple[float | None, How]:
    if {*first, *second} <= {0.0, 1.0}:
        return mcnemar_p(sum(x < 0 for x in d), sum(x > 0 for x in d)), "mcnemar"
    if len(d) <= EXACT_ITEMS:
        return swaps_p(d), "swaps"
    error = mean_error(d)
    assert error is not None
    return normal_p(math.fsum(d) / len(d), error), "paired"


def unpaired(
    first: float, first_error: float | None, second: float, second_error: float | None, *, higher_is_better: bool = True
) -> Difference:
    """Two scores that know nothing of each other's items. Where one error is unknown, the difference has that of the other alone,
    and `how` says so; where both are, nothing is said."""
    value, errors = second - first, [e for e in (first_error, second_error) if e is not None]
    if not errors:
        return Difference(value, None, None, "unpaired", higher_is_better=higher_is_better)
    error = math.hypot(*errors)
    how: How = "unpaired" if len(errors) == 2 else "one_sided_error"
    return Difference(value, error, normal_p(value, error), how, higher_is_better=higher_is_better)


def holm(chances: Mapping[Hashable, float | None]) -> dict[Hashable, float | None]:
    """Chances for all that are looked at together, by Holm's steps: below 5 % means that with 95 % none of the differences so
    called is chance. None stays None and does not count."""
    known = sorted((p, i, key) for i, (key, p) in enumerate(chances.items()) if p is not None)
    out: dict[Hashable, float | None] = dict.fromkeys(chances)
    least = 0.0
    for place, (p, _, key) in enumerate(known):
        least = max(least, min(1.0, (len(known) - place) * p))
        out[key] = least
    return out

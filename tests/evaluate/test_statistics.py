"""Every formula equals its definition: an enumeration, a matrix form, an integral."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest

from gangpao.evaluate import statistics as s


def test_an_error_of_a_share_is_the_error_of_its_zeros_and_ones():
    values = [1.0] * 13 + [0.0] * 29
    assert s.share_error(13 / 42, 42) == pytest.approx(s.mean_error(values), rel=1e-12)
    assert s.mean_error(values) == pytest.approx(np.std(values, ddof=1) / math.sqrt(42))


@pytest.mark.parametrize("values", [[], [0.5]])
def test_one_value_has_no_error(values):
    assert s.mean_error(values) is None
    assert s.share_error(0.5, len(values)) is None
    assert s.clustered_error(values, values) is None


def test_a_clustered_error_with_clusters_of_one_is_the_error_of_the_mean():
    values = [random.Random(1).random() for _ in range(30)]
    assert s.clustered_error(values, range(30)) == pytest.approx(s.mean_error(values), rel=1e-12)


def test_a_clustered_error_is_that_of_least_squares_on_a_constant():
    draw = random.Random(2)
    clusters = [i // 7 for i in range(61)]
    values = [draw.random() + 0.3 * (c % 3) for c in clusters]
    # The sandwich: (X'X)^-1 (sum over clusters of X'ee'X) (X'X)^-1 with X ones, and statsmodels' small-sample factor.
    x, e = np.ones((61, 1)), np.array(values) - np.mean(values)
    meat = sum(
        x[g].T @ np.outer(e[g], e[g]) @ x[g] for g in (np.flatnonzero(np.array(clusters) == c) for c in set(clusters))
    )
    count = len(set(clusters))
    bread = np.linalg.inv(x.T @ x)
    factor = count / (count - 1) * (61 - 1) / (61 - 1)
    assert s.clustered_error(values, clusters) == pytest.approx(math.sqrt((factor * bread @ meat @ bread)[0, 0]))
    assert s.clustered_error(values, clusters) > s.mean_error(values)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (1, 4), (3, 3), (7, 2), (10, 1)])
def test_mcnemar_is_the_count_of_all_coins(b, c):
    n = b + c
    as_far = sum(abs(2 * sum(coins) - n) >= abs(b - c) for coins in itertools.product((0, 1), repeat=n))
    assert s.mcnemar_p(b, c) == pytest.approx(float(Fraction(as_far, 2**n)), rel=1e-12)


@pytest.mark.parametrize(("b", "c"), [(40, 61), (612, 570), (0, 1000)])
def test_mcnemar_is_a_sum_of_binomials(b, c):
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    assert s.mcnemar_p(b, c) == pytest.approx(float(min(Fraction(2 * tail, 2 ** (b + c)), Fraction(1))), rel=1e-9)


def test_swaps_are_all_of_them():
    d = [0.3, -0.1, 0.0, 0.25, 0.4]
    as_far = [
        abs(sum(x * k for x, k in zip(d, signs, strict=True))) >= abs(sum(d)) - 1e-12
        for signs in itertools.product((1, -1), repeat=5)
    ]
    assert s.swaps_p(d) == pytest.approx(sum(as_far) / 32)
    assert s.swaps_p([0.0, 0.0]) == 1.0


def test_swaps_of_zeros_and_ones_are_mcnemar():
    d = [1.0, 1.0, -1.0, 0.0, 1.0, 1.0, 0.0]
    assert s.swaps_p(d) == pytest.approx(s.mcnemar_p(1, 4))


def test_a_paired_difference_has_the_error_of_its_differences():
    draw = random.Random(3)
    first = [draw.random() for _ in range(50)]
    second = [min(1, x + draw.random() / 5) for x in first]
    found = s.paired(first, second)
    d = np.subtract(second, first)
    assert found.value == pytest.approx(d.mean())
    assert found.error == pytest.approx(d.std(ddof=1) / math.sqrt(50))
    assert found.how == "paired"
    # var(B - A) = var A + var B - 2 cov: narrower than two runs that know nothing of each other
    alone = s.unpaired(np.mean(first), s.mean_error(first), np.mean(second), s.mean_error(second))
    assert found.error < alone.error
    covariance = np.cov(first, second)[0, 1] / 50
    assert found.error == pytest.approx(math.sqrt(alone.error**2 - 2 * covariance))


def test_normal_chances_are_areas_under_the_bell():
    x = np.linspace(0, 12, 400_001)
    bell = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    area = np.concatenate([[0], np.cumsum((bell[1:] + bell[:-1]) / 2)]) * (x[1] - x[0])
    for z in (0.0, 0.5, s.Z95, 3.0):
        assert s.normal_p(-z, 1.0) == pytest.approx(1 - 2 * np.interp(z, x, area), abs=1e-9)
    assert s.normal_p(s.Z95, 1.0) == pytest.approx(0.05)
    assert (s.normal_p(0, 0), s.normal_p(0.1, 0)) == (1.0, 0.0)


def test_holm_by_hand():
    found = s.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    assert found == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06), "d": 0.02, "e": None}
    assert s.holm({"a": 0.9, "b": 0.8})["b"] == 1.0


@pytest.mark.parametrize(
    ("first", "second", "higher", "word"),
    [
        ([0.0] * 12 + [1.0] * 8, [1.0] * 20, True, "better"),
        ([1.0] * 20, [0.0] * 12 + [1.0] * 8, True, "worse"),
        ([1.0] * 20, [0.0] * 12 + [1.0] * 8, False, "better"),
        ([0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0], True, "cannot tell"),
        ([0.5], [0.9], True, "cannot tell"),
    ],
)
def test_a_word(first, second, higher, word):
    assert s.paired(first, second, higher_is_better=higher).word == word


def test_a_word_after_several_tasks():
    one = s.Difference(0.1, 0.045, 0.026, "paired")
    assert one.word == "better"
    assert s.Difference(0.1, 0.045, 0.026, "paired", holm=0.13).word == "cannot tell"


def test_an_unknown_error_is_said():
    assert s.unpaired(0.5, None, 0.6, None).word == "cannot tell"
    one = s.unpaired(0.5, 0.01, 0.6, None)
    assert (one.how, one.error) == ("one_sided_error", 0.01)


def test_items_must_be_the_same():
    with pytest.raises(ValueError, match="same ones"):
        s.paired([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="clusters"):
        s.clustered_error([1.0], [])


def test_clusters_widen_a_paired_difference():
    first = [0.0] * 20
    second = [1.0] * 10 + [0.0] * 10
    alone, together = s.paired(first, second), s.paired(first, second, [i // 5 for i in range(20)])
    assert together.error > alone.error
    assert together.how == "clustered"

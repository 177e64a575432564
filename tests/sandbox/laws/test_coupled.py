"""The law of coupled terms: planted ones are found again, and the intervals hold what they say."""

import json
import math

import numpy as np
import pytest

from gangpao.sandbox.laws.coupled import fit_coupled
from gangpao.sandbox.laws.fit import Point

N = (9e3, 2.1e4, 3.6e4, 8e4)
D = (4e5, 8e5, 1.6e6, 3.2e6)


def planted(n, d, *, E=1.1, p=1.6, alpha=0.3, beta=0.4):
    return E + ((0.55 * (n / 3e4) ** -alpha) ** p + (0.5 * (d / 1e6) ** -beta) ** p) ** (1 / p)


def points(rng=None, noise=0.0, **law):
    shake = (lambda: 1.0) if rng is None else lambda: 1 + noise * rng.standard_normal()
    return [Point(N=n, D=d, loss=planted(n, d, **law) * shake()) for n in N for d in D]


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_planted_law_is_predicted_far_away(p):
    fit = fit_coupled(points(p=p))
    assert fit.predict(6e5, 2e7) == pytest.approx(planted(6e5, 2e7, p=p), rel=0.005)
    assert fit.best[5] == p
    low, high = fit.interval(6e5, 2e7)
    assert low < planted(6e5, 2e7, p=p) < high
    json.dumps(fit.json())


def test_what_is_known_of_the_floor_counts_where_the_points_do_not_tell():
    noisy = points(np.random.default_rng(0), 0.004)
    low, high = (fit_coupled(noisy, floor=(E, 0.05)) for E in (0.7, 1.2))
    assert low.predict(6e5, 2e7) < high.predict(6e5, 2e7)
    assert low.bounds("E")[1] < high.bounds("E")[1]


def test_it_does_not_depend_on_the_order_of_the_points():
    rows = points(np.random.default_rng(1), 0.003)
    one, other = fit_coupled(rows, floor=(1.1, 0.2)), fit_coupled(rows[::-1], floor=(1.1, 0.2))
    assert one.best == other.best
    assert np.array_equal(one.draws, other.draws)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="too few"):
        fit_coupled(points()[:5])
    with pytest.raises(ValueError, match="floor"):
        fit_coupled(points(), floor=(1.0, 0.0))


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(40):
        law = {
            "E": rng.uniform(0.8, 1.4),
            "p": rng.uniform(1, 2.2),
            "alpha": rng.uniform(0.22, 0.5),
            "beta": rng.uniform(0.22, 0.5),
        }
        low, high = fit_coupled(points(rng, 0.004, **law), floor=(1.1, 0.2)).interval(6e5, 2e7)
        held += low < planted(6e5, 2e7, **law) < high
    assert held >= 33


@pytest.mark.slow
def test_the_interval_of_a_plan_holds_when_the_runs_of_a_size_share_their_luck():
    """The quick sandbox's design: four sizes, three decays of one stable run each, two seeds; a run three times past them."""
    hits, total = 0, 60
    for seed in range(total):
        rng = np.random.default_rng(seed)
        E, p = rng.normal(0.45, 0.05), rng.choice([1.0, 1.3, 1.75, 2.5])
        alpha, beta = 0.33 * np.exp(0.4 * rng.standard_normal(2))

        def loss(N, D, E=E, p=p, alpha=alpha, beta=beta):
            size, data = math.log(0.1) - alpha * math.log(N / 4e4), math.log(0.1) - beta * math.log(D / 3e5)
            return E + math.exp(np.logaddexp(p * size, p * data) / p)

        points = []
        for N in (5968, 23_712, 79_824, 188_992):
            for luck in 0.009 * rng.standard_normal(2):
                noise = luck + 0.005 * rng.standard_normal(3)
                pairs = zip((149_504, 300_032, 600_064), noise, strict=True)
                points += [Point(N, D, loss(N, D) * (1 + e)) for D, e in pairs]
        low, high = fit_coupled(points, floor=(0.45, 0.05)).interval(47_392, 1_883_136)
        hits += low <= loss(47_392, 1_883_136) * (1 + 0.0103 * rng.standard_normal()) <= high
    assert hits >= 0.88 * total

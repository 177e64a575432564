"""Signs that a law's numbers come from its form: a floor at its bound, a best D / N that is not known, far away or not run."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from gangpao.sandbox.laws import doubts, fit
from gangpao.sandbox.laws.coupled import fit_coupled
from gangpao.sandbox.laws.scaling_law import Point, ScalingLaw
from gangpao.sandbox.plan import plan
from tests.sandbox.makers import numbers
from tests.sandbox.plan.test_plan import here, kept, laws, ready

__all__ = ["kept", "laws", "ready"]

SIZES, TOKENS = (2e5, 5e5, 1e6, 2.5e6), (5e6, 1e7, 2e7, 4e7)
GOOD = ScalingLaw(E=1.0, A=12.0, B=40.0, alpha=0.35, beta=0.4)


def fitted(law, noise=0.0005, sizes=SIZES, tokens=TOKENS):
    rng = np.random.default_rng(0)
    return fit.fit_scaling([
        Point(N, D, law.predict(N, D) * (1 + noise * rng.standard_normal())) for N in sizes for D in tokens
    ])  # fmt: skip


def words(reasons):
    said = [reason.text() for reason in reasons]
    for en, zh in said:
        assert numbers(en) == numbers(zh)
    return " ".join(en for en, _ in said)


def test_a_floor_at_its_bound_is_said():
    none = fitted(ScalingLaw(E=0.0, A=12.0, B=40.0, alpha=0.2, beta=0.25), noise=0.004)
    assert doubts.floor_at_bound(none) >= doubts.AT_BOUND
    assert re.search("E, the loss that no model gets below, is 0", words(doubts.of_law(none)))
    assert doubts.verdicts(none)[0].answer == "cannot tell"
    known = fitted(GOOD)
    assert doubts.floor_at_bound(known) == 0
    assert "no model gets below" not in words(doubts.of_law(known))
    assert doubts.verdicts(known)[0].answer == "yes"


def test_a_best_ratio_that_is_not_known_is_said():
    """As the quick sandbox has it: the interval goes from tens to millions."""
    vague = fitted(ScalingLaw(0.37, 2.8, 3.5, 0.47, 0.25), noise=0.02)
    _, (low, high) = doubts.ratio_of(vague, doubts.largest(vague.points))
    assert high > fit.VAGUE * low
    assert "do not tell the best D/N" in words(doubts.of_law(vague))
    assert doubts.verdicts(vague)[1].answer == "cannot tell"
    assert "do not tell the best D/N" not in words(doubts.of_law(fitted(GOOD)))


@pytest.mark.parametrize(("ratio", "far"), [(1.5, True), (2.5, False), (40, False), (1900, False), (1e7, True)])
def test_a_ratio_far_from_all_that_were_published_is_said(ratio, far):
    assert bool(doubts.far(ratio)) == far


def test_an_optimum_beyond_the_runs_is_said():
    wide = fitted(GOOD)
    C = doubts.largest(wide.points)
    N, D = wide.law.optimum(C)
    inside = SIZES[0] <= N <= SIZES[-1] and TOKENS[0] <= D <= TOKENS[-1]
    assert ("lies outside the runs" in words(doubts.of_law(wide))) != inside
    narrow = fitted(GOOD, sizes=[N / 9, N / 7, N / 5, N / 3], tokens=TOKENS)
    assert "lies outside the runs" in words(doubts.of_law(narrow))


def test_the_ratio_of_coupled_terms_is_that_of_the_lowest_loss():
    rng = np.random.default_rng(0)
    points = [Point(N, D, GOOD.predict(N, D) * (1 + 1e-3 * rng.standard_normal())) for N in SIZES for D in TOKENS]
    law, C = fit_coupled(points, floor=(1.0, 0.05)), 1e15
    sizes = np.geomspace(1e4, 1e9, 4001)
    for i in (0, 100, 999):
        one = replace(law, draws=law.draws[[i]])
        losses = [one.predict(N, C / 6 / N) for N in sizes]
        N = sizes[int(np.argmin(losses))]
        assert math.log(one.ratios(C)[0]) == pytest.approx(math.log(C / 6 / N / N), abs=0.02)


def test_a_plan_says_where_only_a_law_speaks(laws, ready):
    made = plan.make_plan("1.5e12 flops", laws, ready, here=here(laws, ready), force=True)
    best = min(p.loss for p in laws.scaling.points)
    said = words(doubts.of_choice(laws.scaling, made.choice.N, made.choice.D, made.choice.loss))
    assert (made.choice.loss < best) == ("is below the best run that was measured" in said)
    below = words(doubts.of_choice(laws.scaling, made.choice.N, made.choice.D, best - 0.01))
    assert f"The predicted {best - 0.01:.4f} is below the best run that was measured, {best:.4f}" in below
    assert "is below the best" not in words(doubts.of_choice(laws.scaling, made.choice.N, made.choice.D, best + 0.01))
    assert "far from those that were run" in words(doubts.of_choice(laws.scaling, 1e3, 1e9, 2.0))
    for note in doubts.of_choice(laws.scaling, made.choice.N, made.choice.D, made.choice.loss):
        assert note.text() in made.notes

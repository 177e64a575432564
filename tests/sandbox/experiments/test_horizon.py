"""How the best rate moves with tokens, against a planted law; and what a plan makes of it."""

import json
import math

import pytest

from gangpao.sandbox.experiments import horizon
from gangpao.sandbox.experiments.horizon import exponent_of
from tests.sandbox.makers import Trials, make_lab, rows, said, same_numbers

RATES = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)
TOKENS = (262_144, 524_288, 1_048_576, 2_097_152, 4_194_304)


def planted(exponent):
    def loss(spec):
        best = 0.01 * (spec.tokens / 1_048_576) ** -exponent
        t = math.log(spec.lr / best)
        return 1.0 + 40 * spec.tokens**-0.3 + 0.02 * t * t

    return loss


def make(tmp_path, **changes):
    return make_lab(tmp_path, horizon={"rates": RATES, "tokens": TOKENS, "seeds": (0, 1)} | changes)


@pytest.mark.parametrize("exponent", [0.3, 0.0, -0.2])
def test_the_exponent_is_recovered(tmp_path, exponent):
    out = horizon.run(make(tmp_path), Trials(planted(exponent), noise=0.0005))
    law = json.loads(json.dumps(out.facts, allow_nan=False))["law"]
    assert law["value"] == pytest.approx(exponent, abs=0.05)
    assert law["low"] <= exponent <= law["high"]
    assert law["rate"] * (law["at"] / 1_048_576) ** law["value"] == pytest.approx(0.01, rel=0.1)
    answers = {v.asks: v.answer for v in out.verdicts}
    assert answers["stays"] == ("yes" if exponent == 0 else "no")
    assert same_numbers(out)
    assert [row["D"] for row in rows(out)] == list(TOKENS)


def test_the_interval_covers_as_often_as_it_says(tmp_path):
    covered = 0
    for salt in range(40):
        law = horizon.run(make(tmp_path), Trials(planted(0.3), noise=0.004, salt=str(salt))).facts["law"]
        covered += law["low"] <= 0.3 <= law["high"]
    assert covered >= 36


def test_best_rates_at_the_edge_are_left_out_and_said(tmp_path):
    out = horizon.run(make(tmp_path, rates=RATES[:6]), Trials(planted(0.3), noise=0.0005))
    assert "the best rate is at the edge of the grid: add" in said(out)
    assert out.facts["law"]["value"] == pytest.approx(0.3, abs=0.1)  # of the longer runs, whose best rates are inside
    few = horizon.run(make(tmp_path, rates=(0.1, 0.2, 0.4)), Trials(planted(0.3), noise=0.0005))
    assert few.facts["law"] is None
    assert "no law can be told" in said(few)
    assert [v.answer for v in few.verdicts][1] == "cannot tell"


def test_two_points_are_no_law():
    assert exponent_of({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (100_000, 200_000)}, "2 token counts"),
        ({"rates": (0.01, 0.02)}, "2 rates"),
        ({"tokens": (262_144, 262_200, 524_288)}, "the same whole steps"),
    ],
)
def test_what_makes_no_line_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        horizon.run(make(tmp_path, **changes), Trials(planted(0.3)))

"""Tokens that two optimizers need for the same loss, against a planted ratio."""

import json
import math

import numpy as np
import pytest

from gangpao.sandbox.experiments import optim
from gangpao.sandbox.experiments.text import page as pages
from tests.sandbox.makers import Trials, make_lab, rows, said, same_numbers

RATES = (0.005, 0.0071, 0.01, 0.0141, 0.02)
TOKENS = (409_600, 819_200, 1_638_400, 3_276_800)
SAVES = 0.6  # Muon needs this share of the tokens


def loss(spec):
    muon = spec.optimizer == "muon"
    D = spec.tokens / (SAVES if muon else 1.0)
    t = math.log(spec.lr / (0.014 if muon else 0.0085))
    return 1.0 + 40 * D**-0.3 + 0.02 * t * t


def seconds(spec):
    return spec.tokens / 1e4 * (1.3 if spec.optimizer == "muon" else 1.0) * (1 + 0.01 * (spec.seed - 0.5))


def make(tmp_path, **changes):
    return make_lab(tmp_path, optim={"rates": RATES, "tokens": TOKENS, "seeds": (0, 1)} | changes)


def test_the_ratio_of_tokens_and_seconds_is_recovered(tmp_path):
    out = optim.run(make(tmp_path), Trials(loss, noise=0.001, busy=seconds))
    facts = json.loads(json.dumps(out.facts, allow_nan=False))
    tokens, time = facts["tokens"]["muon"], facts["seconds"]["muon"]
    assert tokens["low"] <= SAVES <= tokens["high"]
    assert tokens["high"] - tokens["low"] < 0.1
    assert time["low"] <= 1.3 * SAVES <= time["high"]
    assert time["value"] == pytest.approx(1.3 * tokens["value"], rel=0.01)
    assert said(out).count("; less.") == 2  # tokens, seconds
    assert same_numbers(out)
    for D in TOKENS:
        row = next(r for r in rows(out) if (r["optimizer"], r["D"]) == ("Muon", D))
        exact = 40 * D**-0.3 * (SAVES**0.3 - 1)
        assert abs(row["difference"] - exact) <= row["noise"]
        assert row["lr"] == pytest.approx(0.014, rel=0.25)


def test_the_interval_covers_as_often_as_it_says(tmp_path):
    covered = 0
    for salt in range(40):
        found = optim.run(make(tmp_path), Trials(loss, noise=0.02, salt=str(salt))).facts["tokens"]["muon"]
        covered += found["low"] <= SAVES <= found["high"]
    assert covered >= 36


def test_the_same_optimizer_under_two_names_makes_no_difference(tmp_path):
    def same(spec):
        return loss(spec.model_copy(update={"optimizer": "adamw"}))

    out = optim.run(make(tmp_path), Trials(same))
    assert out.facts["tokens"]["muon"]["value"] == pytest.approx(1)
    calls = [said(optim.run(make(tmp_path), Trials(same, noise=0.01, salt=s))) for s in "abcdefghij"]
    assert sum("which needs less cannot be told" in text for text in calls) >= 8


def test_without_a_common_loss_there_is_a_bound_and_no_ratio(tmp_path):
    def far(spec):
        return loss(spec) - (1.0 if spec.optimizer == "muon" else 0.0)

    out = optim.run(make(tmp_path), Trials(far, noise=0.001))
    tokens = out.facts["tokens"]["muon"]
    assert tokens["value"] is None
    assert tokens["bound"] == TOKENS[0] / TOKENS[-1]
    assert "needs less than 0.125 times the tokens" in said(out)
    assert "so that the curves overlap" in said(out)
    assert same_numbers(out)
    other = optim.run(make(tmp_path, optimizers=("muon", "adamw")), Trials(far))
    assert other.facts["tokens"]["adamw"]["bound"] == 8
    assert "needs more than 8 times" in said(other)


def test_reading_across_is_exact_on_lines_in_log_tokens():
    a = optim._Curve("adamw", np.array([1e5, 1e6]), np.array([3.0, 2.0]), np.array([1.0]))
    b = optim._Curve("muon", np.array([5e4, 5e5]), np.array([3.0, 2.0]), np.array([3.0]))
    tokens, time = optim.compare(a, b, None)
    assert (tokens.value, tokens.ends) == (pytest.approx(0.5), pytest.approx((0.5, 0.5)))
    assert time.value == pytest.approx(1.5)
    assert tokens.losses == (3.0, 2.0)
    # A curve that rises at its end still needs the tokens at which it first was there.
    up = optim._Curve("muon", np.array([5e4, 5e5, 5e6]), np.array([3.0, 2.0, 2.5]), np.array([3.0]))
    assert optim.compare(a, up, 0.0)[0].value == pytest.approx(0.5)
    back, _ = optim.compare(b, a, 0.01)
    assert back.value == pytest.approx(2)
    assert back.low < 2 < back.high


def test_one_seed_has_no_interval(tmp_path):
    out = optim.run(make(tmp_path, seeds=(0,)), Trials(loss, noise=0.001, busy=seconds))
    found = out.facts["tokens"]["muon"]
    assert found["value"] == pytest.approx(SAVES, rel=0.1)
    assert (found["low"], found["high"], out.facts["seconds"]["muon"]["low"]) == (None, None, None)
    assert "which needs less cannot be told" in said(out)
    assert "optim.seeds two values" in said(out)
    assert same_numbers(out)


def test_an_edge_is_said(tmp_path):
    out = optim.run(make(tmp_path, rates=RATES[:4]), Trials(loss, noise=0.0001))
    where = " / ".join(f"{D:,}" for D in TOKENS)
    assert f"Muon at {where} tokens: the best rate is at the edge of the grid" in said(out)
    assert f"add {RATES[3] ** 2 / RATES[2]:.2g} to optim.rates" in said(out)
    assert set(out.facts["optimum"]["muon"].values()) == {None}
    assert list(out.facts["optimum"]["adamw"].values()) == pytest.approx([0.0085] * 4, rel=0.1)
    assert "; less." in said(out)  # Muon, which is better anyway, would only do better still
    back = optim.run(make(tmp_path, rates=RATES[:4], optimizers=("muon", "adamw")), Trials(loss, noise=0.0001))
    assert "; more." in said(back)
    low = optim.run(make(tmp_path, rates=RATES[2:]), Trials(loss, noise=0.0001))
    assert "which needs less cannot be told, as AdamW may do better at the rates to add" in said(low)
    assert same_numbers(low)


def test_diverged_trials_are_listed_and_missing_points_are_left_out(tmp_path):
    def end(spec):
        if spec.optimizer == "muon" and (spec.tokens == TOKENS[1] or spec.lr == RATES[-1]):
            return "diverged", "nan"
        return None

    out = optim.run(make(tmp_path), Trials(loss, noise=0.0005, end=end))
    assert len(out.left_out) == 2 * (len(RATES) + len(TOKENS) - 1)
    assert [r["D"] for r in rows(out) if r["optimizer"] == "Muon"] == [D for D in TOKENS if TOKENS[1] != D]
    assert f"Muon at {TOKENS[1]:,} tokens: too few trials" in said(out)
    found = out.facts["tokens"]["muon"]
    assert found["value"] == pytest.approx(SAVES, rel=0.1)
    nothing = optim.run(make(tmp_path), Trials(loss, end=lambda q: ("diverged", "nan")))
    assert "cannot be compared" in said(nothing)
    pages.picture(nothing.record(), "en")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ("muon",)}, "1 optimizers"), ({"tokens": (409_600,)}, "1 token counts"),
        ({"rates": (0.01,)}, "1 rates"),
        ({"tokens": (409_600, 409_700)}, "the same whole steps"),
    ],
)  # fmt: skip
def test_impossible_grids_are_refused(tmp_path, changes, message):
    submit = Trials(loss)
    with pytest.raises(ValueError, match=message):
        optim.run(make(tmp_path, **changes), submit)
    assert submit.calls == 0


def test_everything_is_written(tmp_path):
    out = optim.run(make(tmp_path), Trials(loss, noise=0.0005, busy=seconds))
    pages.write(out, tmp_path / "optim")
    assert len(list((tmp_path / "optim").iterdir())) == 5

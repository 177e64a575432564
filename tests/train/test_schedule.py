"""Schedules: the paper's formula, the ends of every line, and a branch that is the run it branched from."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gangpao.train.config import TrainConfig
from gangpao.train.schedule import Schedule, cosine, half_life_to, linear, wsd, wsd_linear

KINDS = ["wsd", "wsd_linear", "cosine", "linear", "constant"]


def run(*stages, **schedule):
    return TrainConfig.model_validate(
        {"data": "x", "stages": stages, "schedule": schedule, "optimizer": {"lr": 0.01}, "batch_tokens": 512}
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 1 / 2000), (1000, 0.5), (2000, 1.0), (2001, 1.0), (250_000, 1.0),  # warmup W = 2000, decay from T = 250,000
        (255_000, 0.5), (260_000, 0.25), (252_500, math.sqrt(0.5)), (275_000, 1 / 32),  # T_half = 5000 steps
    ],
)  # fmt: skip
def test_wsd_is_the_papers_formula(step, expected):
    assert wsd(step, warmup=2000, decay_start=250_000, half_life=5000) == pytest.approx(expected, rel=1e-12)


def test_ends_of_the_lines():
    assert wsd_linear(100, warmup=5, decay_start=80, total=100, final=0.1) == pytest.approx(0.1)
    assert wsd_linear(90, warmup=5, decay_start=80, total=100, final=0.1) == pytest.approx(0.55)
    assert cosine(100, warmup=10, total=100, final=0.1) == pytest.approx(0.1)
    assert cosine(55, warmup=10, total=100, final=0.1) == pytest.approx(0.55)
    assert linear(55, warmup=10, total=100, final=0.0) == pytest.approx(0.5)
    assert wsd(40 + 30, warmup=1, decay_start=40, half_life=half_life_to(0.07, 30)) == pytest.approx(0.07)


@given(
    kind=st.sampled_from(KINDS), warmup=st.integers(0, 30), stable=st.integers(0, 60), decay=st.integers(1, 60),
    final=st.floats(0.01, 0.99), half_life=st.floats(0.5, 100),
)  # fmt: skip
def test_every_schedule_rises_once_falls_once_and_stays_in_bounds(kind, warmup, stable, decay, final, half_life):
    start = warmup + stable
    s = Schedule(kind, 1.0, start + decay, warmup, start, half_life, final)
    curve = [s.factor(step) for step in range(1, s.total + 1)]
    assert all(0 < f <= 1 for f in curve)
    assert all(b >= a for a, b in itertools.pairwise(curve[:warmup]))
    assert all(b <= a for a, b in itertools.pairwise(curve[max(warmup - 1, 0) :]))
    if warmup or (stable and kind.startswith("wsd")) or kind == "constant":
        assert max(curve) == 1.0


@pytest.mark.parametrize("kind", ["wsd", "wsd_linear"])
def test_a_branch_decays_as_the_whole_run_would(kind):
    whole = run(
        {"name": "stable", "steps": 70}, {"name": "anneal", "steps": 30, "decay": True}, kind=kind, warmup_steps=7
    )
    branch = run({"name": "anneal", "steps": 30, "decay": True}, kind=kind, warmup_steps=7)
    one, two = whole.schedule_from(), branch.schedule_from(70)
    assert [one.learning_rate(s) for s in range(71, 101)] == [two.learning_rate(s) for s in range(71, 101)]
    assert one.learning_rate(70) == 0.01
    assert one.learning_rate(100) == pytest.approx(0.001)


def test_tokens_become_whole_steps_and_stages_are_checked():
    assert run({"name": "a", "tokens": 513}).stage_steps() == [2]
    for stages, message in [
        ([{"name": "a"}], "either steps or tokens"),
        ([{"name": "a", "steps": 1}, {"name": "a", "steps": 1}], "different names"),
        ([{"name": "a", "steps": 1, "decay": True}, {"name": "b", "steps": 1}], "rise again"),
        ([{"name": "a", "steps": 1, "mixture": {"x": 0.0}}], "not all zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(*stages)
    with pytest.raises(ValueError, match="warmup_steps 5 is more than the 4 steps"):
        run({"name": "a", "steps": 5}, kind="cosine", warmup_steps=5).schedule_from()

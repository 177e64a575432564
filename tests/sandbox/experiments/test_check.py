"""The coordinate check passes rules that transfer, over what they claim, and fails those that do not, saying what moved and how."""

import json
import math

import numpy as np
import pytest
import torch

from gangpao.sandbox.experiments import check
from gangpao.sandbox.experiments.check import COORDINATES, CheckResult, coordinate_check
from gangpao.sandbox.experiments.text.check import draw, markdown, verdict
from gangpao.sandbox.trials.random_ids import made_up
from gangpao.sandbox.trials.transfer import RULES, Law, Multipliers

WIDTHS = (64, 128, 256, 512)


def measure(rule, **changes):
    return coordinate_check(rule, **{"widths": WIDTHS, "layers": 2, "steps": 2, "batch_rows": 2, **changes})


def planted(kind="hidden", **laws):
    """MiniCPM's rule with other laws for one kind."""
    rule = RULES["minicpm"]
    kinds = {**rule.kinds, kind: rule.kinds[kind].model_copy(update=laws)}
    return rule.model_copy(update={"name": "planted", "kinds": kinds})


def failed(result):
    return {(s.coordinate, s.quantity) for s in result.failures}


@pytest.fixture(scope="module")
def right():
    return measure("minicpm")


@pytest.fixture(scope="module")
def wrong():
    return measure(planted(lr=Law(base=1.0)))


def test_what_transfers_over_width_passes(right):
    assert right.ok, markdown(right)
    other = measure("completep")
    assert other.ok, markdown(other)
    assert verdict(right) == "minicpm passes: nothing grows or shrinks with width beyond the tolerance."
    flat = [s for s in right.slopes if s.coordinate != "logits" and s.quantity == "change"]
    assert max(abs(s.slope) for s in flat) < 0.08  # half of the tolerance is left


def test_a_learning_rate_that_ignores_width_fails(right, wrong):
    """And the check says where: everything behind a hidden matrix grows, and nothing was wrong at the start."""
    assert not wrong.ok
    assert failed(wrong) == {(c, "change") for c in ("attention", "mlp", "stream", "final", "answer")}
    assert all(s.slope > 0.3 for s in wrong.failures)
    assert "change of MLP output grows like width^0." in verdict(wrong)
    assert "MLP 输出的变化按 width^0." in verdict(wrong, "zh")
    values = {(s.coordinate, s.slope) for s in right.slopes if s.quantity == "value"}
    assert values == {(s.coordinate, s.slope) for s in wrong.slopes if s.quantity == "value"}


def test_half_an_exponent_is_seen_both_ways():
    up = measure(planted(lr=Law(base=1.0, width=-0.5)), seeds=(0,))
    down = measure(planted(lr=Law(base=1.0, width=-1.5)), seeds=(0,))
    assert ("mlp", "change") in failed(up)
    assert all(s.slope > 0 for s in up.failures)
    assert ("mlp", "change") in failed(down)
    assert all(s.slope < 0 for s in down.failures)
    assert "shrinks like width^-0." in verdict(down)


def test_wrong_first_values_and_a_wrong_multiplier_fail():
    small = {"widths": (64, 128, 256), "steps": 1, "seeds": (0,)}
    std = measure(planted(std=Law(base=0.1)), **small)
    assert {("attention", "value"), ("mlp", "value")} <= failed(std)
    rule = RULES["minicpm"]
    loud = rule.model_copy(
        update={"multipliers": Multipliers(embedding=Law(base=12.0), residual=rule.multipliers.residual)}
    )
    assert failed(measure(loud, **small)) == {(c, q) for c in ("answer", "logits") for q in ("value", "change")}
    embedding = measure(planted("embedding", std=Law(base=0.1), lr=Law(base=1.0, width=0.5)), **small)
    assert ("embedding", "change") in failed(embedding)


@pytest.mark.parametrize("rule", ["standard", "standard-embedding"])
def test_standard_does_not_transfer(rule):
    result = measure(rule, widths=(64, 128, 256), seeds=(0,))
    assert {("mlp", "value"), ("mlp", "change"), ("answer", "change")} <= failed(result)
    assert (("embedding", "change") in failed(result)) == (rule == "standard-embedding")


def test_depth_is_what_completep_adds():
    """Divided by depth, changes stay as they are; divided by its root they grow. Exactly what each rule claims."""
    over = {"widths": (), "layers_list": (4, 8, 16, 32), "width": 64, "seeds": (0,), "batch_rows": 4}
    assert RULES["completep"].axes == ("width", "layers")
    assert RULES["minicpm"].axes == ("width",)
    result = measure("completep", **over)
    assert result.ok, markdown(result)
    root = measure("minicpm", **over)
    assert ("final", "change") in failed(root)
    assert "grows like layers^0." in verdict(root)


def test_slopes_are_those_of_the_points(right):
    """Against numpy's fit, and exact where the RMS is known: an embedding's first values and Adam's first step."""
    points = {(p.seed, p.size, p.step, p.coordinate): p.rms for p in right.points}
    for slope in right.slopes:
        fits = [
            np.polyfit(np.log(WIDTHS), np.log([points[seed, w, slope.step, slope.coordinate] for w in WIDTHS]), 1)[0]
            for seed in (0, 1)
        ]
        assert slope.slope == pytest.approx(np.mean(fits), abs=1e-9)
        assert slope.error == pytest.approx(abs(fits[0] - fits[1]) / 2, abs=1e-9)
    for seed in (0, 1):
        for width in WIDTHS:
            assert points[seed, width, 0, "embedding"] == pytest.approx(12 * 0.1, rel=0.15)
            assert points[seed, width, 0, "final"] == pytest.approx(1.0, rel=1e-3)
            assert points[seed, width, 1, "embedding"] == pytest.approx(12 * check.LR, rel=0.01)


def test_the_same_again_and_one_seed_has_no_error():
    small = {"widths": (32, 64), "seeds": (3,), "steps": 1}
    first = measure("minicpm", **small)
    assert first == measure("minicpm", **small)
    assert {s.error for s in first.slopes} == {None}
    lines = []
    measure("minicpm", **small, progress=lines.append)
    assert lines == ["minicpm: width 32, seed 3", "minicpm: width 64, seed 3"]


def test_it_comes_back_from_json_and_is_told(right, wrong):
    for result in (right, wrong):
        text = json.dumps(result.json(), allow_nan=False)
        assert json.loads(text)["answer"] == result.answer
        assert CheckResult.read(json.loads(text)) == result
    english, chinese = markdown(wrong), markdown(wrong, "zh")
    assert english.count("**") > 6 > markdown(right).count("**")
    rows = [line for line in english.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(COORDINATES)
    assert {row.count("|") for row in rows} == {5}
    assert "未通过" in chinese
    assert len(chinese.splitlines()) == len(english.splitlines())


def test_it_is_drawn(wrong, tmp_path):
    figure_module = pytest.importorskip("matplotlib.figure")
    draw(wrong, tmp_path / "new" / "check.png")
    assert (tmp_path / "new" / "check.png").read_bytes().startswith(b"\x89PNG")
    figure = figure_module.Figure()
    draw(wrong, figure)
    titles = {axes.get_title(): axes.title.get_color() for axes in figure.axes}
    assert (titles["MLP output"], titles["embedding output"]) == ("tab:red", "black")
    assert len(figure.axes[1].lines) == 3
    chinese = figure_module.Figure()
    draw(wrong, chinese, "zh")  # in English where no font has the signs; a warning would be an error
    draw(measure("minicpm", widths=(32, 64), seeds=(0,), steps=1, lr=1e30), tmp_path / "exploded.png")


def test_what_explodes_fails_and_is_no_number():
    """A rate so high that values overflow: no slope, so no pass, and the file is still JSON."""
    result = measure("standard", widths=(32, 64), seeds=(0,), lr=1e30, steps=2)
    assert not result.ok
    assert any(math.isnan(s.slope) for s in result.failures)
    assert "is not a finite number above zero" in verdict(result)
    text = json.dumps(result.json(), allow_nan=False)
    assert verdict(CheckResult.read(json.loads(text))) == verdict(result)
    assert "nan" in markdown(result)


def test_real_ids_and_muon():
    ids = np.arange(2 * 64 + 1, dtype=np.uint16) % 50
    small = {"widths": (32, 64), "seeds": (0,), "steps": 1, "vocab_size": 50}
    real = measure("minicpm", ids=ids, **small)
    assert real == measure("minicpm", ids=np.concatenate([ids, ids]), **small)  # the first ones are used
    assert real.points != measure("minicpm", ids=ids[::-1], **small).points
    muon = measure("minicpm", ids=ids, optimizer="muon", **small)
    assert [p.rms for p in muon.points if p.quantity == "value"] == [
        p.rms for p in real.points if p.quantity == "value"
    ]
    assert muon.points != real.points


def test_nothing_is_left_behind():
    """No hook stays and no seed of torch moves."""
    state = torch.get_rng_state()
    measure("minicpm", widths=(32, 64), seeds=(0,), steps=1)
    assert torch.equal(state, torch.get_rng_state())


def test_made_up_ids_have_structure():
    ids = made_up(20_000, 64, 0)
    assert (ids.min(), ids.max()) == (0, 63)
    pairs = np.zeros((64, 64))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    p = pairs / pairs.sum()
    single = p.sum(1)
    known = p > 0
    entropy = -(p[known] * np.log(p[known])).sum() + (single * np.log(np.where(single, single, 1))).sum()
    assert entropy < 0.6 * math.log(64)
    assert not np.array_equal(ids, made_up(20_000, 64, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "magic"}, "there are minicpm, standard"),
        ({"widths": (64,)}, "width 64: a slope needs two sizes or more"),
        ({"widths": (64, 64)}, "a slope needs two sizes"),
        ({"widths": (64, 80)}, "width 80 is not a multiple of head_dim 32"),
        ({"widths": (0, 64)}, "width 0 is not a multiple of head_dim"),
        ({"widths": ()}, "give widths, or layers_list"),
        ({"layers_list": (1, 2)}, "give widths, or layers_list"),
        ({"widths": (), "layers_list": (1, 2)}, "layers_list needs the width"),
        ({"widths": (), "layers_list": (0, 2), "width": 64}, "layers 0: it must be 1 or more"),
        ({"widths": (), "layers_list": (1, 2), "width": 65}, "width 65 is not a multiple"),
        ({"ids": np.zeros(100)}, "100 ids are too few: 2 rows of 64 and the id after them are 129"),
        ({"ids": np.full(129, 256)}, "they must lie below vocab_size 256"),
        ({"ids": np.full(129, -1)}, "ids reach from -1"),
        ({"steps": 0}, "needs a step"),
        ({"seeds": ()}, "a seed"),
    ],
)
def test_mistakes_are_said(change, message):
    with pytest.raises(ValueError, match=message):
        measure(change.pop("rule", "minicpm"), **change)

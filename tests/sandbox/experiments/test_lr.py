"""The best rate across sizes against planted optima that move, stay, hide in noise or lie beyond the grid."""

import json
import math

import pytest

from gangpao.sandbox.experiments import lr
from gangpao.sandbox.experiments.text import page as pages
from gangpao.sandbox.trials.config import Size
from tests.sandbox.makers import Trials, make_lab, rows, said, same_numbers

RATES = (0.0025, 0.0035, 0.005, 0.007, 0.01, 0.014, 0.02, 0.028, 0.04)
HIGHER = tuple(r / 10 for r in RATES)
WIDTHS = (64, 128, 256)


def best_of(spec):
    """minicpm stays at 0.01 over widths, and falls as 1 / sqrt(layers) over depths; standard falls as 1 / width."""
    if spec.rule.startswith("standard"):
        return 0.002 * 64 / spec.width
    return 0.01 * math.sqrt(4 / spec.layers)


def loss(spec):
    t = math.log(spec.lr / best_of(spec))
    return 1.5 + 20 / spec.width + 0.06 * t * t + 0.012 * t**3


def make(tmp_path, **changes):
    table = {
        "widths": WIDTHS,
        "rates": RATES,
        "standard_rates": HIGHER,
        "rules": ("minicpm", "standard"),
        "seeds": (0, 1, 2),
    }
    return make_lab(tmp_path, lr=table | changes, common={"width": 64, "layers": 4})


def shift(out, rule, axis="width"):
    return next(s for s in out.facts["shifts"] if (s["rule"], s["axis"]) == (rule, axis))


def test_a_rule_that_keeps_its_rate_is_told_from_one_that_does_not(tmp_path):
    submit = Trials(loss, noise=0.0005)
    out = lr.run(make(tmp_path), submit)
    facts = json.loads(json.dumps(out.facts, allow_nan=False))
    assert facts["noise"] == {rule: pytest.approx(0.0005, rel=0.35) for rule in ("minicpm", "standard")}
    keeps, moves = shift(out, "minicpm"), shift(out, "standard")
    assert (keeps["answer"], moves["answer"]) == ("yes", "no")
    assert keeps["step"] == pytest.approx(0.005 / 0.0035)
    assert keeps["low"] <= 1 <= keeps["high"]
    assert moves["low"] <= 64 / 256 <= moves["high"]
    assert facts["optimum"] == {"minicpm": pytest.approx(0.01, rel=0.06), "standard": pytest.approx(0.0005, rel=0.06)}
    assert same_numbers(out)
    assert "minicpm across widths" in said(out)
    assert {q.lr for q in submit.specs if q.rule == "standard"} == set(HIGHER)


def test_the_table_says_what_the_small_models_rate_costs(tmp_path):
    out = lr.run(make(tmp_path), Trials(loss))
    table = {(r["rule"], r["size"]): r for r in rows(out)}
    assert len(table) == 6
    assert table["minicpm", "256x4"]["lost"] == pytest.approx(0, abs=2e-4)
    t = math.log(4)  # the small one's best is four times the large one's
    assert table["standard", "256x4"]["lost"] == pytest.approx(0.06 * t * t + 0.012 * t**3, rel=0.1)
    assert table["standard", "64x4"]["lost"] == 0
    for (rule, _), row in table.items():
        assert row["lr"] == pytest.approx(0.01 if rule == "minicpm" else row["lr"], rel=0.05)


@pytest.mark.parametrize("salt", range(8))
def test_the_interval_of_a_shift_covers_the_plant(tmp_path, salt):
    out = lr.run(make(tmp_path, widths=(64, 96)), Trials(loss, noise=0.004, salt=str(salt)))
    covered = [s["low"] <= 64 / 96 <= (s["high"] or math.inf) for s in out.facts["shifts"] if s["rule"] == "standard"]
    kept = [s["low"] <= 1 <= (s["high"] or math.inf) for s in out.facts["shifts"] if s["rule"] == "minicpm"]
    assert covered == kept == [True]


def test_depths_are_a_series_of_their_own(tmp_path):
    submit = Trials(loss, noise=0.0003)
    out = lr.run(make(tmp_path, layers=(2, 4, 16), rules=("minicpm",)), submit)
    assert shift(out, "minicpm", "depth")["answer"] == "no"
    assert shift(out, "minicpm", "depth")["factor"] == pytest.approx(math.sqrt(2 / 16), rel=0.08)
    assert shift(out, "minicpm")["answer"] == "yes"
    assert [r["size"] for r in rows(out)] == ["64x4", "128x4", "256x4", "64x2", "64x4", "64x16"]
    assert len(submit.specs) == len({q.model_dump_json() for q in submit.specs}) == 5 * len(RATES) * 3
    assert out.facts["optimum"]["minicpm"] == pytest.approx(0.01, rel=0.06)  # of the widths


def test_an_edge_is_said_with_the_rate_to_add(tmp_path):
    lab = make(tmp_path, rates=RATES[5:], rules=("minicpm",))  # all above 0.01
    out = lr.run(lab, Trials(loss, noise=0.0002))
    assert shift(out, "minicpm") == {
        **shift(out, "minicpm"), "answer": "cannot tell", "low": 0.0, "high": None,
    }  # fmt: skip
    assert f"add {RATES[5] ** 2 / RATES[6]:.2g} to lr.rates" in said(out)
    assert "cannot be told" in said(out)
    assert out.facts["optimum"]["minicpm"] is None
    assert same_numbers(out)


def test_an_edge_may_still_say_no(tmp_path):
    """The large model's best is below the grid, the small one's far inside it."""
    out = lr.run(make(tmp_path, standard_rates=HIGHER[3:], rules=("standard",)), Trials(loss, noise=0.0002))
    found = shift(out, "standard")
    assert (found["answer"], found["low"]) == ("no", 0.0)
    assert found["high"] < 0.6
    assert "to lr.standard_rates" in said(out)


def test_a_rate_that_diverges_is_a_wall_and_no_edge(tmp_path):
    def end(spec):
        return ("diverged", "loss nan") if spec.lr > 0.011 and spec.width == 256 and spec.seed == 1 else None

    submit = Trials(lambda q: loss(q.model_copy(update={"lr": q.lr * 0.6})), end=end, noise=0.0002)
    out = lr.run(make(tmp_path, rules=("minicpm",)), submit)
    assert len(out.left_out) == 4  # rates above 0.011, one seed each
    assert {(one.values["size"], one.state, one.reason.text().en) for one in out.left_out} == {
        ("256x4", "diverged", "loss nan")
    }
    assert rows(out)[-1]["diverged"] == 0.014
    assert rows(out)[-1]["lost"] == "inf"  # the small one is best at 0.0167
    assert "makes the large one diverge" in said(out)
    assert "edge" not in said(out)
    pages.picture(out.record(), "en")


def test_one_seed_has_an_interval_but_no_noise(tmp_path):
    out = lr.run(make(tmp_path, seeds=(0,)), Trials(loss, noise=0.0005))
    assert out.facts["noise"] == {}
    assert shift(out, "standard")["answer"] == "no"
    assert "lr.seeds two values" in said(out)
    assert same_numbers(out)


def test_noise_that_hides_the_bottom_does_not_give_a_sure_answer(tmp_path):
    answers = [
        s["answer"]
        for salt in "abcdef"
        for s in lr.run(make(tmp_path, rules=("minicpm",)), Trials(loss, noise=0.1, salt=salt)).facts["shifts"]
    ]
    assert set(answers) == {"cannot tell"}


def test_pruned_and_unjudged_trials_are_no_walls(tmp_path):
    out = lr.run(
        make(tmp_path, rules=("minicpm",)), Trials(loss, end=lambda q: ("pruned", "worse") if q.lr == 0.02 else None)
    )
    assert {s["answer"] for s in out.facts["shifts"]} == {"yes"}
    assert all(0.02 not in s["x"] for s in out.facts["sweeps"])
    assert {row["diverged"] for row in rows(out)} == {None}
    assert len(out.left_out) == 9


def test_all_diverged_says_so(tmp_path):
    out = lr.run(make(tmp_path), Trials(loss, end=lambda q: ("diverged", "nan")))
    assert {s["answer"] for s in out.facts["shifts"]} == {"cannot tell"}
    assert "too few trials ended well" in said(out)
    json.dumps(out.facts, allow_nan=False)
    pages.picture(out.record(), "zh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (64,)}, "1 widths and 0 depths"), ({"rates": (0.01, 0.02)}, "rates: 2 different"),
        ({"standard_rates": (0.01,)}, "lr.standard_rates: 1 different"),
    ],
)  # fmt: skip
def test_impossible_grids_are_refused(tmp_path, changes, message):
    submit = Trials(loss)
    with pytest.raises(ValueError, match=message):
        lr.run(make(tmp_path, **changes), submit)
    assert submit.calls == 0


def test_everything_is_written(tmp_path):
    out = lr.run(make(tmp_path, layers=(2, 8)), Trials(loss, noise=0.0005))
    pages.write(out, tmp_path / "lr")
    assert len(list((tmp_path / "lr").iterdir())) == 5
    assert Size(width=64, layers=2) in {Size(width=r.spec.width, layers=r.spec.layers) for r in out.results}

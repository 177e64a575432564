"""The schedule experiment against planted effects of decay share, shape and cosine rate."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from gangpao.sandbox.experiments import schedule
from gangpao.sandbox.experiments.text import page as pages
from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials.trial import Result, cost_of, ensure, key_of
from tests.sandbox.makers import rows, said, same_numbers

HORIZONS = (25_600, 51_200, 102_400)  # 100, 200, 400 steps of 256 tokens
SHARES = (0.025, 0.05, 0.1, 0.2)


def planted(share=0.0, factor=1.0, shape="wsd", D=1.0):
    """A decay under a tenth costs loss, more than that nothing; the cosine's best rate is 1, linear costs a little."""
    short = 0.4 * max(0.0, 0.1 - share) if shape != "cosine" else 0.05 * math.log(factor) ** 2 + 0.002
    return 1.0 + 30 * D**-0.4 + short + (0.004 if shape == "wsd_linear" else 0.0)


def fake(lab, noise, *, diverge=lambda spec: False, seen=None):
    """submit(specs): results by the plant; each trial has its own noise, always the same."""

    def one(spec):
        N, total, flops = cost_of(lab, spec)
        key = key_of(lab, spec)
        rng = np.random.default_rng(list(spec.model_dump_json().encode()))
        stable = bool(spec.marks)
        share = 0.0 if stable or spec.schedule == "cosine" else spec.steps / (spec.steps + spec.parent_step)
        bpb = planted(share, spec.lr / lab.config.common.lr, spec.schedule, spec.tokens) + noise * rng.standard_normal()
        curve = {m * spec.batch_tokens: planted(0.0, D=m * spec.batch_tokens) for m in spec.marks}
        bad = diverge(spec)
        return Result(
            key=key, spec=spec, state="diverged" if bad else "done", N=N, N_total=total, D=spec.tokens, flops=flops,
            bpb=None if bad else bpb, curve=curve, reason=Reason.of("other", text="loss nan") if bad else None, workers=1.0,
        )  # fmt: skip

    def submit(specs):
        if seen is not None:
            seen.extend(specs)
        return [one(spec) for spec in specs]

    return submit


def with_config(lab, **changes):
    usual = {"horizons": HORIZONS, "decays": SHARES, "cosine_rates": (0.5, 1.0, 2.0), "seeds": (0, 1, 2)}
    table = lab.config.schedule.model_copy(update=usual | changes)
    common = lab.config.common.model_copy(update={"decay": 0.1, "warmup": 0.02})
    return replace(lab, config=lab.config.model_copy(update={"schedule": table, "common": common}))


def test_the_plant_is_found(lab):
    lab = with_config(lab)
    out = schedule.run(lab, fake(lab, 0.0005))
    facts = json.loads(json.dumps(out.facts))
    assert facts["enough"] == {"wsd": 0.1, "wsd_linear": 0.1}
    assert facts["noise"] == pytest.approx(0.0005, rel=0.3)
    for h in facts["horizons"]:
        assert h["cosine_factor"] == 1.0
        assert h["best"] == "wsd"
        assert h["shapes"]["wsd"]["bpb"] < h["cosine"]
    assert len(rows(out)) == len(HORIZONS) * (3 + 2 * len(SHARES))
    exact = planted(0.1, D=25_600) - planted(shape="cosine", D=25_600)
    row = next(r for r in rows(out) if (r["D"], r["schedule"], r["decay"]) == (25_600, "wsd", 0.1))
    assert abs(row["difference"] - exact) <= row["noise"]
    assert row["before"] == pytest.approx(planted(0.0, D=90 * 256))
    for share, answer in (("10.0%", "yes"), ("2.5%", "no")):
        assert re.search(
            rf"wsd: a decay of {share} is at most [\d.]+ above the best share; enough: {answer}\.", said(out)
        )
    assert "better than cosine" in said(out)


def test_all_decays_branch_off_one_stable_run_and_only_the_schedule_differs(lab):
    lab = with_config(lab, seeds=(0,))
    seen = []
    schedule.run(lab, fake(lab, 0.0, seen=seen))
    stable = [s for s in seen if s.marks]
    branches = [s for s in seen if s.parent]
    cosines = [s for s in seen if s.schedule == "cosine"]
    assert len(stable) == 1
    assert {s.parent for s in branches} == set(stable)
    assert {s.parent_step for s in branches} == set(stable[0].marks)
    assert {s.tokens for s in branches} == {s.tokens for s in cosines} == set(HORIZONS)
    assert {round(s.warmup * s.steps) for s in (*stable, *cosines)} == {8}
    assert stable[0].steps == max(stable[0].marks) == 390
    assert all(s.mixture == lab.stable for s in branches)  # not the decay's mixture: cosine does not see it either
    assert all(s.decay == 0 for s in cosines)
    assert seen.index(stable[0]) < min(seen.index(s) for s in branches)


def test_one_seed_is_never_called_a_result(lab):
    lab = with_config(lab, seeds=(0,))
    out = schedule.run(lab, fake(lab, 0.0005))
    assert out.facts["noise"] is None
    assert out.facts["enough"] == {"wsd": None, "wsd_linear": None}
    assert "two values or more" in said(out)
    assert "better" not in said(out).replace("may be better", "")


def test_noise_hides_what_is_smaller(lab):
    lab = with_config(lab)
    out = schedule.run(lab, fake(lab, 0.05))
    assert said(out).count("no difference beyond noise") >= 2
    assert out.facts["enough"] == {"wsd": None, "wsd_linear": None}
    assert "is too large to tell which share costs less than 0.3%" in said(out)
    assert re.search(r"more seeds would help, about \d+\.", said(out))
    assert same_numbers(out)


def test_noisier_seeds_never_give_a_shorter_decay():
    """A fortieth truly costs 1.2 % of the loss, a tenth 0.16 %."""
    rng, costs = np.random.default_rng(0), {0.025: 0.03, 0.05: 0.012, 0.1: 0.004, 0.2: 0.0}
    for sigma, known in ((0.001, True), (0.01, False), (0.04, False)):
        wide = 1.96 * sigma  # two seeds each
        for _ in range(50):
            horizons = []
            for _ in range(3):
                bpb = {share: 2.5 + c + sigma * rng.standard_normal() / math.sqrt(2) for share, c in costs.items()}
                least = min(bpb.values())
                above = {str(share): value - least for share, value in bpb.items()}
                horizons.append({"shapes": {"wsd": {"bpb": least, "above_best": above}}})
            told = schedule.smallest_enough_share(horizons, "wsd", wide)
            assert told.enough in ((0.1, 0.2) if known else (None,))
            assert told.noisy != known


def test_an_edge_of_the_cosine_rates_is_said_with_what_to_add(lab):
    lab = with_config(lab, cosine_rates=(1.0, 2.0))
    assert "add 0.5 to schedule.cosine_rates" in said(schedule.run(lab, fake(lab, 0.0)))
    lab = with_config(lab, cosine_rates=(1.0,))
    assert "not tuned" in said(schedule.run(lab, fake(lab, 0.0)))


def test_a_diverged_seed_takes_its_arm_out(lab):
    lab = with_config(lab)
    out = schedule.run(lab, fake(lab, 0.0005, diverge=lambda s: s.schedule == "cosine" and s.seed == 1 and s.lr > 0.01))
    assert [one.reason.text().en for one in out.left_out] == ["loss nan"] * 3
    assert {r["factor"] for r in rows(out)} == {None, 0.5, 1.0}


def test_without_any_cosine_nothing_is_compared(lab):
    lab = with_config(lab)
    out = schedule.run(lab, fake(lab, 0.0005, diverge=lambda s: s.schedule == "cosine"))
    assert all(r["difference"] is None for r in rows(out))
    assert "nothing to compare" in said(out)
    pages.picture(out.record(), "en")


@pytest.mark.parametrize(
    ("changes", "message"), [({"decays": (0.001,)}, "no decay"), ({"decays": (0.99,)}, "within the 8 steps of warmup")]
)
def test_impossible_grids_are_refused(lab, changes, message):
    lab = with_config(lab, **changes)
    with pytest.raises(ValueError, match=message):
        schedule.run(lab, fake(lab, 0.0))


def test_real_trials_branch_where_they_should(lab):
    """A stable run of 36 steps, decays from step 18 and 36, and cosine runs, trained."""
    lab = with_config(lab, horizons=(5120, 10_240), decays=(0.1,), shapes=("wsd",), cosine_rates=(1.0,), seeds=(0,))
    out = schedule.run(lab, lambda specs: [ensure(lab, spec) for spec in specs])
    assert out.left_out == []
    assert [r["D"] for r in rows(out)] == [5120, 5120, 10_240, 10_240]
    for row in rows(out):
        if row["schedule"] == "wsd":
            assert row["before"] > row["bpb"]
            assert abs(row["difference"]) < 0.3 * row["bpb"]
    assert out.facts["cost"]["wsd"] == pytest.approx((36 + 2 + 4) / (20 + 40) * out.facts["cost"]["cosine"])


def test_both_languages_say_the_same_numbers_and_everything_is_written(lab, tmp_path):
    lab = with_config(lab, cosine_rates=(0.5, 1.0))
    out = schedule.run(lab, fake(lab, 0.0005))
    assert same_numbers(out)
    pages.write(out, tmp_path / "schedule")
    assert {p.name for p in (tmp_path / "schedule").iterdir()} == {
        "outcome.json", "report.en.md", "report.zh.md", "plot.en.png", "plot.zh.png",
    }  # fmt: skip

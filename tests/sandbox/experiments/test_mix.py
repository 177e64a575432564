"""What goes into the decay, against planted effects that are smaller than the luck of a stable run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gangpao.sandbox.experiments import mix
from gangpao.sandbox.experiments.text import page as pages
from gangpao.sandbox.trials.trial import ensure
from tests.sandbox.makers import DECAY, STABLE, Trials, make_lab, markdown, noise_of, said, same_numbers

GAIN = {"zh-laws": 0.02, "zh-cook": -0.004, "en-books": 0.0, "code-python": -0.03, "wiki": 0.0}
THREE = {"plain": STABLE, "half": {**STABLE, "sft_zh": 0.5}, "all": {"sft_zh": 1.0}}


def supervised(spec):
    m = spec.mixture or {}
    return m.get("sft_zh", 0.0) / sum(m.values()) if m else 0.0


def level(spec):
    """The luck of a seed's stable run: ten times what mixtures change."""
    return 2.0 + (0.1 * noise_of(spec.parent) if spec.parent else 0.0)


def texts(spec):
    return {f"{name}_bpb": level(spec) + gain * supervised(spec) for name, gain in GAIN.items()} | {"heldout_bpb": 2.0}


def make(tmp_path, **changes):
    return make_lab(tmp_path, mix={"seeds": (0, 1, 2)} | changes, common={"tokens": 409_600, "decay": 0.1})


def planted(**options):
    return Trials(lambda q: level(q) - 0.01 * supervised(q), heldout=texts, **options)


def cell(out, mixture, group):
    return next(c for c in out.facts["cells"] if (c["mixture"], c["group"]) == (mixture, group))


def test_a_difference_within_seeds_is_seen_through_their_luck(tmp_path):
    out = mix.run(make(tmp_path), planted(noise=0.0002))
    json.dumps(out.facts, allow_nan=False)
    total = cell(out, "decay", "total")
    assert total["noise"] > 5 * abs(total["difference"])  # the luck of the stable runs
    assert abs(total["difference"] + 0.004) <= total["error"] < 0.004
    assert total["verdict"] == "yes"
    assert cell(out, "decay", "zh")["difference"] == pytest.approx(0.4 * (0.02 - 0.004) / 2, abs=0.002)
    assert cell(out, "decay", "code")["verdict"] == "yes"
    assert cell(out, "decay", "other")["sources"] == 1  # wiki
    assert cell(out, "decay", "zh")["sources"] == 2
    assert "difference" not in cell(out, "stable", "total")
    assert out.facts["supervised"] == {"stable": 0, "decay": pytest.approx(0.4)}
    assert same_numbers(out)


def test_all_mixtures_go_on_from_the_same_stable_run(tmp_path):
    submit = planted()
    mix.run(make(tmp_path, mixtures=THREE), submit)
    stable, branches = [q for q in submit.specs if q.marks], [q for q in submit.specs if q.parent]
    assert (len(stable), len(branches)) == (3, 9)
    assert [q.seed for q in stable] == [0, 1, 2]
    for parent in stable:
        mine = [q for q in branches if q.parent == parent]
        assert {q.seed for q in mine} == {parent.seed}
        assert [q.mixture for q in mine] == list(THREE.values())
        assert {(q.parent_step, q.steps, q.decay, q.warmup) for q in mine} == {(90, 10, 1.0, 0.0)}
        assert {q.tokens for q in mine} == {409_600}
    assert all((q.decay, q.steps, q.marks) == (0.0, 90, (90,)) for q in stable)
    assert {round(q.warmup * q.steps) for q in stable} == {2}  # of all hundred steps, as in a run without branches


def test_the_error_of_a_difference_covers_it_as_often_as_it_says(tmp_path):
    covered = 0
    for salt in range(40):
        out = mix.run(make(tmp_path, mixtures=THREE), planted(noise=0.003, salt=str(salt)))
        covered += sum(
            abs(cell(out, n, "total")["difference"] + 0.01 * s) <= cell(out, n, "total")["error"]
            for n, s in (("half", 1 / 3), ("all", 1.0))
        )
    assert covered >= 70  # of 80


def test_no_effect_is_within_noise(tmp_path):
    verdicts = [
        c.get("verdict")
        for salt in range(20)
        for c in mix.run(make(tmp_path), Trials(level, heldout=lambda q: {}, noise=0.002, salt=str(salt))).facts[
            "cells"
        ]
    ]
    assert verdicts.count("cannot tell") >= 17
    assert verdicts.count(None) == 20


def test_one_seed_is_never_a_result(tmp_path):
    out = mix.run(make(tmp_path, seeds=(0,)), planted(noise=0.0001))
    assert {c.get("verdict") for c in out.facts["cells"]} == {None, "cannot tell"}
    assert cell(out, "decay", "total")["error"] is None
    assert said(out).count("(cannot tell)") == len({c["group"] for c in out.facts["cells"]})
    assert "mix.seeds two values" in said(out)
    assert same_numbers(out)
    pages.picture(out.record(), "en")


def test_answers_are_nats_where_they_are_known_and_their_lack_is_said(tmp_path):
    out = mix.run(make(tmp_path), planted(noise=0.0002))
    assert "the results keep none" in said(out)
    assert "answers" not in {c["group"] for c in out.facts["cells"]}

    def both(spec):
        return texts(spec) | {f"{name}_nats": 3.0 for name in GAIN} | {"sft_zh_nats": 3.0 - supervised(spec)}

    out = mix.run(make(tmp_path), Trials(level, heldout=both, noise=0.0002))
    assert cell(out, "decay", "answers")["difference"] == pytest.approx(-0.4, abs=0.002)
    assert cell(out, "decay", "answers")["sources"] == 1
    assert "nats a token and are not in the total" in said(out)


def test_a_seed_that_one_mixture_lost_is_left_out_of_all(tmp_path):
    out = mix.run(
        make(tmp_path, seeds=(0, 1, 2, 3)),
        planted(noise=0.0002, end=lambda q: ("diverged", "spike") if q.seed == 2 and q.mixture == DECAY else None),
    )
    assert out.facts["seeds"] == 3
    assert len(out.left_out) == 1
    assert "Left out: with supervised data: " in markdown(out, "en")
    assert "left out of all of them: 2." in said(out)
    assert abs(cell(out, "decay", "total")["difference"] + 0.004) <= cell(out, "decay", "total")["error"]


@pytest.mark.parametrize("lost", [STABLE, DECAY])
def test_a_mixture_that_never_ends_well_is_not_compared(tmp_path, lost):
    out = mix.run(make(tmp_path), planted(end=lambda q: ("diverged", "nan") if q.mixture == lost else None))
    assert not any("difference" in c for c in out.facts["cells"])
    assert "nothing to compare" in said(out)
    pages.picture(out.record(), "zh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixtures": {"a": STABLE}}, "one mixture"),
        ({"mixtures": {"a": STABLE, "b": {"zh-law": 1.0}}}, "mix.mixtures.b: no source 'zh-law'"),
        ({"mixtures": {"a": STABLE, "b": {"zh-laws": 0.0}}}, "weights are numbers from zero up"),
        ({"mixtures": {"a": STABLE, "b": {n: 2 * w for n, w in STABLE.items()}}}, "a and b are the same shares"),
    ],
)  # fmt: skip
def test_impossible_mixtures_are_refused(tmp_path, changes, message):
    submit = planted()
    with pytest.raises(ValueError, match=message):
        mix.run(make(tmp_path, **changes), submit)
    assert submit.calls == 0


def test_without_a_mixture_or_a_decay_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(ValueError, match=r"give mix\.mixtures"):
        mix.run(make_lab(tmp_path, decay=STABLE), planted())
    with pytest.raises(ValueError, match="leaves no decay"):
        mix.run(make_lab(tmp_path, common={"decay": 0.0}), planted())
    with pytest.raises(ValueError, match="leave no stable run"):
        mix.run(make_lab(tmp_path, common={"decay": 0.5, "warmup": 0.6}), planted())


def test_everything_is_written(tmp_path):
    out = mix.run(make(tmp_path, mixtures=THREE), planted(noise=0.0005))
    pages.write(out, tmp_path / "mix")
    assert len(list((tmp_path / "mix").iterdir())) == 5


def test_real_trials_branch_and_differ(lab):
    """Two seeds of twenty steps, trained: the decays see what they are told to, and nothing else differs."""
    lab = replace(lab, config=lab.config.model_copy(update={"mix": mix.MixConfig(seeds=(0, 1))}))
    out = mix.run(lab, lambda specs: [ensure(lab, spec) for spec in specs])
    assert out.left_out == []
    stables, branches = out.results[:2], out.results[2:]
    assert [len(group) for group in (stables, branches)] == [2, 4]
    for r in branches:
        parent = stables[r.spec.seed]
        assert r.spec.tokens == lab.spec().tokens
        assert r.bpb < parent.bpb  # the decay helps
    assert out.facts["supervised"] == {"stable": 0, "decay": pytest.approx(0.4)}
    sums = cell(out, "decay", "other")
    assert sums["sources"] == 2  # stories and sums; conversations have no bits per byte
    assert sums["difference"] > 0  # thinned out for conversations
    mean = np.mean([r.bpb for r in branches if r.spec.mixture == lab.decay])
    assert cell(out, "decay", "total")["loss"] == pytest.approx(mean)

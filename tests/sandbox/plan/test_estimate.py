"""What an experiment will cost, before it starts: counted trials and FLOPs, and a time from what is known of this machine."""

import json

import pytest

from gangpao import cost
from gangpao.sandbox.experiments import lr, scaling
from gangpao.sandbox.plan import estimate
from gangpao.sandbox.trials.search import Range, SearchConfig
from gangpao.sandbox.trials.trial import cost_of, key_of
from tests.sandbox.experiments.test_scaling import TARGET, Fake, with_config
from tests.sandbox.makers import numbers


def test_what_is_left_is_counted_and_timed_from_trials_of_the_folder(lab):
    lab = with_config(lab)  # two workers
    asked = estimate.asked(scaling, lab)
    assert {key_of(lab, s) for s in asked} == {
        key_of(lab, s) for group in scaling.specs_of(lab).values() for s in group
    }
    stable = scaling.specs_of(lab)["stable"]
    Fake(lab)(stable)  # busy for a second per 1e9 FLOPs
    found = estimate.estimate(lab, asked)
    left = sum(cost_of(lab, s)[2] for s in scaling.specs_of(lab)["branch"])
    assert (found.trials, found.known, found.flops) == (len(asked), len(stable), pytest.approx(left))
    assert found.how.en == f"{len(stable)} trials in this folder"
    judged = lab.config.heldout_tokens * len(lab.built.heldout) / 3
    each = [cost_of(lab, s)[2] / s.steps * (s.steps + judged / s.batch_tokens) for s in scaling.specs_of(lab)["branch"]]
    assert found.seconds == pytest.approx((sum(each) / 1e9 + 0.4 * len(each)) / 2, rel=0.01)
    assert found.yuan == pytest.approx(cost.yuan(cost.get_profile()[1], found.seconds))
    en, zh = found.said("scaling")
    assert f"{len(asked)} trials, {len(stable)} known; {len(each)} to train" in en
    assert numbers(en) == numbers(zh)
    Fake(lab)(asked)
    assert "all 20 trials are known, nothing is trained" in estimate.estimate(lab, asked).said("scaling").en


def test_targets_count_before_they_are_predicted(lab):
    plain, more = with_config(lab), with_config(lab, targets=(TARGET,), target_tokens=(819_200,))
    assert len(estimate.asked(scaling, more)) == len(estimate.asked(scaling, plain)) + 1


def test_without_trials_real_steps_are_timed(lab):
    table = lab.config.lr.model_copy(update={"widths": (32, 64), "rates": (0.005, 0.01, 0.02), "rules": ("minicpm",)})
    lab = type(lab)(
        lab.config.model_copy(update={"lr": table, "workers": 1}), lab.out, lab.built, lab.stable, lab.decay
    )
    found = estimate.estimate(lab, estimate.asked(lr, lab))
    assert (found.trials, found.known) == (6, 0)
    assert "3 steps of 2 sizes just now" in found.how.en
    assert found.sure > estimate.SURE_MEASURED
    assert 6 * 0.4 < found.seconds < 600
    assert not (lab.out / "trials").exists()


def test_a_search_costs_what_its_number_of_trials_does(lab):
    search = SearchConfig(space={"lr": Range(low=0.005, high=0.02)}, trials=7, seeds=(0, 1))
    lab = type(lab)(lab.config.model_copy(update={"search": search}), lab.out, lab.built, lab.stable, lab.decay)
    found = estimate.of_search(lab, done=2)
    assert (found.trials, found.known) == (7, 2)
    assert found.flops == pytest.approx(5 * 2 * cost_of(lab, lab.spec())[2])
    assert "taken to cost what the common one does" in found.how.en
    assert json.dumps(found.json())
    assert estimate.of_search(lab, done=9).said("search").en.endswith("nothing is trained.")

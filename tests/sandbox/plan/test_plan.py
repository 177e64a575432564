"""A plan from planted laws: the optimum against brute force, refusals, and a TOML that `gangpao train` reads."""

import json
import math
import re
import shutil
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from gangpao import cost, machine
from gangpao.atomic import write_json
from gangpao.model.count import flops_per_token, parameters
from gangpao.sandbox.experiments import scaling
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.text import page
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.coupled import CoupledFit
from gangpao.sandbox.plan import budget as budgets
from gangpao.sandbox.plan import plan
from gangpao.sandbox.plan.findings import load_laws
from gangpao.sandbox.trials.trial import cost_of, train_config
from gangpao.train import pretrain
from gangpao.train.config import load_train_config
from tests.sandbox.experiments.test_scaling import Fake, with_config

MEMORY = 4_000_000_000


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def ready(lab, kept, monkeypatch):
    """A sandbox whose scaling study is finished, on a machine of two cores; the tests only read it."""
    monkeypatch.setattr(machine, "physical_cores", lambda: 2)
    if not kept:
        lab = with_config(lab)
        page.write(scaling.run(lab, Fake(lab)), lab.out / "scaling")
        kept.update(lab=lab, laws=load_laws(lab.out, lab))
    return kept["lab"]


@pytest.fixture
def laws(ready, kept):
    return kept["laws"]


def here(laws, lab, budget="1 s", **changes):
    return budgets.machine_of(budget, laws, lab, **{"memory": MEMORY} | changes)


def flops(text, laws, lab, **changes):
    return budgets.flops_of(text, here(laws, lab, text, **changes))


def brute(laws, lab, C, *, serve=0.0, cap=math.inf):
    """Every multiple of head_dim with every depth of an allowed aspect, through the real configurations."""
    low, high = laws.aspects
    found = []
    for width in range(16, 400, 16):
        middle = max(1, round(width / math.sqrt(low * high)))
        for layers in sorted({middle, *range(max(1, math.ceil(width / high)), math.floor(width / low) + 1)}):
            spec = lab.spec(width=width, layers=layers)
            shape = pretrain.model_config(train_config(lab, spec), lab.built)
            steps = int((C - serve * flops_per_token(shape, 32)) / flops_per_token(shape, 32, training=True) // 256)
            N = parameters(shape).non_embedding
            if steps >= plan.MIN_STEPS and parameters(shape).total <= cap:
                found.append((laws.scaling.predict(N, steps * 256), width, layers, steps))
    return min(found)


@pytest.mark.parametrize("C", [3e10, 2e11, 1.5e12])
def test_the_choice_is_the_best_of_all_shapes(laws, ready, C):
    choice = plan.best(laws, ready, C)
    assert (choice.loss, choice.width, choice.layers, choice.steps) == pytest.approx(brute(laws, ready, C))
    assert choice.flops <= C
    each = choice.flops / choice.steps
    assert choice.flops + each > C  # not one step more
    spec = ready.spec(width=choice.width, layers=choice.layers, steps=choice.steps)
    assert cost_of(ready, spec) == (choice.N, choice.N_total, choice.flops)


def test_embedding_and_head_count_in_a_small_model(laws, ready):
    """Under 6ND the same law would ask for another size."""
    choice = plan.best(laws, ready, 2e11)
    assert choice.flops > 1.2 * 6 * choice.N * choice.D


def test_serving_and_a_cap_make_the_model_smaller_and_trained_longer(laws, ready):
    C = 1.5e12
    free = plan.best(laws, ready, C)
    served = plan.best(laws, ready, C, serve_tokens=2e6)
    assert (served.loss, served.width, served.layers) == pytest.approx(brute(laws, ready, C, serve=2e6)[:3])
    assert served.N < free.N
    assert served.loss > free.loss
    assert served.flops + served.serve_flops <= C
    capped = plan.best(laws, ready, C, max_params=free.N_total / 3)
    assert (capped.loss, capped.width, capped.layers) == pytest.approx(brute(laws, ready, C, cap=free.N_total / 3)[:3])
    assert capped.N_total <= free.N_total / 3
    assert capped.D > 2 * free.D
    made = plan.make_plan("1.5e12 flops", laws, ready, here=here(laws, ready), max_params=free.N_total / 3, force=True)
    assert made.unlimited == free.loss


def test_budgets_of_time_and_money_are_flops_at_the_measured_speed(laws, ready):
    assert here(laws, ready).speed == pytest.approx(2e9)
    assert flops("1 h on this machine", laws, ready) == pytest.approx(3600 * 2e9)
    assert flops("30 min", laws, ready) == flops("0.5 h", laws, ready) == flops("0.5 小时", laws, ready)
    assert flops(" 3e19 FLOPs ", laws, ready) == 3e19
    price = cost.yuan_per_second(cost.get_profile("desktop-cpu")[1])
    assert flops("2 yuan on desktop-cpu", laws, ready) == pytest.approx(2 / price * 2e9)
    assert flops("1 h on cloud-2-vcpu", laws, ready, speed=5e10) == pytest.approx(3600 * 5e10)
    assert flops("7 yuan on cloud-2-vcpu", laws, ready, speed=5e10) == pytest.approx(20 * 3600 * 5e10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lots", "write it like"), ("3 weeks", "write it like"), ("-3 h", "write it like"), ("0 h", "no amount above zero"),
        ("1.2.3 h", "write it like"), ("1e999 flops", "no amount above zero"), ("2 h on the moon", "unknown"),
        ("2 yuan on cloud-2-vcpu", "how fast cloud-2-vcpu trains is not known"),
    ],
)  # fmt: skip
def test_budgets_that_are_none_are_refused(laws, ready, text, message):
    with pytest.raises(ValueError, match=message):
        flops(text, laws, ready)


def test_a_machine_that_was_never_measured_still_has_flops(laws, ready):
    assert flops("1e9 flops on cloud-2-vcpu", laws, ready) == 1e9
    made = plan.make_plan("3e10 flops on cloud-2-vcpu", laws, ready)
    assert (made.seconds, made.yuan, made.profile) == (None, None, "cloud-2-vcpu")
    with pytest.raises(ValueError, match="above zero"):
        here(laws, ready, speed=0.0)


def test_a_plan_that_is_too_far_is_refused_with_what_to_run(laws, ready):
    big = here(laws, ready, memory=10**15)
    with pytest.raises(ValueError, match=r"times past that, and it supports 8\. Run .* or force the plan") as error:
        plan.make_plan("1e17 flops", laws, ready, here=big)
    N, D = laws.scaling.ends
    assert f"measured up to {N:,.0f} parameters and {D:,.0f} tokens" in str(error.value)
    forced = plan.make_plan("1e17 flops", laws, ready, here=big, force=True)
    assert forced.factor == max(forced.choice.N / N, forced.choice.D / D) > fit.SUPPORT
    assert any("past the largest runs" in en for en, _ in forced.notes)
    # With what it asks for, the same plan is supported.
    sizes, tokens = (int(n.replace(",", "")) for n in re.findall(r"up to about ([\d,]+)", str(error.value)))
    more = fit.fit_scaling(
        [*laws.scaling.points, fit.Point(N=sizes + 1, D=tokens + 1, loss=laws.scaling.predict(sizes, tokens))]
    )
    assert more.reach(forced.choice.N, forced.choice.D) <= fit.SUPPORT
    within = plan.make_plan("3e10 flops", laws, ready, here=here(laws, ready))
    assert within.factor == 1
    assert not any("past the largest runs" in en for en, _ in within.notes)


def test_a_law_that_its_points_do_not_tell_is_not_extrapolated(laws, ready):
    sizes = sorted({p.N for p in laws.scaling.points})[:2]
    weak = replace(laws, scaling=fit.fit_scaling([p for p in laws.scaling.points if p.N in sizes]))
    with pytest.raises(ValueError, match="its points do not tell alpha"):
        plan.make_plan("3e11 flops", weak, ready, here=here(laws, ready))
    assert plan.make_plan("1e10 flops", weak, ready, here=here(laws, ready)).factor == 1


def test_a_law_with_a_wide_interval_is_not_extrapolated(laws, ready):
    """The same points with 4 % of noise: within them a plan is a plan, 5 times past them nobody knows."""
    rng = np.random.default_rng(0)
    noisy = [replace(p, loss=p.loss * (1 + 0.04 * rng.standard_normal())) for p in laws.scaling.points]
    unsure = replace(laws, scaling=fit.fit_scaling(noisy))
    assert not unsure.scaling.undetermined
    budget = "3e12 flops"
    assert 1 < plan.make_plan(budget, laws, ready, here=here(laws, ready)).factor <= fit.SUPPORT
    with pytest.raises(ValueError, match=r"only says .* there\. Run .* more sizes, token counts or seeds"):
        plan.make_plan(budget, unsure, ready, here=here(laws, ready))
    assert plan.make_plan("3e10 flops", unsure, ready, here=here(laws, ready)).factor == 1


def test_a_small_model_for_very_many_tokens_is_too_far_as_well(laws, ready):
    """A cap leads out of the data along D."""
    with pytest.raises(ValueError, match="force the plan"):
        plan.make_plan("1e13 flops", laws, ready, here=here(laws, ready), max_params=60_000)


@pytest.mark.parametrize(
    ("budget", "options", "message"),
    [
        ("1000 flops", {}, "do not pay 50 steps"),
        ("3e11 flops", {"serve_tokens": 1e12}, "after 1e.12 tokens are served"),
        ("3e11 flops", {"max_params": 10}, "at most 10 parameters"),
        ("3e11 flops", {"serve_tokens": -1.0}, "not below zero"),
    ],
)
def test_budgets_that_buy_nothing_are_refused(laws, ready, budget, options, message):
    with pytest.raises(ValueError, match=message):
        plan.make_plan(budget, laws, ready, here=here(laws, ready), **options)


def test_laws_of_another_sandbox_are_refused(laws, ready):
    other = replace(ready, config=ready.config.model_copy(update={"seq_len": 64}))
    with pytest.raises(ValueError, match=r"another seq_len \(32 there, 64"):
        plan.make_plan("3e11 flops", laws, other, here=here(laws, ready))


def test_without_a_scaling_law_there_is_no_plan(lab):
    with pytest.raises(ValueError, match="run `gangpao sandbox scaling` first"):
        load_laws(lab.out, lab)


def test_the_toml_is_the_run_that_was_planned(laws, ready, tmp_path):
    made = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready))
    path = tmp_path / "deep" / "train.toml"
    plan.write(made, path)
    loaded = load_train_config(path)
    assert loaded == made.config
    assert [p.name for p in path.parent.iterdir()] == ["train.toml"]
    written = tomllib.loads(path.read_text(encoding="utf-8"))
    assert written["optimizer"] == {"kind": "adamw", "lr": made.config.optimizer.lr, "weight_decay": 0.1}
    assert written["schedule"]["kind"] == "wsd"
    c = made.choice
    assert pretrain.model_config(loaded, ready.built).hidden_size == c.width
    assert sum(loaded.stage_steps()) * loaded.batch_tokens == c.D
    trial = train_config(ready, made.spec)
    assert (loaded.rules, loaded.model, loaded.optimizer, loaded.schedule) == (
        trial.rules, trial.model, trial.optimizer, trial.schedule,
    )  # fmt: skip
    assert [s.mixture for s in loaded.stages] == [ready.stable, ready.decay]
    assert [s.name for s in loaded.stages] == ["stable", "decay"]
    assert loaded.export
    assert loaded.schedule_from().learning_rate(c.steps) < 0.2 * loaded.optimizer.lr
    assert made.seconds == pytest.approx(c.flops / 2e9)
    assert made.yuan == pytest.approx(cost.yuan(cost.get_profile()[1], made.seconds))


@pytest.mark.slow
def test_the_toml_trains(laws, ready, tmp_path):
    made = plan.make_plan("2e10 flops", laws, ready, here=here(laws, ready))
    plan.write(made, tmp_path / "train.toml")
    outcome = pretrain.run(tmp_path / "train.toml", tmp_path / "run", ("threads=1", "peak_tflops=0.1"))
    assert outcome.signal is None
    assert (tmp_path / "run" / "export" / "config.json").exists()


def test_little_memory_asks_for_recomputation_then_for_a_smaller_model(laws, ready):
    free = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready))
    assert not free.config.recompute
    tight = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready, memory=free.memory - 1))
    assert tight.config.recompute
    assert tight.choice == free.choice
    assert tight.memory < free.memory
    shape = pretrain.model_config(free.config, ready.built)
    least = plan.need(ready, shape, rows=1, recompute=True)
    small = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready, memory=least - 1), force=True)
    assert small.choice.N_total < free.choice.N_total


def test_other_experiments_are_used_when_they_are_there(laws, ready, tmp_path):
    out, plain = tmp_path / "sandbox", laws
    shutil.copytree(ready.out / "scaling", out / "scaling")
    assert (plain.lr, plain.batch, plain.decay) == (0.01, None, 0.1)
    assert sum("common one" in en for en, _ in plain.notes) == 3
    for name, facts in (
        ("lr", {"optimum": {"minicpm": 0.02}}),
        ("schedule", horizons_of({0.1: 0.02, 0.2: 0.0}, wide=0.0005)),
    ):
        write_json_in(out / name / "outcome.json", {"facts": facts | {"conditions": conditions(ready)}})
    found = load_laws(out, ready)
    assert (found.lr, found.decay) == (0.02, 0.2)
    made = plan.make_plan("3e11 flops", found, ready, here=here(found, ready))
    usual = plan.make_plan("3e11 flops", plain, ready, here=here(plain, ready))
    assert made.config.optimizer.lr == pytest.approx(2 * usual.config.optimizer.lr)
    assert made.config.stages[1].steps == pytest.approx(2 * usual.config.stages[1].steps, abs=1)


def horizons_of(above, wide):
    """Facts of a schedule experiment with one horizon."""
    return {"wide": wide, "horizons": [{"shapes": {"wsd": {"bpb": 2.0, "above_best": above}}}]}


def test_with_a_floor_the_plan_is_made_by_the_law_of_coupled_terms(laws, ready, tmp_path):
    out = tmp_path / "sandbox"
    shutil.copytree(ready.out / "scaling", out / "scaling")
    known = json.loads((out / "scaling" / "outcome.json").read_text())
    known["facts"]["laws"]["coupled"] = {"floor": [0.6, 0.05]}
    write_json_in(out / "scaling" / "outcome.json", known)
    found = load_laws(out, ready)
    assert isinstance(found.scaling, CoupledFit)
    made = plan.make_plan("3e11 flops", found, ready, here=here(found, ready))
    assert made.interval[0] < made.choice.loss < made.interval[1]
    assert made.choice.loss == pytest.approx(laws.scaling.predict(made.choice.N, made.choice.D), rel=0.02)


def write_json_in(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def test_both_languages_say_the_same_numbers(laws, ready):
    made = plan.make_plan("200 s", laws, ready, here=here(laws, ready), serve_tokens=1e5, force=True)
    texts = [made.markdown(language) for language in ("en", "zh")]
    numbers = [sorted(re.findall(r"\d[\d,.]*\d|\d", text)) for text in texts]
    assert numbers[0] == numbers[1]
    assert f"{made.choice.D:,}" in texts[0]
    assert json.loads(json.dumps(made.json()))["choice"]["D"] == made.choice.D

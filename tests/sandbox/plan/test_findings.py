"""What a plan takes from finished experiments, and what it leaves out: other conditions, noisy seeds, older versions."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gangpao import machine
from gangpao.sandbox import command
from gangpao.sandbox.experiments import batch, lr, schedule
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.laws import fit
from gangpao.sandbox.plan import plan
from gangpao.sandbox.plan.findings import Measured, load_laws
from gangpao.sandbox.trials.trial import Lab
from gangpao.train import pretrain
from tests.sandbox.makers import Trials, make_lab, size_of
from tests.sandbox.plan.test_plan import here, horizons_of, kept, laws, ready, write_json_in

__all__ = ["kept", "laws", "ready"]


@pytest.fixture
def out(ready, tmp_path):
    folder = tmp_path / "known"
    shutil.copytree(ready.out / "scaling", folder / "scaling")
    return folder


def changed(lab, **tables):
    """The sandbox with other values: base={"width": 64}."""
    config = lab.config
    for table, values in tables.items():
        old = getattr(config, table)
        new = old.model_copy(update=values) if isinstance(values, dict) else values
        config = config.model_copy(update={table: new})
    return replace(lab, config=config)


def said(laws, word):
    return [en for en, _ in laws.notes if word in en]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"base": {"width": 64}}, r"another base.width \(32 there, 64 in this configuration\)"),
        ({"common": {"lr": 0.3}}, r"another common.lr \(0.01 there, 0.3"),
        ({"common": {"weight_decay": 5.0, "warmup": 0.05}}, r"common.warmup \(0.02 there, 0.05 .*common.weight_decay \(0.1 there"),
        ({"common": {"decay": 0.2}}, r"another common.decay \(0.1 there, 0.2"),
        ({"precision": "bf16"}, r"another precision \(.fp32. there, .bf16."),
    ],
)  # fmt: skip
def test_a_law_of_other_conditions_is_refused_with_what_differs(laws, ready, tables, message):
    other = changed(ready, **tables)
    with pytest.raises(ValueError, match=message):
        plan.make_plan("3e11 flops", laws, other, here=here(laws, ready))


def test_a_rate_of_other_conditions_is_left_out_and_said(ready, out):
    there = conditions(ready)
    assert json.loads(json.dumps(there)) == there
    facts = {"optimum": {"minicpm": 0.02}, "conditions": there}
    write_json_in(out / "lr" / "outcome.json", {"facts": facts})
    assert load_laws(out, ready).lr == 0.02
    facts["conditions"] = there | {"rule": "standard", "common.lr": 0.3}  # an experiment that tries rates under rules
    write_json_in(out / "lr" / "outcome.json", {"facts": facts})
    assert load_laws(out, ready).lr == 0.02
    for key, value, text in (
        ("data", "0123", "data ('0123' there"),
        ("base.width", 512, "base.width (512 there, 32 in this configuration)"),
        ("common.weight_decay", 5.0, "common.weight_decay (5.0 there, 0.1"),
    ):
        facts["conditions"] = there | {key: value}
        write_json_in(out / "lr" / "outcome.json", {"facts": facts})
        found = load_laws(out, ready)
        assert found.lr == ready.config.common.lr
        [note] = said(found, "the experiment lr was run with another")
        assert text in note
    sweep = {"check": False, "x": [256.0, 512.0], "optimum": {"loss": 2.0}}
    facts = {"law": {"a": 900.0, "b": -1.0}, "sweeps": [sweep], "conditions": there | {"seq_len": 64}}
    write_json_in(out / "batch" / "outcome.json", {"facts": facts})
    facts = horizons_of({0.1: 0.02, 0.2: 0.0}, 0.0005) | {"conditions": there | {"common.warmup": 0.5}}
    write_json_in(out / "schedule" / "outcome.json", {"facts": facts})
    found = load_laws(out, ready)
    assert (found.batch, found.measured, found.decay) == (None, None, 0.1)
    assert len(said(found, "was run with another")) == 3


def test_what_an_outcome_does_not_say_is_a_difference(ready, out):
    facts = {
        "optimum": {"minicpm": 0.02},
        "conditions": {k: v for k, v in conditions(ready).items() if k != "precision"},
    }
    write_json_in(out / "lr" / "outcome.json", {"facts": facts})
    found = load_laws(out, ready)
    assert found.lr == ready.config.common.lr
    assert said(found, "was run with another precision (None there")


def test_a_share_that_noise_hides_is_not_taken_and_another_share_is_said(ready, out):
    facts = horizons_of({"0.025": 0.0, "0.1": 0.001, "0.2": 0.001}, 0.05) | {"conditions": conditions(ready)}
    write_json_in(out / "schedule" / "outcome.json", {"facts": facts})
    found = load_laws(out, ready)
    assert found.decay == ready.config.common.decay
    assert said(
        found, "decay share is the common one: the experiment schedule cannot tell, the noise between its seeds"
    )
    assert not said(found, "predicted loss comes from runs with a decay")
    write_json_in(
        out / "schedule" / "outcome.json",
        {"facts": horizons_of({"0.1": 0.1, "0.2": 0.0}, 0.001) | {"conditions": conditions(ready)}},
    )
    found = load_laws(out, ready)
    assert found.decay == 0.2
    assert said(found, "comes from runs with a decay of 0.1 of the steps; this plan takes 0.2.")


@pytest.mark.parametrize("module", [lr, batch, schedule])
def test_every_experiment_writes_what_its_outcome_holds_for(tmp_path, module):
    lab = make_lab(
        tmp_path, lr={"widths": (64, 128), "rules": ("minicpm",)}, batch={"batches": (4096, 8192, 16384)},
        schedule={"seeds": (0, 1)}, common={"warmup": 0.01},
    )  # fmt: skip
    outcome = module.run(lab, Trials(lambda spec: 1 + size_of(spec) ** -0.3))
    assert outcome.facts["conditions"] == conditions(lab)


def test_the_batch_law_is_not_followed_far_past_what_was_tried(laws, ready):
    tried = Measured((256.0, 1024.0), (1.5, 2.0), ((0.01, 0.0), (0.0, 0.0)))
    usual = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready)).choice
    for a, taken in ((1e9, 2048), (1.0, 128), (512.0, 512)):
        found = replace(laws, batch=fit.PowerLaw(a, 0.0), measured=tried)
        made = plan.make_plan("3e11 flops", found, ready, here=here(found, ready))
        assert made.choice.batch_tokens == taken
        [note] = [en for en, _ in made.notes if "the batch law says" in en]
        assert f"{a:,.0f} tokens ({a * 0.822:,.0f} .. {a * 1.2165:,.0f})" in note or a != 512
        assert "fitted at 1.5000 .. 2.0000, with batches of 256 .. 1,024" in note
        assert (f"not followed more than 2 times past what was tried: {taken:,} are taken" in note) == (a != 512)
        texts = [made.markdown(language) for language in ("en", "zh")]
        numbers = [sorted(re.findall(r"\d[\d,.]*\d|\d", text)) for text in texts]
        assert numbers[0] == numbers[1]
    # Of an outcome that does not say what was tried: from the common batch.
    unknown = replace(laws, batch=fit.PowerLaw(1e9, 0.0))
    assert plan.batch_tokens(unknown, ready, usual.N, usual.D) == 512
    # Never so large that few steps are left.
    wide = replace(laws, batch=fit.PowerLaw(1e9, 0.0), measured=replace(tried, batches=(256.0, 1e8)))
    made = plan.make_plan("3e11 flops", wide, ready, here=here(wide, ready))
    assert plan.MIN_STEPS <= made.choice.steps < 2 * plan.MIN_STEPS
    assert any("So that there are 50 steps" in en for en, _ in made.notes)


def test_the_range_and_the_interval_of_a_batch_law_come_with_it(ready, out, tmp_path):
    cases = {"sizes": ({"width": 64, "layers": 2}, {"width": 96, "layers": 3}, {"width": 128, "layers": 4})}
    lab = make_lab(
        tmp_path, batch={**cases, "batches": (1024, 2048, 4096, 8192, 16384), "seeds": (0, 1)}, common={"tokens": 2**22}
    )

    def loss(spec):
        bottom = 1 + 30 * size_of(spec) ** -0.3
        return bottom * (1 + 0.02 * math.log(spec.batch_tokens / (4e4 * bottom**-4)) ** 2)

    outcome = batch.run(lab, Trials(loss, noise=0.001))
    law = json.loads(json.dumps(outcome.facts))
    write_json_in(out / "batch" / "outcome.json", {"facts": law | {"conditions": conditions(ready)}})
    found = load_laws(out, ready)
    assert found.measured.batches == (1024, 16384)
    losses = [s["optimum"]["loss"] for s in law["sweeps"]]
    assert found.measured.losses == (min(losses), max(losses))
    assert (found.batch.a, found.batch.b) == (law["law"]["a"], law["law"]["b"])
    low, high = found.measured.interval(found.batch, losses[1])
    assert low < found.batch.predict(losses[1]) < high < 3 * low


def test_memory_that_decides_is_said(laws, ready, monkeypatch):
    monkeypatch.setattr(machine, "available_memory", lambda: 1)  # what is free now decides nothing
    monkeypatch.setattr(machine, "total_memory", lambda: 4 * 10**9)
    free = plan.make_plan("3e11 flops", laws, ready)
    assert not [en for en, _ in free.notes if "memory" in en]
    least = plan.need(ready, pretrain.model_config(free.config, ready.built), rows=1, recompute=True)
    for memory, text in (
        (free.memory - 1, "are recomputed"),
        (least - 1, "of memory limited the size: more would make "),
    ):
        made = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready, memory=memory), force=True)
        assert [en for en, _ in made.notes if text in en]
    there = plan.make_plan("3e11 flops on cloud-2-vcpu", laws, ready)
    assert [en for en, _ in there.notes if "is taken to be this machine's, 4 GB: give --memory" in en]
    with pytest.raises(ValueError, match="above zero"):
        here(laws, ready, memory=0)


def test_a_plan_far_below_the_data_is_refused_as_well(laws, ready):
    points = [replace(p, N=100 * p.N, D=20 * p.D) for p in laws.scaling.points]
    far = replace(laws, scaling=fit.fit_scaling(points))
    with pytest.raises(ValueError, match=r"times below that, and it supports 8\. Run .* give a larger budget") as error:
        plan.make_plan("3e11 flops", far, ready, here=here(far, ready))
    n, d = far.scaling.starts
    assert f"measured from {n:,.0f} parameters and {d:,.0f} tokens on" in str(error.value)
    sizes, tokens = (int(v.replace(",", "")) for v in re.findall(r"down to about ([\d,]+)", str(error.value)))
    forced = plan.make_plan("3e11 flops", far, ready, here=here(far, ready), force=True)
    assert forced.factor == max(n / forced.choice.N, d / forced.choice.D) > fit.SUPPORT
    assert any(f"This is {forced.factor:.3g} times below the smallest runs" in en for en, _ in forced.notes)
    loss = far.scaling.predict(sizes - 1, tokens - 1)
    with_them = [*points, replace(points[0], N=sizes - 1, D=tokens - 1, loss=loss)]
    assert fit.fit_scaling(with_them).reach(forced.choice.N, forced.choice.D) <= fit.SUPPORT


def test_the_source_that_is_repeated_most_is_named(laws, ready):
    """Weights by stage and the tokens of each source, not all tokens in one heap."""
    made = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready))
    steps, batch_size = made.config.stage_steps(), made.config.batch_tokens
    shards = ready.built.train
    stages = list(zip(steps, (ready.stable, ready.decay), strict=True))
    seen = {
        name: sum(n * batch_size * m.get(name, 0.0) / sum(m.values()) for n, m in stages) / shards[name].num_tokens
        for name in shards
    }
    assert plan.epochs(ready, made.config) == pytest.approx({name: value for name, value in seen.items() if value})
    most = max(seen, key=seen.get)
    [note] = [en for en, _ in made.notes if "seen more than once" in en]
    assert f"{most} ({shards[most].num_tokens:,} tokens) most: {seen[most]:.1f} times" in note
    skewed = replace(ready, stable={"stories": 1e-6, "sums": 1.0})
    others = plan.epochs(skewed, plan.recipe(laws, skewed, made.choice, here(laws, ready))[0])
    assert max(others, key=others.get) == "sums"


def test_the_command_takes_memory_in_gb(laws, ready, monkeypatch, capsys):
    monkeypatch.setattr("gangpao.sandbox.experiments.config.load_sandbox_config", lambda *_: ready.config)
    monkeypatch.setattr(Lab, "open", lambda *_: ready)
    monkeypatch.setattr(machine, "total_memory", lambda: 4 * 10**9)
    options = {"toml": None, "serve_tokens": 0, "max_params": None, "speed": None, "force": True, "as_json": False}
    little = plan.make_plan("3e11 flops", laws, ready).memory - 1000
    for memory, limited in ((None, False), (little / 1e9, True)):
        command.plan(Path("x.toml"), ready.out, "3e11 flops", **options, memory=memory)
        assert ("of memory activations are recomputed" in capsys.readouterr().out) == limited
    for wrong in (0.0, math.nan):
        with pytest.raises(ValueError, match=r"--memory .* GB above zero"):
            command.plan(Path("x.toml"), ready.out, "3e11 flops", **options, memory=wrong)


@pytest.mark.parametrize(
    ("law", "factor", "note"),
    [
        ({"value": 0.3, "low": 0.2, "high": 0.4}, 0.5**0.3, "comes from the experiment horizon"),
        ({"value": 0.02, "low": -0.05, "high": 0.09}, 1.0, "comes from the experiment horizon"),
        (
            {"value": 0.2, "low": -0.1, "high": 0.5},
            1.0,
            "hold at every number of tokens: the experiment horizon has no answer",
        ),
        (None, 1.0, "hold at every number of tokens: the experiment horizon was not run"),
    ],
)
def test_the_rate_of_a_plan_follows_the_horizon_where_that_is_sure(ready, out, law, factor, note):
    if law is not None:
        facts = {"law": law | {"rate": 0.01, "at": 1e6}, "conditions": conditions(ready)}
        write_json_in(out / "horizon" / "outcome.json", {"facts": facts})
    found = load_laws(out, ready)
    tokens = found.horizon[0]
    assert tokens == ready.config.common.tokens
    assert found.lr_at(2 * tokens) == pytest.approx(found.lr * factor)
    assert said(found, note)

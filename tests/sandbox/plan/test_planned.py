"""Predicted against came: plans that are kept, runs that are known as theirs, and what is said of both."""

import json

import pytest

from gangpao import cli
from gangpao.atomic import write_json
from gangpao.sandbox import report
from gangpao.sandbox.plan import plan, planned
from gangpao.sandbox.trials.provenance import provenance
from gangpao.train.config import load_train_config
from tests.sandbox.makers import numbers
from tests.sandbox.plan.test_plan import here, kept, laws, ready

__all__ = ["kept", "laws", "ready"]


@pytest.fixture
def made(laws, ready, tmp_path):
    """A plan as it is kept, and the folder of its sandbox."""
    recipe = plan.make_plan("3e11 flops", laws, ready, here=here(laws, ready))
    folder = planned.keep(recipe, tmp_path, provenance(ready))
    return recipe, tmp_path, folder


def run_of(recipe, ready, folder, *, bpb, seed=0, steps=None, started="2999-01-01T00:00:00+00:00", **changes):
    """The folder of a run as `gangpao train` leaves it."""
    plan.write(recipe, folder.parent / "plan.toml")
    config = load_train_config(folder.parent / "plan.toml").model_copy(update={"seed": seed, **changes})
    last = sum(config.stage_steps()) if steps is None else steps
    folder.mkdir()
    write_json(folder / "run.json", {
        "config": config.model_dump(mode="json"), "data": {"fingerprint": ready.built.fingerprint}, "started": started,
    })  # fmt: skip
    lines = [{"step": last, "loss": 1.0}, {"step": last, "heldout": {"heldout": 1.0, "heldout_bpb": bpb}}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_is_known_by_its_recipe_and_judged_by_the_interval(made, ready):
    recipe, out, _ = made
    low, high = recipe.interval
    for seed, bpb, inside in ((0, (low + high) / 2, True), (1, high + 0.01, False), (2, low - 0.01, False)):
        run = run_of(recipe, ready, out / f"run-{seed}", bpb=bpb, seed=seed, threads=1)
        (came,) = planned.compare(run, out)
        assert (came.seed, came.bpb, came.inside, came.before) == (seed, bpb, inside, True)
        assert came.predicted == recipe.choice.loss
        assert came.error == pytest.approx(100 * (recipe.choice.loss / bpb - 1))
    planned.compare(out / "run-0", out)  # again: it is there once
    (plan_,) = planned.plans(out)
    assert len(plan_["runs"]) == 3
    en, zh = (planned.markdown(plan_["runs"], language) for language in ("en", "zh"))
    assert en.count("inside the interval") == 1
    assert en.count("outside the interval") == 2
    assert numbers(en) == numbers(zh)
    assert "no prediction" not in en


def test_what_was_said_stays_and_another_prediction_stands_beside_it(made, laws, ready):
    recipe, out, folder = made
    before = (folder / "plan.json").read_bytes()
    planned.keep(recipe, out, provenance(ready))
    assert (folder / "plan.json").read_bytes() == before
    object.__setattr__(recipe, "interval", (recipe.interval[0], recipe.interval[1] + 1.0))  # as after more trials
    planned.keep(recipe, out, provenance(ready))
    run = run_of(recipe, ready, out / "run", bpb=recipe.interval[0] + 0.01, started="2001-01-01T00:00:00+00:00")
    came = planned.compare(run, out)
    assert len(came) == 2
    assert [one.before for one in came] == [False, False]
    said = planned.sentence(came[-1].json())[0] + planned.sentence(came[0].json())[0]
    assert said.count("Said after the run began, it is no prediction.") == 2
    assert "It is so wide that this says little." in said


def test_other_runs_are_refused_with_what_differs(made, ready):
    recipe, out, _ = made
    other = run_of(recipe, ready, out / "other", bpb=1.0, batch_tokens=recipe.choice.batch_tokens * 2)
    with pytest.raises(
        ValueError, match=r"no plan in .* describes this run; the nearest is \w+, which has another batch_tokens"
    ):
        planned.compare(other, out)
    with pytest.raises(ValueError, match=r"is at step 3 of \d+; go on with the same `gangpao train` line"):
        planned.compare(run_of(recipe, ready, out / "short", bpb=1.0, steps=3), out)
    with pytest.raises(ValueError, match="there is no run"):
        planned.compare(out / "nowhere", out)
    with pytest.raises(ValueError, match="no plan is kept here"):
        planned.compare(out / "short", out / "empty")


def test_the_command_and_the_report_say_it(made, ready, capsys):
    recipe, out, _ = made
    (out / "scaling").mkdir()
    write_json(out / "scaling" / "outcome.json", json.loads((ready.out / "scaling" / "outcome.json").read_text()))
    for name in ("report.en.md", "report.zh.md", "plot.en.png", "plot.zh.png"):
        (out / "scaling" / name).write_bytes((ready.out / "scaling" / name).read_bytes())
    page = report.write(out, "en")[1].read_text()
    assert "A plan for 3e11 flops" in page
    assert "gangpao sandbox compare RUN" in page
    run = run_of(recipe, ready, out / "run", bpb=recipe.interval[0])
    assert cli.main(["sandbox", "compare", str(run), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for language in ("en", "zh"):
        html, text = report.write(out, language)
        came = planned.markdown(planned.plans(out)[0]["runs"], language).strip()
        assert came in text.read_text()
        assert came.splitlines()[-1][2:] in html.read_text()
    assert "inside the interval" in printed

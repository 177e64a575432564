"""The loop: what must be equal is equal, to the bit where it is the same arithmetic, and nothing bad reaches a checkpoint."""

import dataclasses
import hashlib
import math
import os
import resource
import signal

import pytest
import torch

from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import GuardConfig, SaveConfig
from gangpao.train.loop import Training, TrainingStopped
from gangpao.train.progress import read_metrics
from gangpao.train.step.loss import NextToken, Terms
from tests.train.tiny import exit_code, fit, in_child, job, losses, same_end, weights_of

STAGES = (("stable", 9), ("decay", 5))
# Ten losses of the tiny model: float32, one thread. A change here is a change of what is computed; say why in the commit.
GOLDEN = [3.98876, 3.91998, 3.99073, 3.73194, 3.7428, 3.61889, 3.44635, 3.43569, 3.17964, 3.19078]


def test_golden_losses(tmp_path):
    fit(job(tmp_path, stages=(("stable", 10),)))
    assert list(losses(tmp_path).values()) == pytest.approx(GOLDEN, rel=2e-5)


def same(one, two):
    return one.keys() == two.keys() and all((one[k] == two[k]).all() for k in one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulating_is_one_big_batch(tmp_path, optimizer):
    """Rows differ in how many labels they have: a mean of means would be wrong here."""
    runs = []
    for name, micro_rows in (("1x4", 4), ("4x1", 1), ("2x2", 2)):
        fit(job(tmp_path / name, micro_rows=micro_rows, optimizer=optimizer))
        runs.append(losses(tmp_path / name))
    assert runs[1] == pytest.approx(runs[0], rel=1e-4)
    assert runs[2] == pytest.approx(runs[0], rel=1e-4)
    assert runs[0][1] == pytest.approx(runs[1][1], rel=1e-6)


class Dropping(NextToken):
    """An objective that draws random numbers, so that their state matters."""

    def __call__(self, model, batch, scale):
        keep = torch.rand(batch.labels.shape) < 0.8
        labels = torch.where(keep, torch.from_numpy(batch.labels), -100).numpy()
        return super().__call__(model, dataclasses.replace(batch, labels=labels), scale)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "muon", "ema": 0.9}, {"objective": Dropping(), "micro_rows": 2}],
    ids=["adamw", "muon", "random"],
)
@pytest.mark.parametrize("stop", [4, 9, 11])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, options, stop):
    """Interrupted in the stable stage, at the border of the stages, and in the decay; torn metrics behind it."""
    torch.manual_seed(0)
    whole = job(tmp_path / "whole", stages=STAGES, **options)
    fit(whole)
    torch.manual_seed(0)
    first = job(tmp_path / "parts", stages=STAGES, **options)
    training = Training(first)
    first.report.begin(0, 14)
    while training.step < stop:
        training._advance()
    training.save()
    training._advance()  # lost: it is in metrics.jsonl but in no checkpoint
    first.report.close()
    with (tmp_path / "parts" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 12, "lo')
    torch.manual_seed(77)
    second = job(tmp_path / "parts", stages=STAGES, **options)
    fit(second)
    assert same_end(tmp_path / "parts", tmp_path / "whole")
    assert [m["step"] for m in read_metrics(tmp_path / "parts") if "loss" in m] == list(range(1, 15))
    assert same(weights_of(second), weights_of(whole))
    if whole.average:
        assert all(torch.equal(t, second.average.values[n]) for n, t in whole.average.values.items())


def test_a_stage_begins_where_the_one_before_left_the_data(tmp_path):
    first = job(tmp_path / "a", stages=STAGES)
    training = fit(first)
    assert training._source.before == {"seed": 0, "position": 9 * 4}
    path = tmp_path / "a" / "checkpoints" / checkpoint.name_of(9)
    border = job(tmp_path / "b", stages=STAGES)
    resumed = Training(border)
    resumed.restore(checkpoint.Checkpoint(path))
    border.report.begin(9, 14)
    resumed._advance()
    border.report.close()
    assert resumed._source.before == {"seed": 0, "position": 9 * 4}


def tree(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_branch_is_the_run_it_left_and_leaves_it_alone(tmp_path):
    whole = job(tmp_path / "whole", stages=STAGES)
    fit(whole)
    before = tree(tmp_path / "whole")
    parent = checkpoint.Checkpoint(tmp_path / "whole" / "checkpoints" / checkpoint.name_of(9))
    assert not parent.record["decayed"]
    assert checkpoint.latest(parent.path.parent, print).record["decayed"]

    branch = job(tmp_path / "branch", stages=(("decay", 5),), begin=9, before=parent.record["source"])
    with torch.no_grad():
        for name, p in branch.model.named_parameters():
            p.copy_(parent.tensors("model")[name])
    branch.optimizer.restore(parent.tensors("optimizer"))
    whole_source = whole.stages[1].source
    branch.stages = [dataclasses.replace(branch.stages[0], source=whole_source)]
    fit(branch)
    assert min(losses(tmp_path / "branch")) == 10
    assert same_end(tmp_path / "branch", tmp_path / "whole")
    assert tree(tmp_path / "whole") == before


# --- bad steps


class Poisoned(NextToken):
    """Not a number, or a spike, at chosen calls."""

    def __init__(self, at, factor=math.nan):
        super().__init__()
        self.at, self.factor, self.calls = at, factor, 0

    def __call__(self, model, batch, scale):
        self.calls += 1
        terms = super().__call__(model, batch, scale)
        if self.calls not in self.at:
            return terms
        return Terms(terms.loss * self.factor, {"loss": terms.values["loss"] * self.factor})


def finite_checkpoints(folder):
    found = [checkpoint.Checkpoint(p) for p in checkpoint.checkpoints(folder / "checkpoints")]
    assert found
    return all(
        bool(t.isfinite().all()) for c in found for kind in ("model", "optimizer") for t in c.tensors(kind).values()
    )


def test_skipped_steps_leave_weights_and_optimizer_alone(tmp_path):
    j = job(tmp_path, objective=Poisoned({5, 6}))
    training = fit(j)
    assert training.step == 12
    assert finite_checkpoints(tmp_path)
    events = [m for m in read_metrics(tmp_path) if m.get("event") == "skip"]
    assert [e["step"] for e in events] == [5, 6]
    steps = {int(t["step"]) for t in j.optimizer.parts[0].state.values()}
    assert steps == {10}


def test_too_many_bad_steps_stop_the_run(tmp_path):
    j = job(tmp_path, objective=Poisoned(set(range(6, 99))), guard=GuardConfig(max_bad_steps=3))
    with pytest.raises(TrainingStopped, match="4 bad steps in a row"):
        fit(j)
    assert finite_checkpoints(tmp_path)


def test_stop_names_the_last_checkpoint_and_saves_nothing(tmp_path):
    j = job(tmp_path, objective=Poisoned({7}), guard=GuardConfig(on_bad_step="stop"))
    with pytest.raises(TrainingStopped, match="step-00000004"):
        fit(j)
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step-00000004"]


def test_rolling_back_goes_past_the_batches_since_the_checkpoint(tmp_path):
    j = job(tmp_path, objective=Poisoned({7}), guard=GuardConfig(on_bad_step="rollback"))
    training = fit(j)
    assert (training.step, training.rollbacks) == (12, 1)
    assert finite_checkpoints(tmp_path)
    # 7 batches until the bad one, back to step 4, and 8 new ones
    assert training._source.position == (7 + 8) * 4
    again = job(
        tmp_path / "always",
        objective=Poisoned(set(range(3, 99))),
        guard=GuardConfig(on_bad_step="rollback", max_bad_steps=2),
    )
    with pytest.raises(TrainingStopped, match="gone back 2 times"):
        fit(again)


def test_spikes_are_bad_only_after_enough_usual_losses(tmp_path):
    guard = GuardConfig(spike_factor=3.0)
    early = fit(job(tmp_path / "early", objective=Poisoned({20}, factor=50.0), guard=guard, stages=(("stable", 24),)))
    assert early.step == 24
    assert not [m for m in read_metrics(tmp_path / "early") if "event" in m]
    fit(job(tmp_path / "late", objective=Poisoned({60}, factor=50.0), guard=guard, stages=(("stable", 64),)))
    assert [m["step"] for m in read_metrics(tmp_path / "late") if "event" in m] == [60]


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    j = job(tmp_path)
    training = Training(j)
    training.save()
    with torch.no_grad():
        j.model.model.norm.weight[3] = math.inf
    training.step = 1
    with pytest.raises(TrainingStopped, match=r"model\.norm\.weight is not finite"):
        training.save()
    j.report.close()
    assert len(checkpoint.checkpoints(tmp_path / "checkpoints")) == 1


@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_no_injection_poisons_a_save(tmp_path, count):
    """NaN and infinity into the loss or one gradient, at every step in turn, under every policy that goes on."""
    for i in range(count):
        value = (math.nan, math.inf, -math.inf)[i % 3]
        policy = ("skip", "rollback")[i % 2]
        save = SaveConfig(every_steps=1 + i % 4)
        folder = tmp_path / str(i)
        j = job(folder, objective=Poisoned({1 + i % 12}, value), guard=GuardConfig(on_bad_step=policy), save=save)
        if i % 5 == 4:  # in a gradient only: the loss looks fine
            j.objective = NextToken()
            weight = j.model.model.layers[0].mlp.up_proj.weight
            calls = iter(range(999))
            weight.register_hook(lambda g, i=i, v=value, calls=calls: g * v if next(calls) == i % 12 else g)
        assert fit(j).step == 12
        assert finite_checkpoints(folder)


# --- checkpoints on the way


def test_the_last_the_best_and_the_ends_of_stages_are_kept(tmp_path):
    heldout = iter([9.0, 1.0, 5.0, 6.0, 7.0, 8.0, 3.0, 4.0])
    save = SaveConfig(every_steps=2, keep_last=2)
    j = job(
        tmp_path,
        stages=(("stable", 5), ("decay", 8)),
        save=save,
        evaluate=lambda stop: {"heldout": next(heldout)},
        evaluate_every=2,
    )
    training = fit(j)
    assert training.best == (4, 1.0)
    kept = [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path / "checkpoints")]
    assert kept == [4, 5, 12, 13]  # the best, the end of a stage, the last two


def test_a_full_disk_keeps_the_old_checkpoint_and_training_goes_on(tmp_path):
    j = job(tmp_path, save=SaveConfig(every_steps=2, keep_last=9))
    training = Training(j)
    j.report.begin(0, 12)
    for _ in range(3):
        training._advance()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # room for metrics, none for a checkpoint
    try:
        for _ in range(4):
            training._advance()
        assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(training.checkpoints)] == [2]
        with pytest.raises(OSError, match="older ones are whole"):
            training.save(must=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    j.report.close()
    fit(job(tmp_path, save=SaveConfig(every_steps=2, keep_last=9)))
    fit(job(tmp_path / "whole"))
    assert same_end(tmp_path, tmp_path / "whole")


# --- signals and kills


def long_job(folder, steps):
    return job(folder, stages=(("stable", steps),), save=SaveConfig(every_steps=5, keep_last=2))


def fit_long_job(folder, steps):
    fit(long_job(folder, steps))


def wait_for_lines(path, count):
    import time

    end = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_sigterm_saves_and_exits_with_zero(tmp_path, count):
    for i in range(count):
        folder = tmp_path / str(i)
        child = in_child(tmp_path / "log", fit_long_job, folder, 100_000)
        wait_for_lines(folder / "metrics.jsonl", 4 + i)
        os.kill(child.pid, signal.SIGTERM)
        assert exit_code(child) == 0, (tmp_path / "log").read_text()
        found = checkpoint.latest(folder / "checkpoints", print)
        assert found.step == max(losses(folder)) >= 4 + i


def test_a_stage_of_a_stopped_run_is_not_over(tmp_path):
    j = job(tmp_path)
    training = Training(j)
    training.signals.received = signal.SIGTERM
    outcome = training.fit()
    j.report.close()
    assert (outcome.step, outcome.signal) == (1, signal.SIGTERM)
    fit(job(tmp_path))
    fit(job(tmp_path / "whole"))
    assert same_end(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment_costs_no_bit(tmp_path, count):
    """Resumed and killed again and again; in the end every loss is that of a run that was left alone."""
    import random
    import time

    steps = 40 + 50 * count
    fit(long_job(tmp_path / "whole", steps))
    rng = random.Random(count)
    folder = tmp_path / "killed"
    killed = 0
    for _ in range(count):
        child = in_child(tmp_path / "log", fit_long_job, folder, steps)
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(child.pid, signal.SIGKILL)
        code = exit_code(child)
        assert code in (-signal.SIGKILL, 0), (tmp_path / "log").read_text()
        killed += code != 0
    assert 4 * killed >= 3 * count  # alive when it was hit
    fit(long_job(folder, steps))
    assert same_end(folder, tmp_path / "whole")
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert not [n for n in names if n.startswith(".")]


def test_rows_must_be_whole_passes(tmp_path):
    j = job(tmp_path, rows=4, micro_rows=3)
    with pytest.raises(ValueError, match="4 rows is not a multiple of micro_batch_size 3 times 1"):
        Training(j)
    j.report.close()

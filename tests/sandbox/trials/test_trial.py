"""A trial is named by what it is, trained once, and goes on where it was interrupted."""

import math
import shutil

import pytest

from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials import trial
from gangpao.sandbox.trials.trial import Lab, Pruned, Spec, cost_of, ensure, key_of, train_config
from gangpao.train import pretrain
from gangpao.train.progress import read_metrics
from tests import seams
from tests.train.tiny import in_child, same_end


def test_a_key_says_all_that_matters_and_nothing_else(lab):
    spec = lab.spec()
    changes = [
        {"width": 64}, {"layers": 1}, {"lr": 0.02}, {"batch_tokens": 128}, {"tokens": 2560}, {"seed": 1}, {"rule": "standard"},
        {"decay": 0.5}, {"warmup": 0.2}, {"weight_decay": 0.0}, {"optimizer": "muon"}, {"schedule": "cosine"},
        {"mixture": {"stories": 1.0}}, {"marks": (4,)}, {"parent": spec, "parent_step": 10}, {"parent": spec, "parent_step": 11},
        {"parent": spec, "parent_step": 10, "steps": 1, "decay": 0.1},
        {"parent": spec, "parent_step": 10, "steps": 1, "decay": 0.1, "mixture": {"stories": 1.0}},
    ]  # fmt: skip
    keys = [key_of(lab, spec), *(key_of(lab, lab.spec(**change)) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert key_of(lab, Spec.model_validate_json(spec.model_dump_json())) == keys[0]
    other = Lab(
        lab.config.model_copy(update={"threads": 2, "workers": 7, "cost_profile": None}),
        lab.out,
        lab.built,
        lab.stable,
        lab.decay,
    )
    assert key_of(other, spec) == keys[0]


def test_a_trial_is_a_run_of_the_training_room_and_runs_once(lab, tmp_path):
    spec = lab.spec(seed=3)
    result = ensure(lab, spec)
    pretrain.run_config(train_config(lab, spec), tmp_path / "plain", built=lab.built)
    heldout = [m["heldout"] for m in read_metrics(tmp_path / "plain") if "heldout" in m][-1]
    assert (result.state, result.loss, result.bpb) == ("done", heldout["heldout"], heldout["heldout_bpb"])
    assert 0 < result.busy <= result.seconds
    assert list(result.curve) == [5120]  # held-out loss where the trial ends, and nowhere else
    assert result.D == 5120
    assert (result.N, result.N_total, result.flops) == cost_of(lab, spec)
    before = {p: p.stat().st_mtime_ns for p in lab.folder(spec).rglob("*")}
    assert ensure(lab, spec) == result
    assert {p: p.stat().st_mtime_ns for p in lab.folder(spec).rglob("*")} == before
    assert not (lab.folder(spec) / "checkpoints").exists()


@pytest.fixture
def checkpoints_stay(monkeypatch):
    """Those of finished trials are deleted; here they are what is compared."""
    seams.replace(monkeypatch, trial, "shutil", rmtree=lambda *arguments, **options: None)


def test_a_branch_is_the_decay_of_the_whole_run_and_costs_only_that(lab, checkpoints_stay):
    whole = ensure(lab, lab.spec())
    stable = lab.spec(decay=0.0, steps=20, marks=(8, 15))
    branch = lab.spec(parent=stable, parent_step=15, steps=5)
    found = ensure(lab, branch)  # trains the stable run as well
    assert same_end(lab.folder(branch), lab.folder(lab.spec()))
    assert found.bpb == whole.bpb
    assert found.D == whole.D
    assert found.flops == pytest.approx(whole.flops / 4)
    parent = lab.result(stable)
    assert sorted(parent.curve) == [8 * 256, 15 * 256, 20 * 256]
    early = ensure(lab, lab.spec(parent=stable, parent_step=8, steps=3))
    assert early.D == 11 * 256
    assert early.bpb > found.bpb


def stop_at(step):
    def watch(line):
        if line.get("step") == step and "loss" in line:
            raise KeyboardInterrupt

    return watch


def test_an_interrupted_trial_goes_on_to_the_same_result(lab, tmp_path, checkpoints_stay):
    spec = lab.spec()
    with pytest.raises(KeyboardInterrupt):
        ensure(lab, spec, stop_at(17))
    assert lab.result(spec) is None
    result = ensure(lab, spec)
    steps = [m["step"] for m in read_metrics(lab.folder(spec)) if "loss" in m]
    assert steps == list(range(1, 21))
    other = Lab(lab.config, tmp_path / "fresh", lab.built, lab.stable, lab.decay)
    assert ensure(other, spec).bpb == result.bpb
    assert same_end(other.folder(spec), lab.folder(spec))


def test_what_diverges_is_recorded_and_so_are_its_branches(lab):
    spec = lab.spec(lr=1e30, decay=0.0, steps=12, marks=(8,), rule="standard", warmup=0.0)
    result = ensure(lab, spec)
    assert (result.state, result.bpb) == ("diverged", None)
    assert result.reason.text().en.startswith("step ")
    branch = ensure(lab, lab.spec(parent=spec, parent_step=8, steps=4))
    assert branch.state == "diverged"
    assert branch.reason.code == "parent_diverged"


def prune(line):
    if line.get("step") == 5:
        raise Pruned(Reason.of("other", text="hopeless"))


def test_a_pruned_trial_stays_pruned_for_a_search_and_is_trained_to_its_end_for_others(lab, tmp_path, checkpoints_stay):
    spec = lab.spec()
    assert ensure(lab, spec, prune).state == "pruned"
    assert ensure(lab, spec, lambda line: None).reason.text().en == "hopeless"
    with pytest.raises(KeyboardInterrupt):
        train_until(lab, spec, 17)
    assert lab.result(spec).state == "pruned"
    result = ensure(lab, spec)
    assert [m["step"] for m in read_metrics(lab.folder(spec)) if "loss" in m] == list(range(1, 21))
    other = Lab(lab.config, tmp_path / "fresh", lab.built, lab.stable, lab.decay)
    assert (result.state, result.bpb, result.reason) == ("done", ensure(other, spec).bpb, None)
    assert same_end(other.folder(spec), lab.folder(spec))
    assert ensure(lab, spec, prune) == ensure(lab, spec) == result


def train_until(lab, spec, step):
    """What is left of a process that was interrupted there."""
    pretrain.run_config(train_config(lab, spec), lab.folder(spec), watch=stop_at(step), built=lab.built)


@pytest.mark.parametrize(
    ("text", "message"), [("", "damaged, not JSON"), ("{", "damaged, not JSON"), ("[]", "not a result")]
)
def test_a_damaged_result_says_what_to_delete(lab, text, message):
    spec = lab.spec()
    before = ensure(lab, spec)
    path = lab.folder(spec) / trial.RESULT
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ensure(lab, spec)
    assert str(path) in str(error.value)
    assert "delete this file" in str(error.value)
    path.unlink()
    assert ensure(lab, spec).bpb == before.bpb


def test_a_branch_whose_parent_lost_its_checkpoints_trains_it_again(lab):
    stable = lab.spec(decay=0.0, steps=12, marks=(8,))
    late, early = (lab.spec(parent=stable, parent_step=start, steps=4) for start in (12, 8))
    ensure(lab, stable)
    checkpoints = lab.folder(stable) / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000008")
    with pytest.raises(
        ValueError, match=r"step-00000012 is still there; delete .*checkpoints, and the same command"
    ) as error:
        ensure(lab, early)
    assert str(checkpoints) in str(error.value)
    assert ensure(lab, late).state == "done"  # which does not need the one that is gone
    shutil.rmtree(checkpoints)
    found = ensure(lab, early)
    assert found.state == "done"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000008", "step-00000012"]
    assert lab.result(stable).bpb is not None


def _ensure_in_child(config, out, spec):
    lab = Lab.open(config, out)
    assert ensure(lab, spec).state == "done"


def test_two_processes_share_a_trial(config, lab):
    spec = lab.spec(tokens=40_960)
    lab.out.mkdir(parents=True)
    children = [in_child(lab.out / f"log-{i}", _ensure_in_child, config, lab.out, spec) for i in range(2)]
    for i, child in enumerate(children):
        child.join()
        assert child.exitcode == 0, (lab.out / f"log-{i}").read_text()
    steps = [m["step"] for m in read_metrics(lab.folder(spec)) if "loss" in m]
    assert steps == list(range(1, 161))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "not a multiple of head_dim 16"),
        ({"rule": "magic"}, "there are minicpm"),
        ({"batch_tokens": 100}, "not a multiple of seq_len"),
    ],
)
def test_mistakes_are_said(lab, change, message):
    with pytest.raises(ValueError, match=message):
        train_config(lab, lab.spec(**change))


def test_the_result_is_in_bits_of_bytes(lab):
    """bpb of all sources together lies between those of the sources, and belongs to the nats."""
    result = ensure(lab, lab.spec())
    each = [v for k, v in result.heldout.items() if k != "heldout_bpb"]
    assert min(each) <= result.bpb <= max(each)
    plain = [s for s in lab.built.heldout.values() if not s.supervised]
    tokens_per_byte = sum(s.num_tokens for s in plain) / sum(s.num_bytes for s in plain)
    assert result.bpb == pytest.approx(result.loss * tokens_per_byte / math.log(2), rel=0.35)
    assert trial.RESULT == "result.json"

"""Two gloo ranks on one machine: the losses of one rank, from the same rows in the same order, sharded or not."""

import os
import signal
import socket
import time

import pytest
import torch

from gangpao.train import parallel, state
from gangpao.train.config import SaveConfig
from gangpao.train.parallel import World
from gangpao.train.report import Report
from tests.train.tiny import exit_code, fit, in_child, job, losses


def rank_main(rank, size, port, folder, sharded, steps, options):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = parallel.start("cpu") if size > 1 else World()
    j = job(folder, stages=(("stable", steps),), world=world, micro_rows=1, **options)
    if rank:
        j.report.close()
        j.report = Report(None)
    if sharded:
        from gangpao.model.init import rule_of
        from gangpao.train.config import OptimizerConfig
        from gangpao.train.optim import Optimizer

        parallel.shard(j.model, j.model.model.layers, world)
        j.optimizer = Optimizer(
            j.model.named_parameters(), lambda n: rule_of(n, j.model.config), OptimizerConfig(lr=0.02)
        )
    fit(j)
    world.close()


def spawn(size, folder, *, sharded=False, steps=12, **options):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    return [
        in_child(folder / f"log-{r}", rank_main, r, size, port, folder, sharded, steps, options) for r in range(size)
    ]


def run(size, folder, **options):
    for rank, child in enumerate(spawn(size, folder, **options)):
        assert exit_code(child) == 0, (folder / f"log-{rank}").read_text()
    return losses(folder)


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "muon"}, {"sharded": True}], ids=["replicas", "replicas, muon", "sharded"]
)
def test_two_ranks_are_one(tmp_path, options):
    one = run(1, tmp_path / "one", **{k: v for k, v in options.items() if k != "sharded"})
    two = run(2, tmp_path / "two", **options)
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-4)
    ours, theirs = (state.latest(tmp_path / n / "checkpoints", print) for n in ("one", "two"))
    assert ours.record["source"] == theirs.record["source"]
    for name, t in ours.tensors("model").items():
        torch.testing.assert_close(theirs.tensors("model")[name], t, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_from_one_rank_to_two_and_back(tmp_path, sharded):
    """A checkpoint does not know how many ranks wrote it; rows keep their order."""
    whole = run(1, tmp_path / "whole")
    folder = tmp_path / "moved"
    run(1, folder, steps=4)
    run(2, folder, steps=8, sharded=sharded)
    last = run(1, folder, steps=12)
    assert sorted(last) == list(range(1, 13))
    assert last == pytest.approx(whole, rel=1e-4)


def test_a_lost_rank_ends_the_others(tmp_path):
    children = spawn(2, tmp_path, steps=100_000, save=SaveConfig(every_steps=5, keep_last=2))
    end = time.monotonic() + 60
    while not state.checkpoints(tmp_path / "checkpoints"):
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(children[1].pid, signal.SIGKILL)
    began = time.monotonic()
    assert exit_code(children[1]) == -signal.SIGKILL
    assert exit_code(children[0]) == 1
    assert time.monotonic() - began < 60
    assert state.latest(tmp_path / "checkpoints", print) is not None


def test_sigterm_to_one_rank_saves_and_ends_all(tmp_path):
    children = spawn(2, tmp_path, steps=100_000, save=SaveConfig(every_steps=1000))
    end = time.monotonic() + 60
    while not losses(tmp_path) if (tmp_path / "metrics.jsonl").exists() else True:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(children[1].pid, signal.SIGTERM)
    assert [exit_code(child) for child in children] == [0, 0]
    assert state.latest(tmp_path / "checkpoints", print).step == max(losses(tmp_path))

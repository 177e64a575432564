"""Gloo ranks on one machine: the losses of one rank, from the same rows in the same order, however the work is split."""

import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from gangpao.model.init import rule_of
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import OptimizerConfig, SaveConfig
from gangpao.train.progress import Report
from gangpao.train.step import parallel
from gangpao.train.step.optim import Average, Optimizer
from gangpao.train.step.parallel import World
from tests.train.tiny import exit_code, fit, in_child, job, losses


def rank_main(rank, size, port, folder, sharded, steps, options):
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = parallel.start("cpu", group=sharded is not None) if size > 1 or sharded is not None else World()
    j = job(folder, stages=(("stable", steps),), world=world, micro_rows=1, **options)
    if rank:
        j.report.close()
        j.report = Report(None)
    if sharded is not None:
        parallel.shard(j.model, j.model.model.layers, world, **sharded)
        muon = options.get("optimizer", "adamw")
        named = list(j.model.named_parameters())
        j.optimizer = Optimizer(named, lambda n: rule_of(n, j.model.config), OptimizerConfig(kind=muon, lr=0.02))
        j.average = Average(named, options["ema"]) if "ema" in options else None
    fit(j)
    world.close()


def start_ranks(size, folder, work, *arguments):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    return [in_child(folder / f"log-{r}", work, r, size, port, folder, *arguments) for r in range(size)]


def spawn(size, folder, *, sharded=None, steps=12, **options):
    return start_ranks(size, folder, rank_main, sharded, steps, options)


def run(size, folder, **options):
    for rank, child in enumerate(spawn(size, folder, **options)):
        assert exit_code(child) == 0, (folder / f"log-{rank}").read_text()
    return losses(folder)


WAYS = {
    "replicas": (2, {}),
    "replicas, muon": (2, {"optimizer": "muon"}),
    "sharded": (2, {"sharded": {}, "ema": 0.9}),
    "sharded, muon": (2, {"sharded": {}, "optimizer": "muon"}),
    "sharded, one exchange a step": (2, {"sharded": {}, "no_sync": True}),
    "sharded, offloaded": (2, {"sharded": {"offload": True}}),
    "offloaded, alone": (1, {"sharded": {"offload": True}}),
    "two copies of two parts": (4, {"sharded": {"ranks": 2}}),
}


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=pytest.mark.slow) if w in ("replicas, muon", "sharded, muon") else w for w in WAYS]
)
def test_many_ranks_are_one(tmp_path, way):
    size, options = WAYS[way]
    one = run(1, tmp_path / "one", **{k: v for k, v in options.items() if k not in ("sharded", "no_sync")})
    many = run(size, tmp_path / "many", **options)
    assert many[1] == pytest.approx(one[1], rel=1e-6)
    assert many == pytest.approx(one, rel=1e-4)
    ours, theirs = (checkpoint.latest(tmp_path / n / "checkpoints", print) for n in ("one", "many"))
    assert ours.record["source"] == theirs.record["source"]
    for kind in ("model", *(["average"] if "ema" in options else [])):
        whole = theirs.tensors(kind)
        assert sorted(whole) == sorted(theirs.names(kind))
        for name, t in ours.tensors(kind).items():
            torch.testing.assert_close(whole[name], t, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sharded", [pytest.param(None, marks=pytest.mark.slow), {}], ids=["replicas", "sharded"])
def test_from_one_rank_to_two_and_back(tmp_path, sharded):
    """A checkpoint can be read by any number of ranks; rows keep their order."""
    whole = run(1, tmp_path / "whole", ema=0.9)
    folder = tmp_path / "moved"
    run(1, folder, steps=4, ema=0.9)
    run(2, folder, steps=8, sharded=sharded, ema=0.9)
    last = run(1, folder, steps=12, ema=0.9)
    assert sorted(last) == list(range(1, 13))
    assert last == pytest.approx(whole, rel=1e-4)


def test_sharded_saves_hold_parts_and_no_pickle(tmp_path):
    """Every rank writes its half, a resumed run has the bits of one that was not stopped, a flipped bit is found."""
    straight = run(2, tmp_path / "straight", sharded={})
    folder = tmp_path / "stopped"
    run(2, folder, steps=6, sharded={})
    assert run(2, folder, steps=12, sharded={}) == straight
    last = checkpoint.latest(folder / "checkpoints", print)
    parts = sorted((last.path / "model").iterdir())
    assert len(parts) == 2
    assert {p.suffix for p in last.path.rglob("*") if p.is_file()} == {".safetensors", ".json"}
    sizes = [p.stat().st_size for p in parts]
    assert max(sizes) < 1.2 * min(sizes)
    other = checkpoint.latest(tmp_path / "straight" / "checkpoints", print)
    for kind in ("model", "optimizer"):
        mine, theirs = last.tensors(kind), other.tensors(kind)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    damaged = bytearray(parts[1].read_bytes())
    damaged[len(damaged) // 2] ^= 4
    parts[1].write_bytes(damaged)
    notes = []
    assert checkpoint.latest(folder / "checkpoints", notes.append).step < last.step
    assert parts[1].name in notes[0]


def fill_the_disk(rank, size, port, folder):
    """Rank 1 cannot write its part; both must hear of it and go on."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    world = parallel.start("cpu")
    j = job(folder, world=world)
    parallel.shard(j.model, j.model.model.layers, world)
    tensors = {"model": {n: p.detach() for n, p in j.model.named_parameters()}, "rng": {"cpu": torch.get_rng_state()}}
    checkpoint.save(folder / "checkpoints", 1, tensors, {"at": 1}, world)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(OSError, match="rank 1"):
        checkpoint.save(folder / "checkpoints", 2, tensors, {"at": 2}, world)
    world.close()


def test_a_disk_that_is_full_for_one_rank(tmp_path):
    for rank, child in enumerate(start_ranks(2, tmp_path, fill_the_disk)):
        assert exit_code(child) == 0, (tmp_path / f"log-{rank}").read_text()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [checkpoint.name_of(1)]
    assert checkpoint.latest(tmp_path / "checkpoints", print).record == {"at": 1}


def test_ranks_of_a_copy_divide_the_ranks():
    with pytest.raises(ValueError, match="does not divide 3 processes"):
        parallel.shard(torch.nn.Linear(2, 2), [], World(0, 3), ranks=2)


@pytest.mark.gpu
def test_offloaded_on_a_gpu_is_the_plain_run(tmp_path):
    """Weights and optimizer in the machine's memory, layers on the GPU; in a process of its own, for the process group."""
    code = textwrap.dedent(f"""
        import torch
        from gangpao.train.step import parallel
        from gangpao.train.step.loss import NextToken
        from gangpao.train.step.optim import Optimizer
        from gangpao.train.config import OptimizerConfig
        from gangpao.model.init import rule_of
        from tests.train.tiny import fit, job, losses
        from pathlib import Path
        both = []
        for offload in (False, True):
            world = parallel.start("cuda", group=offload)
            folder = Path({str(tmp_path)!r}) / str(offload)
            j = job(folder, world=world, objective=NextToken(device=world.device))
            if offload:
                parallel.shard(j.model, j.model.model.layers, world, offload=True)
            else:
                j.model.to(world.device)
            rule = lambda n: rule_of(n, j.model.config)
            j.optimizer = Optimizer(j.model.named_parameters(), rule, OptimizerConfig(lr=0.02))
            fit(j)
            devices = {{p.device.type for p in j.model.parameters()}}
            assert devices == {{"cpu" if offload else "cuda"}}, devices
            both.append(losses(folder))
            world.close()
        one, two = both
        assert all(abs(one[s] - two[s]) < 1e-4 * one[s] for s in one), both
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_lost_rank_ends_the_others(tmp_path):
    children = spawn(2, tmp_path, steps=100_000, save=SaveConfig(every_steps=5, keep_last=2))
    end = time.monotonic() + 60
    while not checkpoint.checkpoints(tmp_path / "checkpoints"):
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(children[1].pid, signal.SIGKILL)
    began = time.monotonic()
    assert exit_code(children[1]) == -signal.SIGKILL
    assert exit_code(children[0]) == 1
    assert time.monotonic() - began < 60
    assert checkpoint.latest(tmp_path / "checkpoints", print) is not None


def test_sigterm_to_one_rank_saves_and_ends_all(tmp_path):
    children = spawn(2, tmp_path, steps=100_000, save=SaveConfig(every_steps=1000))
    end = time.monotonic() + 60
    while not losses(tmp_path) if (tmp_path / "metrics.jsonl").exists() else True:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.kill(children[1].pid, signal.SIGTERM)
    assert [exit_code(child) for child in children] == [0, 0]
    assert checkpoint.latest(tmp_path / "checkpoints", print).step == max(losses(tmp_path))

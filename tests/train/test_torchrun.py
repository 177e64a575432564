"""The command of the documentation, as it is typed: torchrun starts ranks, and starts them again when one is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gangpao.train import pretrain
from gangpao.train.checkpoints import checkpoint
from tests.child import environment
from tests.train.conftest import CONFIGS
from tests.train.tiny import losses, same_end


def torchrun(out, overrides, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *options]
    settings = [word for override in overrides for word in ("--set", override)]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [*command, "-m", "gangpao.cli", "train", str(CONFIGS / "train-tiny.toml"), "--out", str(out), *settings],
            env=environment(OMP_NUM_THREADS="1"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory, configured):
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain.run(CONFIGS / "train-tiny.toml", out, configured("micro_batch_size=2"))
    return losses(out)


@pytest.mark.parametrize("way", [pytest.param("replicate", marks=pytest.mark.slow), "shard"])
def test_torchrun_trains_what_one_process_trains(tmp_path, configured, alone, way):
    out = tmp_path / "run"
    done = torchrun(out, configured(f'parallel="{way}"', "micro_batch_size=2"))
    assert done.wait(120) == 0, out.with_suffix(".log").read_text()
    assert losses(out) == pytest.approx(alone, rel=1e-4)
    assert (out / "export" / "model.safetensors").is_file()


def ranks_of(agent):
    """Processes that a torchrun started, in order."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"gangpao" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_lost_rank_is_started_again_and_no_step_is_missing(tmp_path, configured):
    stages = 'stages=[{name="stable", steps=200}, {name="decay", steps=10, decay=true}]'
    out = tmp_path / "run"
    agent = torchrun(out, configured(stages, "micro_batch_size=2"), "--max-restarts=2")
    end = time.monotonic() + 100
    while not checkpoint.checkpoints(out / "checkpoints"):
        assert agent.poll() is None, out.with_suffix(".log").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(ranks_of(agent)[1], signal.SIGKILL)
    assert agent.wait(200) == 0, out.with_suffix(".log").read_text()
    assert sorted(losses(out)) == list(range(1, 211))
    straight = tmp_path / "straight"
    assert torchrun(straight, configured(stages, "micro_batch_size=2")).wait(200) == 0
    assert same_end(out, straight)

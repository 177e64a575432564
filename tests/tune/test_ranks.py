"""Tuning over ranks of torchrun: what one process learns, whether every rank has the whole base or a part of it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from gangpao.tune import output
from gangpao.tune.admission import admit, plan_of
from gangpao.tune.run import run_config
from tests.child import environment
from tests.tune.test_run import SAID, config_of, folder, gguf, losses, rows, trained  # noqa: F401

PAIRS = ("objective.kind=dpo", "batch_answers=4", "optimizer.lr=0.02", "steps=4")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"colour {i}"}], "chosen": "red", "rejected": "a grey one"}
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(model, data, *more):
    """A run as a configuration, and as words that are typed."""
    said = ("steps=6", "evaluation.every_steps=3", "save.every_steps=3", *more)
    words = ["--model", str(model), "--data", str(data), *(f"--set={one}" for one in (*SAID, *said))]
    return config_of(model, data, *said), words


def torchrun(out, words, *more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "gangpao.cli", "tune", "run", "--out", str(out), *words, *more],
        env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def same(out, alone):
    """As a whole: Adam makes a step of its size of a gradient that is nothing but rounding, so single values may differ."""
    assert losses(out) == pytest.approx(losses(alone), rel=1e-4)
    one, other = trained(alone), trained(out)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert np.linalg.norm(other[name] - values) <= 5e-3 * np.linalg.norm(values), name


@pytest.mark.parametrize(
    ("base", "way"),
    [
        ("folder", "shard"),
        *(pytest.param(b, w, marks=pytest.mark.slow) for b, w in (("gguf", "shard"), ("gguf", "replicate"))),
    ],
)
def test_two_ranks_learn_the_adapter_of_one_process(base, way, request, rows, tmp_path):  # noqa: F811
    model = request.getfixturevalue(base)
    config, words = settings(model, rows)
    run_config(config, model, tmp_path / "alone")
    torchrun(tmp_path / "ranks", words, f'--set=parallel="{way}"')
    same(tmp_path / "ranks", tmp_path / "alone")


def back_to(out, step):
    """As if a run had been stopped behind a checkpoint."""
    for path in (out / "checkpoints").iterdir():
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    shutil.rmtree(out / output.ADAPTER)
    (out / output.GGUF_ADAPTER).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ranks", "alone"])
def test_a_run_goes_on_with_another_number_of_ranks(first, folder, rows, tmp_path):  # noqa: F811
    config, words = settings(folder, rows)
    out = tmp_path / "moved"
    parts = '--set=parallel="shard"'
    run_config(config, folder, tmp_path / "alone")
    if first == "ranks":
        torchrun(out, words, parts)
    else:
        run_config(config, folder, out)
    back_to(out, 3)
    if first == "ranks":
        assert run_config(config, folder, out).begun == 3
    else:
        torchrun(out, words, parts)
    same(out, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "ia3", "dora", "bitfit"])
def test_other_methods_in_parts(kind, folder, rows, tmp_path):  # noqa: F811
    config, words = settings(folder, rows, f'method.kind="{kind}"', "optimizer.lr=0.002")
    run_config(config, folder, tmp_path / "alone")
    torchrun(tmp_path / "ranks", words, '--set=parallel="shard"')
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
    if kind == "full":
        mine, other = (path / output.EXPORT / "model.safetensors" for path in (tmp_path / "ranks", tmp_path / "alone"))
        assert mine.stat().st_size == other.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shard", "replicate"])
def test_preferences_in_parts(way, folder, pairs, tmp_path):  # noqa: F811
    """The reference is the base without its adapter, in parts as well."""
    config, words = settings(folder, pairs, *PAIRS)
    run_config(config, folder, tmp_path / "alone")
    torchrun(tmp_path / "ranks", words, f'--set=parallel="{way}"')
    same(tmp_path / "ranks", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shard", "replicate"])
def test_answers_of_the_model_itself_over_ranks(way, gguf, rows, tmp_path):  # noqa: F811
    """Each rank's engine answers its own prompts, with the whole adapter."""
    grpo = (
        'objective.kind="grpo"', "objective.rewards.contains=1.0", "objective.max_answer_tokens=8", "objective.answers=4",
        "batch_answers=16", "steps=3",
    )  # fmt: skip
    config, words = settings(gguf, rows, *grpo)
    run_config(config, gguf, tmp_path / "alone")
    torchrun(tmp_path / "ranks", words, f'--set=parallel="{way}"')
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3, abs=1e-5)


def test_what_cannot_be_in_parts_is_said(folder, rows):  # noqa: F811
    with pytest.raises(ValueError, match=r'"lean" is for whole weights'):
        config_of(folder, rows, "method.kind=full", "optimizer.kind=lean", 'parallel="shard"')
    with pytest.raises(ValueError, match="shard_ranks is a way to shard"):
        config_of(folder, rows, "shard_ranks=2")


def test_the_plan_of_a_part_is_smaller(folder, rows):  # noqa: F811
    config = config_of(folder, rows, 'parallel="shard"')
    whole, part = plan_of(config, folder), plan_of(config, folder, ranks=4)
    found, less = ({row.name: row.bytes for row in p.rows} for p in (whole, part))
    assert less["optimizer"] == found["optimizer"] // 4
    assert less["weights"] < found["weights"]
    admit(config, folder, torch.device("cpu"), ranks=4)

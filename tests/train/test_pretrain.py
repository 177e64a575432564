"""Pretraining from a TOML file, on data that is made up: run, resume, branch, continue, upcycle, export."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from typer.main import get_command

from gangpao.atomic import locked
from gangpao.config import load_toml
from gangpao.data.build import load_data_config
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.train import command, memory, pretrain
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import TrainConfig, load_train_config
from gangpao.train.progress import read_metrics
from gangpao.train.step.lanes import Lanes
from gangpao.train.step.loss import NextToken
from gangpao.train.step.parallel import World
from gangpao.train.upcycle import upcycle, upcycled
from tests.train.conftest import CONFIGS
from tests.train.tiny import losses, same_end, shape


def run(out, overrides, **options):
    return pretrain.run(CONFIGS / "train-tiny.toml", out, overrides, **options)


@pytest.fixture(scope="module")
def parent(tmp_path_factory, configured):
    out = tmp_path_factory.mktemp("runs") / "parent"
    assert run(out, configured()).step == 12
    return out


def tree(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_a_run_holds_what_it_was_and_exports_what_it_learned(parent, data_dir):
    record = json.loads((parent / "run.json").read_text())
    assert record["config"]["optimizer"]["lr"] == 0.01
    assert record["data"]["fingerprint"]
    assert record["environment"]["torch"] == torch.__version__
    model = weights.load(parent / "export")
    saved = checkpoint.Checkpoint(parent / "checkpoints" / checkpoint.name_of(12)).tensors("model")
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())
    assert model.config.vocab_size == 600
    assert (parent / "export" / "tokenizer.json").is_file()
    ids = json.loads((parent / "export" / "config.json").read_text())
    assert (ids["bos_token_id"], ids["eos_token_id"]) == tuple(
        pretrain.special_ids(parent / "export")[k] for k in ("bos_token_id", "eos_token_id")
    )
    assert losses(parent)[12] < losses(parent)[1]


def test_running_again_changes_nothing_and_another_run_is_refused(parent, configured, tmp_path):
    before = tree(parent / "checkpoints")
    assert run(parent, configured(), resume=True).step == 12
    assert tree(parent / "checkpoints") == before
    with pytest.raises(ValueError, match=r"another optimizer .*0\.01.*0\.5"):
        run(parent, configured("optimizer.lr=0.5"))
    with pytest.raises(ValueError, match="no run here"):
        run(tmp_path / "none", configured(), resume=True)
    with locked(parent), pytest.raises(ValueError, match="another process is training"):
        run(parent, configured())


def test_a_run_from_before_an_option_existed_goes_on(parent, configured, tmp_path):
    out = tmp_path / "old"
    shutil.copytree(parent, out)
    record = json.loads((out / "run.json").read_text())
    for option in ("rules", "offload", "ema"):
        del record["config"][option]
    (out / "run.json").write_text(json.dumps(record))
    assert run(out, configured(), resume=True).step == 12
    with pytest.raises(ValueError, match=r"another ema"):
        run(out, configured("ema=0.9"))


def test_a_lost_tail_is_trained_again_to_the_same_bits(parent, configured, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(parent, copy)
    for path in checkpoint.checkpoints(copy / "checkpoints")[-1:]:
        shutil.rmtree(path)
    run(copy, configured())
    assert same_end(copy, parent)


def test_threads_are_decided_once_and_a_run_goes_on_with_them(configured, tmp_path, monkeypatch):
    """On a machine with other cores, too: to the bits of the run that was not interrupted."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    overrides = [text for text in configured("micro_batch_size=8") if not text.startswith("threads=")]
    monkeypatch.setattr(pretrain.machine, "physical_cores", lambda: 2)
    run(whole, overrides)
    assert json.loads((whole / "run.json").read_text())["config"]["threads"] == 2
    shutil.copytree(whole, parts)
    for path in checkpoint.checkpoints(parts / "checkpoints")[1:]:
        shutil.rmtree(path)
    monkeypatch.setattr(pretrain.machine, "physical_cores", lambda: 5)
    run(parts, overrides)
    assert same_end(whole, parts)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = load_train_config(CONFIGS / "train-tiny.toml")
    assert pretrain.resolved_threads(config).threads == 2  # of five cores, for each of two ranks
    torch.set_num_threads(1)


def test_held_out_losses_do_not_depend_on_lanes(parent, configured, data_dir):
    config = load_train_config(CONFIGS / "train-tiny.toml", tuple(configured()))
    model, built = weights.load(parent / "export"), pretrain.open_built(data_dir)
    found = []
    for lanes in (Lanes(1), Lanes(3)):
        found.append(pretrain.evaluator(model, NextToken(), built, config, lanes)(lambda: False))
        lanes.close()
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_sources_in_any_order_resume(configured, tmp_path):
    """The position is JSON with sorted keys; a mixture in another order than that must find itself in it."""
    mixture = "mixture={talks=0.2, sums=0.3, stories=0.5}"
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    stages = f'stages=[{{name="stable", steps=9, {mixture}}}]'
    run(whole, configured(stages))
    run(stopped, configured(stages))
    for folder in sorted((stopped / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    assert run(stopped, configured(stages), resume=True).step == 9
    assert same_end(stopped, whole)


def test_a_branch_from_the_run_is_its_decay_and_only_reads_it(parent, configured, tmp_path):
    before = tree(parent)
    outcome = run(tmp_path / "branch", configured(f'branch_from="{parent}"', branch=True))
    assert outcome.step == 12
    assert min(losses(tmp_path / "branch")) == 9
    assert same_end(tmp_path / "branch", parent)
    assert tree(parent) == before
    again = run(tmp_path / "branch", configured(f'branch_from="{parent}"', branch=True))
    assert again.step == 12
    decayed = parent / "checkpoints" / checkpoint.name_of(12)
    with pytest.raises(ValueError, match="no checkpoint from before the decay"):
        run(tmp_path / "late", configured(f'branch_from="{decayed}"', branch=True))


def test_training_goes_on_from_any_folder_with_weights(parent, configured, tmp_path):
    run(tmp_path / "more", configured(f'init_from="{parent / "export"}"'))
    assert losses(tmp_path / "more")[1] < losses(parent)[1] - 0.5
    run(tmp_path / "moe", configured(f'init_from="{parent / "export"}"', "upcycle.num_experts=3"))
    assert losses(tmp_path / "moe")[1] == pytest.approx(losses(tmp_path / "more")[1], rel=1e-5)
    assert weights.load(tmp_path / "moe" / "export").config.moe.num_experts == 3
    resumed = run(tmp_path / "moe", configured(f'init_from="{parent / "export"}"', "upcycle.num_experts=3"))
    assert resumed.step == 12


def test_upcycled_is_dense():
    dense = Transformer.build(shape(), seed=2)
    config = upcycled(dense.config, 5, 3)
    with torch.device("meta"):
        model = Transformer(config)
    values = upcycle(config, weights.state(dense), seed=1)
    weights.fill(model, iter(values.items()), dtype=None, device="cpu", where="here")
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).hidden, dense(ids).hidden, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="experts already"):
        upcycled(config, 4)


def test_bits_per_byte_are_nats_by_the_bytes_they_stand_for(parent, configured, data_dir):
    config = load_train_config(CONFIGS / "train-tiny.toml", tuple(configured()))
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"limit_tokens": None})})
    built = pretrain.open_built(data_dir)
    model = weights.load(parent / "export")
    found = pretrain.evaluator(model, NextToken(), built, config, Lanes(1))(lambda: False)
    shards = built.heldout["sums"]
    nats, count = 0.0, 0
    for batch in pretrain.evaluation_batches(shards, config.seq_len, 3):
        with torch.no_grad():
            out = model(torch.from_numpy(batch.ids), documents_BT=torch.from_numpy(batch.documents))
            logits = model.logits(out.hidden).flatten(0, 1)
        labels = torch.from_numpy(batch.labels).flatten()
        nats += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    assert found["sums_nats"] == pytest.approx(nats / count, rel=1e-5)
    assert found["sums_bpb"] == pytest.approx(
        nats / count * shards.num_tokens / shards.num_bytes / math.log(2), rel=1e-5
    )
    assert "talks_bpb" not in found
    assert pretrain.evaluator(model, NextToken(), built, config, Lanes(1))(lambda: True) is None
    lines = [m["heldout"] for m in read_metrics(parent) if isinstance(m.get("heldout"), dict)]
    assert len(lines) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.preset=minicpm-9000b", "there are minicpm-9m"),
        ("model.change.head_dim=7", "RoPE rotates pairs"),
        ("model.change.head_dims=8", "model.change: head_dims: unknown key; did you mean head_dim"),
        ('stages=[{name="a", steps=1, mixture={storys=1}}]', "no source 'storys' in the data; there are"),
        ("batch_tokens=500", "not a multiple of seq_len"),
        ("optimizer.learning_rate=1", "optimizer.learning_rate: unknown key"),
        ("branch_from=nowhere", "no checkpoint from before the decay"),
        ("micro_batch_size=3", "not a multiple of micro_batch_size 3"),
    ],
)
def test_mistakes_are_said_before_training(configured, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", configured(change))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "run.json").exists()


def test_too_little_memory_is_said_with_three_ways_out(configured):
    config = load_train_config(CONFIGS / "train-tiny.toml", ("micro_batch_size=8",))
    large = ModelConfig.model_validate(shape().model_dump() | {"hidden_size": 65_536, "intermediate_size": 1 << 20})
    with pytest.raises(
        ValueError,
        match=r"needs about .* are free. Ways out: --set recompute=true, --set micro_batch_size=4, a smaller model .*=1",
    ):
        memory.admit(large, config, World())
    memory.admit(shape(), config, World())


@pytest.mark.parametrize("name", ["tiny", "nano", "small-gpu"])
def test_the_shipped_configurations_are_whole(name):
    path = CONFIGS / f"train-{name}.toml"
    config = load_train_config(path)
    load_toml(path, TrainConfig)
    wanted = load_data_config(Path(config.data))
    s = config.schedule_from()
    assert s.factor(s.total) == pytest.approx(0.1)
    assert [stage.name for stage in config.stages] == ["stable", "decay"]
    assert all(stage.mixture or wanted.stages[stage.name] for stage in config.stages)
    decay = config.stage_steps()[1] / sum(config.stage_steps())
    assert 0.09 < decay < 0.2  # the report: 10 % of the tokens are enough, 2.5 % are not


def test_the_command_line_runs_by_default(parent, configured, tmp_path, capsys):
    arguments = [str(CONFIGS / "train-tiny.toml"), "--json", "--out", str(parent)]
    for override in configured():
        arguments += ["--set", override]
    get_command(command.app).main(arguments, standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    wanted = {"run": str(parent), "step": 12, "steps": 12, "done": True, "export": str(parent / "export")}
    assert {key: found[key] for key in wanted} == wanted


def test_labels_of_the_real_loader_mean_what_the_loss_thinks(data_dir):
    built = pretrain.open_built(data_dir)
    loader = pretrain.Loader([pretrain.Part("talks", built.train["talks"], 1.0, whole=True)], seq_len=64, seed=0)
    batch = loader.take(4)
    counted = NextToken().measure(batch)
    assert counted[1] == 4 * 64
    assert 0 < counted[0] == int(np.sum(batch.labels >= 0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler still uses torch.jit
def test_compiled_is_plain(parent, configured, tmp_path):
    run(tmp_path / "compiled", configured("compile=true"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(parent), rel=1e-3)

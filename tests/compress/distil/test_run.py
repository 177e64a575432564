"""The step, whole: it comes nearer to its teacher, goes on as if it had never stopped, and needs the teacher once where it keeps
what it said."""

import shutil

import numpy as np
import pytest
import torch

from gangpao.compress.distil import training
from gangpao.compress.distil.config import DistilConfig
from gangpao.compress.distil.run import run_step
from gangpao.compress.prune.masks import read_masks, write_masks
from gangpao.deploy.gguf import export
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.train.progress import read_metrics
from gangpao.tune.base.load import load_base
from tests.compress.models import folder_of, texts_at


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher, a student of fewer layers, and texts."""
    root = tmp_path_factory.mktemp("models")
    teacher = folder_of(root / "teacher", num_hidden_layers=4)
    student = folder_of(root / "student", seed=5, num_hidden_layers=2)
    return teacher, student, texts_at(root / "texts.jsonl")


def config_of(texts, **more):
    return DistilConfig.model_validate(
        {
            "data": {"files": [str(texts)], "heldout": 6}, "tokens": 12 * 128, "batch_tokens": 128, "seq_len": 32,
            "micro_batch_size": 2, "optimizer": {"lr": 3e-3}, "save": {"every_steps": 4, "keep_best": False, "keep_last": 4},
            "evaluation": {"every_steps": 6}, "threads": 1, **more,
        }
    )  # fmt: skip


def tensors(path):
    return dict(weights.tensors(path))


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_masks_of_a_pruned_student_stay(models, tmp_path):
    teacher, student, texts = models
    shutil.copytree(student, tmp_path / "pruned" / "model")
    pruned = tmp_path / "pruned" / "model"
    name = "model.layers.0.mlp.up_proj.weight"
    mask = torch.arange(tensors(pruned)[name].numel()).reshape(tensors(pruned)[name].shape) % 4 < 2
    write_masks(pruned, {name: mask})
    result = run_step(config_of(texts, tokens=2 * 128), pruned, teacher, tmp_path / "out")
    found = tensors(result.path)[name]
    assert (found[~mask] == 0).all()
    assert (found[mask] != tensors(student)[name][mask]).any()
    assert torch.equal(read_masks(result.path)[name], mask)


def test_it_comes_nearer_and_a_stopped_run_goes_on_to_the_same_bits(models, tmp_path):
    teacher, student, texts = models
    config = config_of(texts)
    result = run_step(config, student, teacher, tmp_path / "a")
    assert result.path == tmp_path / "a" / "model"
    before, after = result.facts["heldout_before"], result.facts["heldout_after"]
    assert after["kl"] < 0.9 * before["kl"]
    assert before.keys() == {"kl", "ce", "top1", "teacher_ce"}
    assert result.facts["tokens"] == 12 * 128
    assert weights.load(result.path).config == weights.load(student).config
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    for step in (8, 12):
        shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / f"step-{step:08d}")
    again = run_step(config, student, teacher, tmp_path / "b")
    assert same(result.path, again.path)
    assert again.facts["heldout_after"] == result.facts["heldout_after"]
    third = run_step(config, student, teacher, tmp_path / "b")  # everything is there
    assert same(result.path, third.path)
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0\.003 there, 0\.001 now"):
        run_step(config_of(texts, optimizer={"lr": 1e-3}), student, teacher, tmp_path / "b")


def test_two_lanes_and_other_micro_batches_are_the_same_up_to_rounding(models, tmp_path):
    teacher, student, texts = models
    one = run_step(config_of(texts, tokens=256), student, teacher, tmp_path / "one")
    two = run_step(config_of(texts, tokens=256, threads=2, micro_batch_size=4), student, teacher, tmp_path / "two")
    for name, value in tensors(one.path).items():
        torch.testing.assert_close(tensors(two.path)[name], value, rtol=2e-3, atol=2e-4)


def test_the_teacher_works_once_where_what_it_says_is_kept(models, tmp_path, monkeypatch):
    teacher, student, texts = models
    plain = run_step(config_of(texts), student, teacher, tmp_path / "plain")
    keep = {"top_k": 320, "precision": "float32", "folder": str(tmp_path / "kept")}  # the whole vocabulary
    kept = run_step(config_of(texts, keep=keep), student, teacher, tmp_path / "kept-run")
    assert kept.facts["heldout_after"]["kl"] == pytest.approx(plain.facts["heldout_after"]["kl"], rel=1e-4)
    losses = [
        [m["loss"] for m in read_metrics(path / "run") if "loss" in m]
        for path in (tmp_path / "plain", tmp_path / "kept-run")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    def unavailable(*args, **kwargs):
        raise AssertionError("the teacher was loaded again")

    monkeypatch.setattr(training, "_teacher", unavailable)
    again = run_step(config_of(texts, keep=keep, optimizer={"lr": 1e-3}), student, teacher, tmp_path / "another")
    assert again.facts["heldout_after"]["kl"] < again.facts["heldout_before"]["kl"]


def test_layers_with_a_mapping_and_another_width(models, tmp_path):
    teacher, _, texts = models
    narrow = folder_of(
        tmp_path / "narrow", num_hidden_layers=2, hidden_size=48, intermediate_size=64, num_attention_heads=2
    )
    config = config_of(texts, hidden={"weight": 1.0}, attention={"weight": 0.1, "layers": [[1, 3]]})
    result = run_step(config, narrow, teacher, tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run" / "run") if "hidden" in m]
    assert lines[-1]["hidden"] < lines[0]["hidden"]
    assert lines[-1]["attention"] < lines[0]["attention"]
    assert weights.load(result.path).config.hidden_size == 48  # what was only there to teach it is not in it


def test_files_become_a_file(models, tmp_path):
    teacher, student, texts = models
    for one in (teacher, student):
        export(one, tmp_path / f"{one.name}.gguf", "Q8_0")
    result = run_step(config_of(texts), tmp_path / "student.gguf", tmp_path / "teacher.gguf", tmp_path / "run")
    assert result.path == tmp_path / "run" / "model.gguf"
    with GGUF.open(result.path) as file:
        assert {info.type for info in file.tensors.values()} == {"F32"}
        assert file.get_int("general.file_type") == 0
    assert result.facts["heldout_after"]["kl"] < result.facts["heldout_before"]["kl"]
    base = load_base(result.path, storage="fp32")
    found = [c for c in (tmp_path / "run" / "run" / "checkpoints").iterdir() if c.name.endswith("12")]
    from safetensors.torch import load_file

    trained = load_file(found[0] / "model.safetensors")
    assert all(torch.equal(p, trained[name]) for name, p in base.model.named_parameters())


def test_wrong_wishes_are_refused(models, tmp_path):
    teacher, student, texts = models
    with pytest.raises(ValueError, match="keeps what the teacher says, not what is inside it"):
        config_of(texts, keep={"top_k": 8}, hidden={"weight": 1.0})
    other = folder_of(tmp_path / "other", vocab_size=321)
    with pytest.raises(ValueError, match="take a teacher with the student's tokenizer"):
        run_step(config_of(texts), student, other, tmp_path / "run")
    with pytest.raises(ValueError, match=r"pairs layer 2 of the student \(0 to 1\)"):
        run_step(config_of(texts, hidden={"weight": 1, "layers": [[2, 0]]}), student, teacher, tmp_path / "run2")
    assert not (tmp_path / "run2" / "run" / "run.json").exists()
    with pytest.raises(
        ValueError, match=r"seq_len is 2,048, and .*student reads 512 tokens at most: set seq_len to 512"
    ):
        run_step(config_of(texts, seq_len=2048, batch_tokens=4096, tokens=8192), student, teacher, tmp_path / "run3")
    short = folder_of(tmp_path / "short", max_position_embeddings=16)
    with pytest.raises(ValueError, match=r"seq_len is 32, and .*short reads 16 tokens at most"):
        run_step(config_of(texts), student, short, tmp_path / "run4")


def test_a_student_of_its_own_shape_is_its_teacher(models, tmp_path):
    teacher, _, texts = models
    result = run_step(config_of(texts, tokens=128), teacher, teacher, tmp_path / "run")
    assert result.facts["heldout_before"]["kl"] == pytest.approx(0, abs=1e-6)
    assert result.facts["heldout_before"]["top1"] == 1
    assert isinstance(weights.load(result.path), Transformer)

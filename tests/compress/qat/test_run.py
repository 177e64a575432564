"""The step, whole: the file holds what the last step computed with, to the last bit, and some of what rounding lost is back."""

import shutil

import numpy as np
import pytest
import torch

from gangpao.compress.distil.training import teach
from gangpao.compress.qat.arithmetic import arithmetic_of
from gangpao.compress.qat.config import QatConfig
from gangpao.compress.qat.layers import Rounded
from gangpao.compress.qat.rotate import hadamard, rotated
from gangpao.compress.qat.run import matrices_of, round_model, run_step
from gangpao.deploy.gguf import export
from gangpao.formats.codes import codes
from gangpao.formats.gguf import GGUF
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.tune.base.load import load_base
from tests.compress.models import folder_of, texts_at
from tests.model.tiny import tiny

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 64}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher whose rows are blocks of every type, as a folder and as a file, and texts."""
    root = tmp_path_factory.mktemp("models")
    folder = folder_of(root / "base", kind="llama", **WIDE)
    export(folder, root / "base.gguf", "F32")
    return folder, root / "base.gguf", texts_at(root / "texts.jsonl")


def config_of(texts, **more):
    return QatConfig.model_validate(
        {
            "data": {"files": [str(texts)], "heldout": 6}, "tokens": 8 * 128, "batch_tokens": 128, "seq_len": 32,
            "micro_batch_size": 2, "optimizer": {"lr": 2e-3}, "save": {"every_steps": 4, "keep_best": False, "keep_last": 4},
            "evaluation": {"every_steps": 8}, "threads": 1, "types": {"token_embd.weight": "Q8_0"}, **more,
        }
    )  # fmt: skip


def last_step(config, source, original, out):
    """The model of a run that is over, as its last step computed with it."""
    student = teach(config, source, original, out, lambda base: round_model(base, config), None).student
    return student.model


def logits(model, ids):
    with torch.no_grad():
        return model.logits(model(ids).hidden)


@pytest.mark.parametrize("source", ["folder", "gguf"])
@pytest.mark.parametrize(("to", "train"), [("Q4_0", "weights"), ("TQ2_0", "weights"), ("Q4_1", "scales")])
def test_the_file_is_what_the_last_step_computed_with(models, tmp_path, source, to, train):
    folder, gguf, texts = models
    path = folder if source == "folder" else gguf
    rate = {"lr": 2e-4 if to == "Q4_0" else 2e-3}  # three values lie far from floats
    config = config_of(texts, to=to, train=train, optimizer=rate)
    result = run_step(config, path, path, tmp_path)
    assert result.path == tmp_path / "model.gguf"
    assert result.facts["types"] == {to: 14, "Q8_0": 1}
    model = last_step(config, path, path, tmp_path)
    read = load_base(result.path, storage="fp32").model
    for name, matrix in matrices_of(model).items():
        assert torch.equal(matrix.effective().detach(), read.get_parameter(name).detach()), name
    ids = torch.randint(320, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logits(model, ids), logits(read, ids))
    assert result.facts["heldout_after"]["kl"] < result.facts["heldout_before"]["kl"]
    with GGUF.open(result.path) as file:
        assert file.info("blk.1.ffn_up.weight").type == to
        assert file.info("blk.1.attn_norm.weight").type == "F32"
    beside = tmp_path / ("float" if source == "folder" else "float.gguf")
    floats, name = load_base(beside, storage="fp32").model, "model.layers.0.mlp.up_proj.weight"
    if train == "weights":  # rounded once more they are the file
        assert not torch.equal(floats.get_parameter(name), read.get_parameter(name))
    plain = Rounded(load_base(path, storage="fp32").model.get_parameter(name), arithmetic_of(to)).effective()
    assert not torch.equal(plain, read.get_parameter(name))  # the weights that are written moved


def test_a_stopped_run_goes_on_to_the_same_bytes(models, tmp_path):
    folder, _, texts = models
    config = config_of(texts, threads=2, evaluation={"every_steps": 8, "limit_tokens": 64})
    whole = run_step(config, folder, folder, tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "b" / "run")
    shutil.rmtree(tmp_path / "b" / "run" / "checkpoints" / "step-00000008")
    again = run_step(config, folder, folder, tmp_path / "b")
    assert whole.path.read_bytes() == again.path.read_bytes()
    assert whole.facts["heldout_after"] == again.facts["heldout_after"]


def test_scales_keep_the_integers_of_the_file(models, tmp_path):
    folder, _, texts = models
    quantized = export(folder, tmp_path / "q4.gguf", "Q4_0")
    config = config_of(texts, to="Q4_0", train="scales", types={"token_embd.weight": "Q4_0"}, optimizer={"lr": 2e-3})
    result = run_step(config, quantized, folder, tmp_path / "run")
    with GGUF.open(quantized) as before, GGUF.open(result.path) as after:
        moved = 0
        for name, info in before.tensors.items():
            if info.type != "Q4_0":
                continue
            old, new = (codes(np.array(f.raw(name)), "Q4_0", info.shape[1]) for f in (before, after))
            assert np.array_equal(old.values, new.values), name
            moved += int((old.d != new.d).sum())
        assert moved
    assert result.facts["heldout_after"]["kl"] < result.facts["heldout_before"]["kl"]


def test_a_rotated_model_is_the_same_function_and_its_file_has_its_own_head(models, tmp_path):
    folder, gguf, texts = models
    ids = torch.randint(320, (2, 16), generator=torch.Generator().manual_seed(0))
    for kind in ("minicpm", "qwen2", "qwen3"):
        model = Transformer.build(tiny(kind, hidden_size=96, tie_word_embeddings=True), seed=1)
        for name, p in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(p, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
        before = logits(model, ids)
        torch.testing.assert_close(logits(rotated(model, 7), ids), before, rtol=1e-4, atol=1e-4)
    r = hadamard(96, 3)
    torch.testing.assert_close(r @ r.T, torch.eye(96, dtype=torch.float64))
    config = config_of(texts, to="TQ2_0", rotate=True, types={"token_embd.weight": "Q8_0", "output.weight": "Q8_0"})
    result = run_step(config, folder, folder, tmp_path)
    read = load_base(result.path, storage="fp32").model
    for name, matrix in matrices_of(last_step(config, folder, folder, tmp_path)).items():
        assert torch.equal(matrix.effective().detach(), read.get_parameter(name).detach()), name
    assert not read.config.tie_word_embeddings
    with pytest.raises(ValueError, match="rotate needs a Hugging Face folder"):
        run_step(config, gguf, gguf, tmp_path / "file")


def test_what_has_no_arithmetic_is_refused(models, tmp_path):
    folder, _, texts = models
    with pytest.raises(ValueError, match="no matrix has a name like"):
        run_step(config_of(texts, types={"*nothing*": "Q8_0"}), folder, folder, tmp_path)
    with pytest.raises(ValueError, match="keeps float32 weights behind the rounded ones"):
        config_of(texts, optimizer={"kind": "lean"})
    experts = folder_of(tmp_path / "experts", kind="moe")
    with pytest.raises(ValueError, match="experts, latent attention or Gated DeltaNet"):
        run_step(config_of(texts), experts, experts, tmp_path / "run")
    assert weights.load(folder) is not None

"""Folders with integer weights for servers: what the peer (compressed-tensors in transformers) reads is what we wrote."""

import json

import numpy as np
import pytest
import torch

from gangpao.compress.folders import write as folders
from gangpao.compress.folders.grid import fit, to_bf16
from gangpao.model import weights
from gangpao.model.init import initialize
from gangpao.model.transformer import Transformer
from tests.model.tiny import tiny

SIZES = {"hidden_size": 128, "intermediate_size": 192}  # 64 is the widest group that all rows have whole


@pytest.fixture(params=["int4", "int8"])
def written(request, tmp_path):
    config = tiny("llama", **SIZES)
    model = Transformer(config)
    initialize(model, config, seed=3)
    tensors = weights.state(model)
    path = folders.write(config, tensors, tmp_path / "model", request.param)
    return request.param, tensors, path


def test_our_reader_gives_weights_near_the_floats(written):
    form, tensors, path = written
    found = dict(weights.tensors(path))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if folders.is_packed(name, tensor):
            # A share of the largest value: half a step, or what a smaller scale cuts off.
            top = tensor.abs().amax(dim=1, keepdim=True)
            assert (found[name] - tensor).abs().le(top * (0.31 if form == "int4" else 0.01)).all(), name
            assert (found[name] - tensor).norm() < (0.12 if form == "int4" else 0.01) * tensor.norm(), name
        else:
            assert torch.equal(found[name], tensor.to(torch.bfloat16)), name


def test_transformers_reads_the_same_weights(written):
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    _, _, path = written
    peer = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = weights.load(path, dtype=torch.float32)
    ids = torch.arange(24)[None]
    with torch.inference_mode():
        theirs = peer(ids).logits
        mine = ours.logits(ours(ids).hidden)
    tolerance = 1e-4 if "int4" in _form(path) else 0.1  # W8A8: the peer rounds activations to 8 bits on its way
    assert (theirs - mine).abs().max() < tolerance * mine.abs().max()


def _form(path):
    about = json.loads((path / "config.json").read_text())["quantization_config"]
    return "int4" if about["format"] == "pack-quantized" else "int8"


def test_a_searched_scale_is_never_worse_than_the_plain_one():
    rng = np.random.default_rng(0)
    w = rng.standard_t(3, (40, 300)).astype(np.float32)
    matters = rng.gamma(1.0, 1.0, 300).astype(np.float32)
    for importance in (None, matters):
        grid = fit(w, 4, 128, importance)
        of = np.arange(300) // 128
        weight = np.ones(300) if importance is None else importance
        groups = [w[:, 128 * g : 128 * g + 128] for g in range(3)]
        plain = np.stack([to_bf16(np.abs(part).max(axis=1) / np.float32(7)) for part in groups], axis=1)[:, of]
        q = np.clip(np.rint(w / plain), -8, 7)
        for g in range(3):
            mine = ((grid.q * grid.scale[:, of] - w) ** 2 * weight)[:, of == g].sum(axis=1)
            theirs = ((q * plain - w) ** 2 * weight)[:, of == g].sum(axis=1)
            assert (mine <= theirs * (1 + 1e-5)).all()


def test_importance_moves_the_error_to_where_it_matters_less():
    rng = np.random.default_rng(1)
    w = rng.standard_t(3, (64, 128)).astype(np.float32)
    matters = np.where(np.arange(128) < 16, 100.0, 1.0).astype(np.float32)

    def error(grid):
        return float((((grid.q * grid.scale) - w)[:, :16] ** 2).sum())

    assert error(fit(w, 4, 128, matters)) < 0.9 * error(fit(w, 4, 128))


def test_what_cannot_be_written_is_said(tmp_path):
    config = tiny("llama", **SIZES)
    model = Transformer(config)
    initialize(model, config, seed=3)
    tensors = weights.state(model)
    with pytest.raises(ValueError, match="choose one of int4, int8"):
        folders.write(config, tensors, tmp_path / "a", "int3")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        folders.write(config, tensors, tmp_path / "there", "int4")
    name = "model.layers.1.mlp.up_proj.weight"
    broken = tensors | {name: torch.full_like(tensors[name], torch.inf)}
    with pytest.raises(ValueError, match=f"{name}: row 0"):
        folders.write(config, broken, tmp_path / "b", "int4")
    assert not (tmp_path / "b").exists()

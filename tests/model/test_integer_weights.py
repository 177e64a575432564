"""Folders with integer weights as the lab reads them, in the forms of GPTQ, AWQ and compressed-tensors."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gangpao.formats.integers import bits
from gangpao.model import weights
from gangpao.model.init import initialize
from gangpao.model.transformer import Transformer
from tests.model.tiny import tiny

GROUP = 32
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]


def gptq(q, zero, scale):
    return {
        "qweight": bits.pack(q, 4).T, "qzeros": bits.pack(np.ascontiguousarray(zero.T) - np.int16(1), 4), "scales": scale.T,
        "g_idx": (np.arange(q.shape[1]) // GROUP).astype(np.int32),
    }  # fmt: skip


def awq(q, zero, scale):
    def packed(rows):
        return bits.pack(np.ascontiguousarray(rows.reshape(len(rows), -1, 8)[:, :, AWQ].reshape(len(rows), -1)), 4)

    return {"qweight": packed(q.T), "qzeros": packed(zero.T), "scales": scale.T}


def compressed(q, zero, scale):
    return {
        "weight_packed": bits.pack(q, 4), "weight_zero_point": bits.pack(np.ascontiguousarray(zero.T), 4).T,
        "weight_scale": scale, "weight_shape": np.array(q.shape),
    }  # fmt: skip


WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
FORMS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "compressed-tensors": (
        compressed,
        {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        },
    ),
}  # fmt: skip


@pytest.fixture(params=FORMS)
def folder(request, tmp_path):
    """A folder with packed weights, and the floats that they stand for."""
    form, about = FORMS[request.param]
    config = tiny("llama")
    model = Transformer(config)
    initialize(model, config, seed=1)
    plain, packed = weights.state(model), {}
    rng = np.random.default_rng(0)
    for name, tensor in list(plain.items()):
        if tensor.dim() != 2 or ".layers." not in name:
            packed[name] = tensor
            continue
        rows, cols = tensor.shape
        q = rng.integers(0, 16, (rows, cols)).astype(np.int16)
        zero = rng.integers(1, 15, (rows, cols // GROUP)).astype(np.int16)
        scale = rng.uniform(0.001, 0.01, (rows, cols // GROUP)).astype(np.float16)
        of = np.arange(cols) // GROUP
        dense = (q - zero[:, of]).astype(np.float32) * scale.astype(np.float32)[:, of]
        plain[name] = torch.from_numpy(dense)
        parts = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in form(q, zero, scale).items()}
        packed |= {f"{name.removesuffix('.weight')}.{key}": value for key, value in parts.items()}
    path = tmp_path / "packed"
    weights.save(path, config, plain, about={"quantization_config": about})
    save_file(packed, path / "model.safetensors")
    return path, plain


def test_weights_are_the_floats_they_stand_for(folder):
    path, plain = folder
    found = dict(weights.tensors(path))
    assert found.keys() == plain.keys()
    assert [name for name, tensor in plain.items() if not torch.equal(found[name], tensor)] == []


def test_the_model_computes_with_them(folder):
    path, plain = folder
    model = weights.load(path, dtype=torch.float32)
    wanted = Transformer(model.config)
    weights.fill(wanted, iter(plain.items()), dtype=torch.float32, device="cpu", where="test")
    ids = torch.arange(20)[None]
    assert torch.equal(model.logits(model(ids).hidden), wanted.logits(wanted(ids).hidden))


def test_an_incomplete_matrix_is_named(folder):
    path, _ = folder
    held = load_file(path / "model.safetensors")
    gone = next(name for name in held if name.endswith(("scales", "weight_scale")))
    del held[gone]
    save_file(held, path / "model.safetensors")
    with pytest.raises(ValueError, match=gone.rpartition(".")[0]):
        dict(weights.tensors(path))


def test_packed_weights_of_no_matrix_are_named(folder):
    path, _ = folder
    held = load_file(path / "model.safetensors")
    some = next(name for name in held if name.endswith(("qweight", "weight_packed")))
    held[some.replace("layers.0", "layers.9")] = held[some].clone()
    save_file(held, path / "model.safetensors")
    with pytest.raises(ValueError, match="no matrix of this model"):
        dict(weights.tensors(path))


def test_a_form_that_is_not_read_is_refused_before_weights_are(folder):
    path, _ = folder
    about = json.loads((path / "config.json").read_text())
    about["quantization_config"] = {"quant_method": "hqq"}
    (path / "config.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="hqq"):
        weights.load(path)

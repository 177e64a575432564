"""A base from a folder in every storage, what belongs to it, and what is said of one that is incomplete."""

import hashlib

import pytest
import torch

from gangpao.machine import cpu_flags
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.tune.base.device import Device, compute_dtype, describe
from gangpao.tune.base.load import base_shape, load_base, sha256_of
from gangpao.tune.base.quantized import QuantizedLinear
from tests.model.tiny import tiny
from tests.text.hf_folder import write_byte_level

IDS = torch.randint(0, 300, (1, 24), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def folder(tmp_path):
    def make(dtype=torch.bfloat16, kind="minicpm", **fields):
        model = Transformer.build(tiny(kind, **fields), seed=3).to(dtype)
        path = weights.save(tmp_path / "base", model.config, weights.state(model), shard_bytes=100_000)
        write_byte_level(path)
        return path

    return make


def logits_of(model, dtype=torch.float32):
    with torch.no_grad():
        return model.logits(model(IDS, dtype=dtype).hidden)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_folder_stays_as_it_is(folder, stored):
    path = folder(stored)
    base = load_base(path)
    assert {p.dtype for p in base.model.parameters()} == {stored}
    assert base.storage == ("bf16" if stored == torch.bfloat16 else "fp32")
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.config == base_shape(path) == base.model.config
    expected = logits_of(weights.load(path, dtype=torch.float32))
    torch.testing.assert_close(logits_of(base.model), expected, rtol=1e-5, atol=1e-5)
    assert base.tokenizer.decode(base.tokenizer.encode("ab")) == "ab"
    files = sorted(path.glob("*.safetensors"))
    assert len(files) > 1
    assert base.sha256 == hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
    assert sha256_of(files[:1]) == hashlib.sha256(files[0].read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "moe", "mla"])
@pytest.mark.parametrize("storage", ["fp32", "bf16", "fp16", "nf4"])
def test_every_storage_is_near_the_folder(folder, kind, storage):
    path = folder(torch.float32, kind)
    base = load_base(path, storage=storage)
    error = (logits_of(base.model) - logits_of(weights.load(path))).abs().max() / logits_of(
        weights.load(path)
    ).abs().max()
    assert error < {"fp32": 1e-6, "bf16": 0.02, "fp16": 0.003, "nf4": 0.6}[storage]
    in_blocks = [m for m in base.model.modules() if isinstance(m, QuantizedLinear)]
    assert bool(in_blocks) == (storage == "nf4")
    assert storage in base.storage


def test_what_is_wrong_is_said(folder, tmp_path):
    path = folder(torch.float32)
    with pytest.raises(ValueError, match="'int3' is not known; choose one of auto, fp32"):
        load_base(path, storage="int3")
    with pytest.raises(ValueError, match="no such folder or file"):
        load_base(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_base(tmp_path)
    tensors = dict(weights.tensors(path))
    for change, what in (
        ({"model.layers.1.mlp.up_proj.weight": None}, r"1 tensors are missing \(model.layers.1.mlp.up_proj.weight\)"),
        ({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 64)}, r"has shape \[3, 64\]"),
        ({"model.layers.1.mlp.up_proj.weight": torch.full((96, 64), torch.nan)}, "no number"),
        ({"model.norm.weight": None}, r"missing \(model.norm.weight\)"),
    ):
        left = {k: v for k, v in (tensors | change).items() if v is not None}
        made = weights.save(tmp_path / "_".join(map(str, [len(left), hash(what)])), base_shape(path), left)
        with pytest.raises(ValueError, match=what):
            load_base(made, storage="nf4")


def test_a_device_computes_in_what_it_is_good_at(tmp_path):
    gtx_1080_ti, titan_v, rtx_2080, a100, rtx_4090 = ((6, 1), (7, 0), (7, 5), (8, 0), (8, 9))
    for capability in (gtx_1080_ti, titan_v, rtx_2080, None):
        assert compute_dtype(Device("cuda", capability=capability)) == torch.float32
    for capability in (a100, rtx_4090):
        assert compute_dtype(Device("cuda", capability=capability)) == torch.bfloat16
    assert compute_dtype(Device("cpu", flags=frozenset({"avx2", "avx512f"}))) == torch.float32
    for flag in ("amx_bf16", "avx512_bf16", "bf16"):
        assert compute_dtype(Device("cpu", flags=frozenset({"avx2", flag}))) == torch.bfloat16
    assert compute_dtype(Device("mps")) == torch.float32
    assert describe("cpu").flags == cpu_flags()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nFeatures\t: fp asimd bf16\n")
    assert cpu_flags(tmp_path) == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()

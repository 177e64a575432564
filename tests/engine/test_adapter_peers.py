"""The engine with an adapter, torch with the adapter and llama.cpp with the adapter: one model."""

import numpy as np
import pytest
import torch

from gangpao.deploy import gguf as writer
from gangpao.engine.generate import Engine
from gangpao.engine.weights import rotate_half_order
from gangpao.formats.adapters import Adapter
from gangpao.formats.architectures import LAYER_TENSORS
from gangpao.model import weights
from tests.engine.adapters import EVERY, random_adapter
from tests.formats.gguf_maker import tensor_bytes, vocabulary, write_gguf
from tests.llama_oracle import LlamaOracle
from tests.model.test_transformer import build

VOCAB = 320
IDS = torch.randint(0, VOCAB - 2, (1, 40), generator=torch.Generator().manual_seed(2))
LIMIT = 1e-3
CASES = [
    ("llama", {}, EVERY), ("llama", {"tie_word_embeddings": False}, (*EVERY, "lm_head")),
    ("minicpm", {"scale_emb": 7.5, "scale_depth": 1.1, "dim_model_base": 16}, EVERY), ("qwen2", {}, EVERY),
]  # fmt: skip


def torch_logprobs(model, adapter: Adapter):
    """Of the token behind IDS, with every part added to its weight."""
    with torch.no_grad():
        for name, part in adapter.parts.items():
            model.get_submodule(name).weight += torch.from_numpy(part.delta())
        return model.lm_head(model(IDS).hidden)[0, -1].log_softmax(-1).numpy()


def gguf_adapter(path, adapter: Adapter, config):
    """The adapter as llama.cpp reads it: scales in B, alpha = rank, rows of q and k in the file's order."""
    metadata = {"general.type": "adapter", "general.architecture": config.architecture, "adapter.type": "lora"}
    tensors = {}
    for name, part in adapter.parts.items():
        if name == "lm_head":
            tensor = "output.weight"
        else:
            _, _, layer, module = name.split(".", 3)
            tensor = f"blk.{layer}.{LAYER_TENSORS[module]}.weight"
        b = part.b * np.float32(part.scale)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-1])
        if heads and config.row.gguf.interleaved:
            there = np.empty_like(b)
            there[rotate_half_order(heads, config.head_dim, config.rope_dim)] = b
            b = there
        for suffix, m in (("lora_a", part.a), ("lora_b", b)):
            tensors[f"{tensor}.{suffix}"] = ("F32", m.shape, tensor_bytes("F32", m))
    return write_gguf(path, metadata | {"adapter.lora.alpha": float(part.rank)}, tensors)


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(("kind", "fields", "modules"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_torch_engine_and_llama_cpp_agree_with_an_adapter(kind, fields, modules, tmp_path):
    model = build(kind, **fields)
    path = writer.write(tmp_path / "m.gguf", model.config, weights.state(model), vocabulary(VOCAB), "F32")
    engine = Engine.load(path, context=256, num_threads=1, float32=True)
    adapter = random_adapter(engine.model.config, 4, modules=modules, size=0.3)
    engine.model.add_adapter("a", adapter)
    engine.use({"a": None})
    base = engine.session({}).feed(IDS[0].tolist())
    ours = engine.session().feed(IDS[0].tolist()).astype(np.float64)
    expected = torch_logprobs(model, adapter)
    assert np.abs(ours - base).max() > 0.1 * np.abs(base).max(), "the adapter does nothing"
    assert distance(ours - np.logaddexp.reduce(ours), expected) < LIMIT
    there = gguf_adapter(tmp_path / "a.gguf", adapter, engine.model.config)
    with LlamaOracle(path, n_ctx=256, kv="F32", adapter=there) as oracle:
        assert distance(oracle.vector(IDS[0].tolist(), VOCAB), expected) < LIMIT

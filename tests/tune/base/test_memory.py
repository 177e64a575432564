"""A step of an adapter over a base in blocks keeps no float copy of the base: live tensors are counted at every operation."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gangpao.data.tokens.pack import Batch
from gangpao.deploy import gguf as writer
from gangpao.model import weights
from gangpao.model.layers import Linear, replace_linears
from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import NextToken
from gangpao.tune.base.load import load_base
from tests.formats.gguf_maker import vocabulary
from tests.model.tiny import tiny

RANK = 4


class LiveTensors(TorchDispatchMode):
    """Bytes of the storages that operations gave back and that are still there, besides those of `known`; `peak`: the most."""

    def __init__(self, known=()):
        super().__init__()
        self.known, self.live = {t.untyped_storage()._cdata for t in known}, {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self._see(t.untyped_storage())
        return out

    def _see(self, storage):
        key = storage._cdata
        if key not in self.live and key not in self.known:
            self.live[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, key)
        self.peak = max(self.peak, self.now)

    def _gone(self, key):
        self.now -= self.live.pop(key)


class Adapter(Linear):
    """LoRA as the methods have it: the layer below, and a product of rank RANK."""

    def __init__(self, below):
        torch.nn.Module.__init__(self)
        self.below = below
        self.a = torch.nn.Parameter(torch.randn(RANK, below.in_features) * 0.02)
        self.b = torch.nn.Parameter(torch.zeros(below.out_features, RANK))

    def forward(self, x):
        return self.below(x) + (x @ self.a.T) @ self.b.T


def test_the_count_follows_what_is_there():
    known = torch.ones(10)
    with LiveTensors([known]) as seen:
        a = torch.empty(1000)
        b = a[:10] + known.view(10)
        assert (seen.now, seen.peak) == (4040, 4040)
        del a
        assert (seen.now, seen.peak) == (40, 4040)
        del b
        assert seen.now == 0


def step(model, length, vocabulary_size, recompute=True):
    """Forward and backward pass of one row; the peak of what is live besides what was there before, and the loss."""
    ids = np.random.default_rng(0).integers(0, vocabulary_size, (1, length + 1))
    documents = np.zeros((1, length), np.int64)
    batch = Batch(ids[:, :-1], ids[:, 1:], documents)
    objective = NextToken(dtype=torch.float32, recompute=recompute)
    gc.collect()
    with LiveTensors(model.parameters()) as seen:
        terms = objective(model, batch, 1 / length)
        terms.loss.backward()
    return seen.peak, float(terms.loss.detach())


def with_adapters(base):
    replace_linears(base.model, lambda name, linear: None if name == "lm_head" else Adapter(linear))
    return base.model


def activations(config, length):
    """A generous bound: inputs of all layers, and of one layer everything between, twice."""
    layer = 12 * config.hidden_size + 6 * config.intermediate_size + 2 * config.num_attention_heads * length
    return 4 * length * (config.hidden_size * (config.num_hidden_layers + 8) + 2 * layer)


@pytest.mark.parametrize("kind", ["Q4_0", "BF16"])
def test_no_floats_of_the_base_are_live(tmp_path, kind):
    config = tiny("llama", vocab_size=2048, hidden_size=256, intermediate_size=704, num_hidden_layers=4, head_dim=64)
    floats = Transformer.build(config, seed=1)
    fields = vocabulary(config.vocab_size)
    path = writer.write(tmp_path / "a.gguf", config, weights.state(floats), fields, kind, check=False)
    base = load_base(path)
    peak, loss = step(with_adapters(base), 16, config.vocab_size)
    all_floats = sum(p.nbytes for p in floats.parameters())
    assert all_floats > 13e6
    scratch, adapters = 5 << 20, sum(p.nbytes for p in base.model.parameters())  # a tile of the head and one of a layer
    assert peak < activations(config, 16) + scratch + adapters < all_floats / 2
    dense = load_base(path, storage="fp32")
    assert loss == pytest.approx(step(with_adapters(dense), 16, config.vocab_size)[1], rel=1e-5)


def test_nor_are_those_of_a_base_in_bf16():
    """Also where all layers keep what they need for the backward pass."""
    config = tiny("qwen2", vocab_size=1024, hidden_size=256, intermediate_size=704, num_hidden_layers=8, head_dim=64)
    model = Transformer.build(config, seed=1).bfloat16().requires_grad_(False)
    floats_of_layers = 2 * sum(p.nbytes for p in model.model.layers.parameters())
    replace_linears(model, lambda name, linear: None if name == "lm_head" else Adapter(linear))
    peak, _ = step(model, 8, config.vocab_size, recompute=False)
    assert peak < floats_of_layers / 3


def test_a_step_over_smollm2_keeps_none(model_path):
    base = load_base(model_path("smollm2-135m"))
    config, length = base.config, 64
    peak, loss = step(with_adapters(base), length, config.vocab_size)
    scratch, adapters = 8 << 20, sum(p.nbytes for p in base.model.parameters())
    assert peak < activations(config, length) + scratch + adapters < 0.2 * 4 * 134.5e6
    assert 2 < loss < 30

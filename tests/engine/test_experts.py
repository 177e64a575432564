"""Experts in the engine: the same bits in any company, only the chosen ones read; memory as it is estimated."""

import numpy as np
import pytest

from gangpao import kernels
from gangpao.engine import exact, memory
from gangpao.engine.config import ModelConfig
from gangpao.engine.transformer import Segment, Transformer
from gangpao.formats.gguf import GGUF, ModelFileError
from tests.engine.adapters import random_adapter
from tests.engine.test_exact import IDS, SHAPE, check_ways
from tests.formats.gguf_maker import random_model

KINDS = ["Q4_K", "Q8_0", "Q6_K", "Q4_0", "F16", "F32"]
pytestmark = pytest.mark.usefixtures("same_kernels_afterwards")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return random_model(folder / "m.gguf", "minicpm", seed=4, kind=KINDS, experts=(8, 2), **SHAPE)


@pytest.fixture(scope="module")
def model(path):
    with GGUF.open(path) as gguf:
        loaded = Transformer.load(gguf)
        yield loaded
        del loaded


def test_every_way_through_a_prompt_has_the_same_bits(model):
    check_ways(model, IDS)


def test_a_token_at_a_time_and_all_logits_are_equal(model):
    cache = model.new_cache(40)
    rows = model.forward(IDS[:40], model.new_cache(40), all_logits=True)
    for row, token in zip(rows, IDS[:40], strict=True):
        assert np.array_equal(model.forward([token], cache), row)


def test_a_sequence_has_the_same_bits_whatever_runs_beside_it(model):
    pool = model.new_pool(128, tokens=1024)
    texts = [IDS[:30], IDS[30:31], IDS[40:47], IDS[50:100]]
    alone = [model.forward(text, pool.new(), all_logits=True) for text in texts]
    caches = [pool.new() for _ in texts]
    assert all(cache.reserve(len(text)) for cache, text in zip(caches, texts, strict=True))
    together = model.step([Segment(c, text, len(text)) for c, text in zip(caches, texts, strict=True)])
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a, b)


def test_threads_and_instruction_sets_are_equal(model):
    seen = {}
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 3):
            kernels.set_num_threads(threads)
            cache = model.new_cache(40)
            seen[isa, threads] = [model.forward(IDS[:30], cache), model.forward(IDS[30:31], cache)]
    first = next(iter(seen.values()))
    assert [k for k, v in seen.items() if not np.array_equal(v, first)] == []


def test_only_the_chosen_experts_are_read(model, monkeypatch):
    """Of every layer two MLPs for one token, and all logits would be other ones without the router."""
    used = []
    real = kernels.swiglu
    monkeypatch.setattr(kernels, "swiglu", lambda *a: (used.append(1), real(*a))[1])
    model.forward(IDS[:1], model.new_cache(8))
    assert len(used) == 2 * model.config.num_hidden_layers
    experts = [mlp for layer in model.weights.layers for mlp in layer.mlps]
    assert model.bytes_per_token == model.nbytes - sum(mlp.nbytes for mlp in experts) * 6 // 8


@pytest.mark.parametrize("float32", [False, True])
def test_the_estimate_is_what_packing_takes(path, float32):
    with GGUF.open(path) as gguf:
        config = ModelConfig.from_gguf(gguf)
        loaded = Transformer.load(gguf, float32=float32)
        estimated = memory.estimate(gguf, config, 64, "f16", float32=float32).weights
        vectors = sum(t.nbytes for t in gguf.tensors.values() if len(t.shape) == 1)
        assert loaded.nbytes <= estimated - vectors <= loaded.nbytes * 1.001 + 4096
        del loaded


def test_adapters_of_attention_work_and_those_of_experts_are_refused(path):
    with GGUF.open(path) as gguf:
        model = Transformer.load(gguf)
        before = model.forward(IDS[:20], model.new_cache(32))
        model.add_adapter("a", random_adapter(model.config, 1, modules=("q_proj", "o_proj")))
        mix = model.adapters.mix({"a": None})
        assert np.array_equal(model.forward(IDS[:20], model.new_cache(32)), before)
        assert not np.array_equal(model.forward(IDS[:20], model.new_cache(32, "f16", mix)), before)
        with pytest.raises(
            ValueError, match=r"mlp.up_proj, and experts are computed without adapters; .*gangpao merge"
        ):
            model.add_adapter("b", random_adapter(model.config, 1, modules=("up_proj",)))
        del model


def test_an_expert_for_itself_is_a_form_that_is_not_read(tmp_path):
    header = {"llama.expert_count": 2, "llama.expert_used_count": 1}
    alone = {"blk.0.ffn_gate_inp.weight": np.zeros((2, 64)), "blk.0.ffn_gate.0.weight": np.zeros((96, 64))}
    path = random_model(tmp_path / "m.gguf", "llama", extra=header, extra_tensors=alone)
    with GGUF.open(path) as gguf, pytest.raises(ModelFileError, match="a form of 2023"):
        Transformer.load(gguf)


def test_the_softmax_of_the_largest_is_that_of_all_renormalised():
    logits = np.random.default_rng(3).normal(0, 3, (50, 9)).astype(np.float32)
    logits[7, 2] = logits[7, 5] = 20  # of equal ones the first
    logits[9] = 0
    chosen, weights = exact.top_softmax(logits, 3)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    expected = np.take_along_axis(p, chosen, axis=1)
    np.testing.assert_allclose(weights, expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)
    assert chosen[7].tolist()[:2] == [2, 5]
    assert chosen[9].tolist() == [0, 1, 2]
    assert np.array_equal(np.sort(p, axis=1)[:, :-4:-1], expected)
    chosen, weights = exact.top_softmax(np.array([[1, np.nan], [2, 1]], np.float32), 1)
    assert np.isnan(weights[0, 0])
    assert (chosen[1, 0], weights[1, 0]) == (0, 1)

"""What must be equal to the last bit: ways through a prompt, numbers of threads, instruction sets; and what is refused."""

import hashlib
import itertools

import numpy as np
import pytest

from gangpao import kernels
from gangpao.engine.transformer import CHUNK, Transformer, greedy
from gangpao.formats.gguf import GGUF, ModelFileError
from tests.formats.gguf_maker import gguf_bytes, random_model, tensor_bytes

KINDS = [
    "Q4_0",
    "Q8_0",
    "Q4_K",
    "Q6_K",
    "Q5_K",
    "Q3_K",
    "Q2_K",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL",
    "IQ4_XS",
    "F16",
    "BF16",
    "F32",
]
SHAPE = {
    "hidden_size": 256,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "num_layers": 3,
}
# Of the logits of the models `mixed` below, the same on every machine: AMD and Intel, with and without AVX-512 and AMX, ARM.
# A change here is a change of what is computed; say why in the commit.
DIGESTS = {
    ("llama", "f16"): "2ab3661ef8109e3c", ("llama", "int8"): "6f8af284e7271e76", ("qwen3", "f16"): "5698f2da740f770c",
    ("qwen3", "int8"): "262177042d9c5087", ("qwen2", "f16"): "4fe63d7bbf004e48", ("qwen2", "int8"): "e13836192ef750c2",
    ("llama", "int4"): "db5f996bba697a95", ("qwen3", "int4"): "9d0a6a330ef5476a", ("qwen2", "int4"): "c7de50cbcfbb54d1",
}  # fmt: skip
IDS = np.random.default_rng(2).integers(0, 318, CHUNK + 44)


pytestmark = pytest.mark.usefixtures("same_kernels_afterwards")


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen2"])
def mixed(request, tmp_path_factory):
    """A random model in which every weight type occurs."""
    path = tmp_path_factory.mktemp("mixed") / "m.gguf"
    random_model(path, request.param, seed=9, kind=KINDS, tied=False, **SHAPE)
    with GGUF.open(path) as gguf:
        model = Transformer.load(gguf)
        yield model
        del model


def check_ways(model, ids, dtype="f16"):
    """Every way to bring `ids` into the cache gives the same last logits; returns them."""
    whole = model.forward(ids, model.new_cache(len(ids), dtype))
    assert np.isfinite(whole).all()
    assert whole.std() > 0.01
    for pieces in (
        [len(ids) // 2],
        [1, 2, 5, 13, 14, 31],
        [len(ids) - 1],
        range(CHUNK, len(ids), CHUNK),
        [len(ids) - 9],
    ):
        cache = model.new_cache(len(ids) + 3, dtype)
        edges = [0, *pieces, len(ids)]
        for a, b in itertools.pairwise(edges):
            last = model.forward(ids[a:b], cache)
        assert np.array_equal(last, whole), f"pieces at {list(pieces)}"
    return whole


@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_prefill_whole_in_pieces_and_cached_are_equal(mixed, dtype):
    check_ways(mixed, IDS, dtype)


def test_one_token_at_a_time_is_equal(mixed):
    cache = mixed.new_cache(32)
    for token in IDS[:32]:
        last = mixed.forward([token], cache)
    assert np.array_equal(last, mixed.forward(IDS[:32], mixed.new_cache(32)))


def test_after_a_cut_the_cache_is_as_before(mixed):
    cache = mixed.new_cache(64)
    mixed.forward(IDS[:20], cache)
    first = mixed.forward(IDS[20:30], cache)
    mixed.forward(IDS[30:64], cache)
    cache.truncate(20)
    assert np.array_equal(mixed.forward(IDS[20:30], cache), first)


def test_all_logits_are_those_of_single_forwards(mixed):
    rows = mixed.forward(IDS[:40], mixed.new_cache(40), all_logits=True)
    assert rows.shape == (40, mixed.config.vocab_size)
    for n in (1, 2, 16, 17, 33, 40):
        assert np.array_equal(rows[n - 1], mixed.forward(IDS[:n], mixed.new_cache(n)))


def test_all_logits_across_chunks(mixed):
    rows = mixed.forward(IDS, mixed.new_cache(len(IDS)), all_logits=True)
    for n in (CHUNK, CHUNK + 1, len(IDS)):
        assert np.array_equal(rows[n - 1], mixed.forward(IDS[:n], mixed.new_cache(n)))


@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_threads_and_instruction_sets_are_equal(mixed, dtype):
    seen = {}
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads in (1, 2, 3, 4):
            kernels.set_num_threads(threads)
            cache = mixed.new_cache(60, dtype)
            prompt = mixed.forward(IDS[:50], cache)
            seen[isa, threads] = np.stack([prompt] + [mixed.forward(IDS[i : i + 1], cache) for i in range(50, 56)])
    first = next(iter(seen.values()))
    assert [k for k, v in seen.items() if not np.array_equal(v, first)] == []
    found = hashlib.sha256(first.astype("<f4").tobytes()).hexdigest()[:16]
    assert found == DIGESTS[mixed.config.architecture, dtype], "not the bits of other machines"


def test_int8_cache_is_close_to_f16(mixed):
    a = mixed.forward(IDS[:100], mixed.new_cache(100, "f16"))
    b = mixed.forward(IDS[:100], mixed.new_cache(100, "int8"))
    assert not np.array_equal(a, b)
    assert np.abs(a - b).max() < 0.08 * np.abs(a).max()


def test_two_caches_do_not_disturb_each_other(mixed):
    alone = mixed.forward(IDS[10:20], mixed.new_cache(16))
    one, two = mixed.new_cache(16), mixed.new_cache(16)
    for i in range(10):
        a = mixed.forward(IDS[i : i + 1], one)
        b = mixed.forward(IDS[10 + i : 11 + i], two)
    assert np.array_equal(b, alone)
    assert np.array_equal(a, mixed.forward(IDS[:10], mixed.new_cache(16)))


def test_smollm2_is_equal_in_every_way(model_path):
    with GGUF.open(model_path("smollm2-135m")) as gguf:
        model = Transformer.load(gguf)
        ids = np.random.default_rng(3).integers(100, 40000, 70)
        whole = check_ways(model, ids[:40])
        for isa in kernels.available_isas():
            kernels.set_isa(isa)
            for threads in (1, 2):
                kernels.set_num_threads(threads)
                assert np.array_equal(model.forward(ids[:40], model.new_cache(40)), whole), (isa, threads)
        int8 = model.forward(ids[:40], model.new_cache(40, "int8"))
        assert int8.argmax() == whole.argmax()
        assert np.abs(int8 - whole).max() < 0.05 * np.abs(whole).max()
        del model


# --- what is refused


@pytest.fixture
def small(tmp_path):
    with GGUF.open(random_model(tmp_path / "m.gguf", "llama")) as gguf:
        model = Transformer.load(gguf)
        yield model
        del model


@pytest.mark.parametrize("ids", [[-1], [320], [3, 4, 1 << 40], [5, -(1 << 62)]])
def test_ids_outside_the_vocabulary_are_refused(small, ids):
    cache = small.new_cache(8)
    with pytest.raises(ValueError, match="outside the vocabulary of 320"):
        small.forward(ids, cache)
    assert cache.length == 0


@pytest.mark.parametrize("ids", [[], [[1, 2]]])
def test_no_ids_are_refused(small, ids):
    with pytest.raises(ValueError, match="at least one token id"):
        small.forward(ids, small.new_cache(8))


def test_a_full_cache_is_refused_and_stays_as_it_was(small):
    cache = small.new_cache(8)
    small.forward(IDS[:6], cache)
    with pytest.raises(ValueError, match="6 cached and 3 new tokens do not fit into a context of 8"):
        small.forward(IDS[6:9], cache)
    last = small.forward(IDS[6:8], cache)
    assert np.array_equal(last, small.forward(IDS[:8], small.new_cache(8)))


def test_a_cache_of_an_unknown_type_or_no_size_is_refused(small):
    with pytest.raises(ValueError, match="f16, int8 or int4"):
        small.new_cache(8, "q4")
    with pytest.raises(ValueError, match="holds nothing"):
        small.new_cache(0)


def test_a_stop_between_chunks_leaves_whole_chunks(small):
    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    cache = small.new_cache(len(IDS))
    with pytest.raises(Stop):
        small.forward(IDS, cache, on_progress=stop)
    assert cache.length == CHUNK
    last = small.forward(IDS[CHUNK:], cache)
    assert np.array_equal(last, small.forward(IDS, small.new_cache(len(IDS))))


def test_greedy_takes_the_most_likely(small):
    first, second = greedy(small, IDS[:5], 2)
    logits = small.forward(IDS[:5], small.new_cache(8))
    assert first == logits.argmax()
    assert second == small.forward([*IDS[:5], first], small.new_cache(8)).argmax()


def load(path):
    with GGUF.open(path) as gguf:
        Transformer.load(gguf)


def changed(tmp_path, metadata=None, tensors=None, without=(), arch="llama", **options):
    """A random model whose metadata or tensors are replaced; returns its path."""
    path = random_model(tmp_path / "m.gguf", arch, **options)
    with GGUF.open(path) as g:
        keys = dict(g.metadata) | (metadata or {})
        keys = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in keys.items() if k not in without}
        parts = {n: (t.type, t.shape, g.raw(n).tobytes()) for n, t in g.tensors.items() if n not in without}
    parts |= {n: ("F32", v.shape, tensor_bytes("F32", v)) for n, v in (tensors or {}).items()}
    path.write_bytes(gguf_bytes(keys, parts))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"without": ["blk.1.ffn_down.weight"]}, "blk.1.ffn_down.weight is missing"),
        ({"without": ["output_norm.weight"]}, "output_norm.weight is missing"),
        ({"without": ["token_embd.weight"]}, "token_embd.weight .* is missing"),
        ({"tensors": {"blk.0.attn_k.weight": np.ones((64, 64))}}, r"blk.0.attn_k.weight has shape \(64, 64\)"),
        ({"tensors": {"token_embd.weight": np.ones((320, 32))}}, "token_embd.weight .* another shape"),
        ({"tensors": {"output_norm.weight": np.ones(63)}}, r"output_norm.weight has shape \(63,\)"),
        ({"tensors": {"rope_freqs.weight": np.ones(7)}}, r"rope_freqs.weight has shape \(7,\), expected \(8,\)"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(63)}}, "blk.0.attn_q.bias has shape"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((4, 64))}}, "1 tensors have no place .*ffn_gate_inp"),
        ({"tensors": {"blk.2.attn_norm.weight": np.ones(64)}}, "have no place .*blk.2.attn_norm"),
        ({"metadata": {"general.architecture": "mamba"}}, "'mamba' is not supported; .*minicpm"),
        ({"without": ["general.architecture"]}, "general.architecture is missing"),
        ({"metadata": {"general.architecture": 5}}, "expected a string"),
        ({"without": ["llama.block_count"]}, "llama.block_count is missing"),
        ({"metadata": {"llama.block_count": 2.5}}, "block_count is a float, expected an integer"),
        ({"metadata": {"llama.block_count": 0}}, "block_count is 0, it must be positive"),
        ({"metadata": {"llama.attention.head_count": [4, 2]}}, "expected an integer"),
        ({"metadata": {"llama.attention.head_count_kv": 3}}, "4 attention heads cannot share 3"),
        ({"metadata": {"llama.attention.key_length": 24}}, "not a multiple of 16"),
        ({"metadata": {"llama.rope.dimension_count": 18}}, "does not fit head_dim"),
        ({"metadata": {"llama.rope.dimension_count": 7}}, "does not fit head_dim"),
        ({"metadata": {"llama.rope.freq_base": 0.5}}, "out of range"),
        ({"metadata": {"llama.rope.freq_base": float("nan")}}, "out of range"),
        ({"metadata": {"llama.attention.layer_norm_rms_epsilon": float("inf")}}, "out of range"),
        ({"metadata": {"llama.expert_count": 8}}, "llama.expert_used_count is missing"),
        (
            {"metadata": {"llama.expert_count": 8, "llama.expert_used_count": 9}},
            "expert_used_count is 9, and there are 8",
        ),
        ({"metadata": {"llama.expert_count": 8, "llama.expert_used_count": 2}}, "blk.0.ffn_gate_inp.weight is missing"),
        (
            {"metadata": {"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.expert_gating_func": 2}},
            "expert_gating_func is 2, which is not supported",
        ),
        (
            {"arch": "qwen2", "metadata": {"qwen2.expert_count": 8, "qwen2.expert_used_count": 2}},
            "experts in the architecture 'qwen2' is not supported; this engine runs experts of llama, minicpm",
        ),
        ({"metadata": {"llama.rope.scaling.type": "su"}}, "rope scaling 'su' is not supported"),
        ({"metadata": {"llama.rope.scaling.factor": -2.0}}, "must be a positive number"),
        ({"arch": "minicpm", "metadata": {"minicpm.logit_scale": 0.0}}, "logit_scale is 0.0"),
        ({"arch": "minicpm", "metadata": {"minicpm.embedding_scale": float("nan")}}, "scale is not a positive"),
        ({"arch": "qwen3", "without": ["blk.1.attn_q_norm.weight"]}, "attn_q_norm.weight is missing"),
    ],
)
def test_a_model_we_cannot_run_is_refused_with_the_reason(tmp_path, change, words):
    with pytest.raises(ModelFileError, match=words) as error:
        load(changed(tmp_path, **change))
    assert "m.gguf" in str(error.value)


def test_longrope_without_its_factors_is_refused(tmp_path):
    with GGUF.open(changed(tmp_path, {"llama.rope.scaling.type": "longrope"})) as gguf:
        model = Transformer.load(gguf)
        with pytest.raises(ValueError, match=r"rope_factors_short\.weight, which the file lacks"):
            model.new_cache(16)
        del model

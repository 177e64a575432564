"""Our logits against llama.cpp's on the same files: every architecture and RoPE variant, with random F32 weights.

The measure: log-probabilities of the whole vocabulary after the last of 40 tokens (logits up to a constant), largest
difference divided by the largest value. The oracle keeps keys and values in f16, as we do; with f32 there the two
llama.cpp runs differ from each other by as much as we do from either.
"""

import math

import numpy as np
import pytest

from gangpao.engine.config import ModelConfig
from gangpao.engine.rope import inverse_frequencies
from gangpao.engine.transformer import Transformer
from gangpao.formats.gguf import GGUF
from tests.formats.gguf_maker import random_model
from tests.llama_oracle import LlamaOracle

VOCAB = 320
IDS = np.random.default_rng(1).integers(0, VOCAB - 2, 40)
LIMIT = 1e-3
SCALES = {"minicpm.embedding_scale": 7.5, "minicpm.residual_scale": 0.4, "minicpm.logit_scale": 1.7}
FACTORS = np.linspace(1.0, 6.0, 8)


def log_softmax(logits):
    x = logits.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def ours(path, ids=IDS, capacity=512):
    with GGUF.open(path) as gguf:
        model = Transformer.load(gguf)
        logits = model.forward(ids, model.new_cache(capacity))
        del model
    return log_softmax(logits)


def theirs(path, ids=IDS, n_ctx=512):
    with LlamaOracle(path, n_ctx=n_ctx, kv="F16") as oracle:
        return oracle.vector(ids, VOCAB)


def distance(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("minicpm", {"extra": SCALES}),
        ("minicpm", {"extra": SCALES, "tied": False}),
        ("llama", {}),
        ("llama", {"tied": False, "num_kv_heads": 1}),
        ("llama", {"num_kv_heads": 4, "num_layers": 3}),
        ("llama", {"experts": (8, 2)}),
        ("llama", {"experts": (5, 5)}),
        ("minicpm", {"extra": SCALES, "experts": (8, 2)}),
        ("minicpm", {"extra": SCALES, "experts": (20, 1), "tied": False}),
        ("qwen2", {}),
        ("qwen2", {"tied": False}),
        ("qwen3", {"head_dim": 32}),
        ("qwen3", {"head_dim": 48, "tied": False, "num_kv_heads": 4}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items() if k != "extra") or "tied",
)
def test_logits_equal_those_of_llama_cpp(tmp_path, arch, options):
    path = random_model(tmp_path / "m.gguf", arch, seed=3, **options)
    expected = theirs(path)
    assert expected.std() > 1, "the random model says nothing"
    assert distance(ours(path), expected) < LIMIT


@pytest.mark.parametrize(
    ("kind", "largest"), [("Q8_0", 1e-3), ("Q3_K", 4e-4), ("TQ2_0", 3e-2), ("IQ4_NL", 1e-3), ("IQ4_XS", 1e-4)]
)
def test_logits_of_quantized_weights_equal_those_of_llama_cpp(tmp_path, kind, largest):
    """Both sides round activations to 8 bits, in another order of float steps: hence a larger limit (Q8_0: 0.003 on this model)."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_layers": 1, "tied": False}
    path = random_model(tmp_path / "m.gguf", "llama", seed=3, kind=kind, largest=largest, **shape)
    expected = theirs(path)
    assert expected.std() > 0.1, "the random model says nothing"
    assert distance(ours(path), expected) < 0.01


def test_the_scales_of_minicpm_each_matter(tmp_path):
    """A scale that both sides ignored would pass the comparison."""
    base = ours(random_model(tmp_path / "a.gguf", "minicpm", extra=SCALES))
    for key, value in SCALES.items():
        path = random_model(tmp_path / "b.gguf", "minicpm", extra=SCALES | {key: value * 1.5})
        assert distance(ours(path), base) > 0.02, key


def test_minicpm_without_scales_has_those_of_the_2024_models(tmp_path):
    """12, 1.4 / sqrt(layers), hidden / 256. llama.cpp, where the keys are missing, divides by the inverse of the last."""
    silent = random_model(tmp_path / "a.gguf", "minicpm", hidden_size=128, head_dim=32)
    spoken = random_model(
        tmp_path / "b.gguf", "minicpm", hidden_size=128, head_dim=32,
        extra={"minicpm.embedding_scale": 12.0, "minicpm.residual_scale": 1.4 / math.sqrt(2), "minicpm.logit_scale": 0.5},
    )  # fmt: skip
    assert distance(ours(silent), ours(spoken)) < 1e-6
    assert distance(ours(spoken), theirs(spoken)) < LIMIT


def scaling(arch, kind, factor, **more):
    keys = {"type": kind, "factor": factor, **more}
    return {f"{arch}.rope.scaling.{k}": v for k, v in keys.items()}


def scales(arch):
    return SCALES if arch == "minicpm" else {}


def longrope(arch):
    return {
        "extra": scales(arch) | scaling(arch, "longrope", 1.0, original_context_length=256, attn_factor=1.19),
        "extra_tensors": {"rope_factors_long.weight": FACTORS, "rope_factors_short.weight": FACTORS[::-1]},
    }


@pytest.mark.parametrize(
    ("arch", "kind"),
    [(a, k) for a in ("llama", "qwen2", "minicpm") for k in ("linear", "yarn", "yarn-sharp")]
    + [("llama", "rope_freqs"), ("minicpm", "rope_freqs")],  # llama.cpp's qwen2 reads no rope_freqs
)
def test_rope_variants_equal_llama_cpp(tmp_path, arch, kind):
    options = {
        "linear": {"extra": scaling(arch, "linear", 4.0)},
        "yarn": {"extra": scaling(arch, "yarn", 4.0, original_context_length=64)},
        "yarn-sharp": {
            "extra": scaling(
                arch, "yarn", 8.0, original_context_length=128, attn_factor=1.1, yarn_beta_fast=16.0, yarn_beta_slow=2.0
            )
        },
        "rope_freqs": {"extra_tensors": {"rope_freqs.weight": FACTORS}},
    }[kind]
    plain = scales(arch)
    options = {**options, "extra": plain | options.get("extra", {})}
    path = random_model(tmp_path / "m.gguf", arch, seed=5, **options)
    expected = theirs(path)
    assert distance(ours(path), expected) < LIMIT
    without = random_model(tmp_path / "plain.gguf", arch, seed=5, extra=plain)
    assert distance(ours(without), expected) > 0.01, "scaling did nothing"


@pytest.mark.parametrize("arch", ["llama", "minicpm"])
def test_longrope_takes_its_factors_by_the_size_of_the_context(tmp_path, arch):
    path = random_model(tmp_path / "m.gguf", arch, seed=6, **longrope(arch))
    short, long = ours(path, capacity=256), ours(path, capacity=512)
    assert distance(short, theirs(path, n_ctx=256)) < LIMIT
    assert distance(long, theirs(path, n_ctx=512)) < LIMIT
    assert distance(short, long) > 0.01


def test_ntk_is_a_change_of_base(tmp_path):
    """theta' = theta * factor ** (d / (d - 2)): llama.cpp has no name for it, so the base is changed by hand."""
    dim, factor = 16, 4.0
    base = 10000.0 * factor ** (dim / (dim - 2))
    scaled = random_model(tmp_path / "a.gguf", "llama", seed=7, extra=scaling("llama", "ntk", factor))
    by_hand = random_model(tmp_path / "b.gguf", "llama", seed=7, extra={"llama.rope.freq_base": base})
    assert distance(ours(scaled), ours(by_hand)) < 1e-5
    assert distance(ours(scaled), theirs(by_hand)) < LIMIT


def test_ntk_keeps_the_fastest_pair_and_stretches_the_slowest_by_the_factor(tmp_path):
    path = random_model(tmp_path / "a.gguf", "llama", extra=scaling("llama", "ntk", 4.0))
    plain = random_model(tmp_path / "b.gguf", "llama")
    with GGUF.open(path) as a, GGUF.open(plain) as b:
        stretched, _ = inverse_frequencies(ModelConfig.from_gguf(a), context=64)
        normal, _ = inverse_frequencies(ModelConfig.from_gguf(b), context=64)
    assert stretched[0] == normal[0] == 1
    assert normal[-1] / stretched[-1] == pytest.approx(4.0)

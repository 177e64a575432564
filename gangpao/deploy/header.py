"""What a GGUF header says: which architecture a model is, its numbers under that name, and the keys that tell.

The architecture follows from the numbers, never from a model's name: scales make it a minicpm, a norm on q and k a qwen3,
biases a qwen2. So what was trained under one name and computes like another is written as what it computes,
and a combination that no architecture of GGUF has is refused.
"""

from __future__ import annotations

import math

from gangpao.formats.blocks import WRITTEN
from gangpao.formats.gguf_write import ALIGNMENT
from gangpao.model.config import ModelConfig
from gangpao.model.layers import inverse_frequencies

_ROPE_TYPES = ("linear", "yarn", "longrope", "llama3")
_YARN_BORDERS = (32.0, 1.0)  # beta_fast and beta_slow of the paper


def architecture(c: ModelConfig) -> str:
    """GGUF's name of what this configuration computes. Raises ValueError where there is none."""
    if c.mla:
        raise ValueError(
            "latent attention (MiniCPM3) has no GGUF form that our engine reads yet; export to Hugging Face instead"
        )
    scaled = (c.scale_emb, c.residual_scale, c.logit_scale) != (1.0, 1.0, 1.0)
    if c.qk_norm and (scaled or c.attention_bias):
        what = "MiniCPM's scales" if scaled else "biases on q, k and v"
        raise ValueError(
            f"a norm on q and k together with {what} is an architecture that GGUF does not have (qwen3 has the norm alone)"
        )
    if c.qk_norm:
        return "qwen3"
    if scaled or c.model_type == "minicpm":
        return "minicpm"
    return "qwen2" if c.attention_bias and not _needs_divisors(c) else "llama"  # llama.cpp's qwen2 reads no divisors


def metadata(config: ModelConfig, kind: str, name: str) -> dict[str, object]:
    """Keys of the header that describe the model. Raises ValueError for what GGUF cannot say."""
    c, a = config, architecture(config)
    out: dict[str, object] = {
        "general.architecture": a,
        "general.name": name,
        "general.file_type": WRITTEN[kind].file_type,
        "general.alignment": ALIGNMENT,
        f"{a}.block_count": c.num_hidden_layers,
        f"{a}.context_length": c.max_position_embeddings,
        f"{a}.embedding_length": c.hidden_size,
        f"{a}.feed_forward_length": c.intermediate_size,
        f"{a}.attention.head_count": c.num_attention_heads,
        f"{a}.attention.head_count_kv": c.num_key_value_heads,
        f"{a}.attention.key_length": c.head_dim,
        f"{a}.attention.value_length": c.head_dim,
        f"{a}.attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        f"{a}.rope.dimension_count": c.head_dim,
        f"{a}.rope.freq_base": c.rope_theta,
        f"{a}.vocab_size": c.vocab_size,
    }
    if a == "minicpm":  # always all three: a silent file means 12, 1.4 and 256
        out |= {
            f"{a}.embedding_scale": c.scale_emb,
            f"{a}.residual_scale": c.residual_scale,
            f"{a}.logit_scale": 1.0 / c.logit_scale,  # the file's logit_scale is a divisor
        }
    if c.moe:
        out |= {f"{a}.expert_count": c.moe.num_experts, f"{a}.expert_used_count": c.moe.num_experts_per_tok}
    return out | _rope_keys(c, a)


def _needs_divisors(c: ModelConfig) -> bool:
    """Whether the rotary frequencies are told exactly by a tensor of divisors only.

    Llama 3's rule has no keys. YaRN's borders have some, but llama.cpp always takes 32 and 1 (tests/deploy/test_gguf.py).
    """
    s = c.rope_scaling
    if s is None:
        return False
    return s.rope_type == "llama3" or (s.rope_type == "yarn" and (s.beta_fast, s.beta_slow) != _YARN_BORDERS)


def rope_as_divisors(c: ModelConfig) -> bool:
    """Whether the file holds divisors, and names no scaling type then. llama.cpp's qwen3 refuses a file that has them."""
    s = c.rope_scaling
    return _needs_divisors(c) and (architecture(c) != "qwen3" or (s is not None and s.rope_type == "llama3"))


def differences(config: ModelConfig) -> list[str]:
    """In which ways the file, or llama.cpp with it, differs from the checkpoint; tried in tests/deploy/test_gguf.py."""
    out = []
    if config.rope_scaling and config.rope_scaling.rope_type == "dynamic":
        out.append(
            f"dynamic rope scaling has no GGUF form: the file is the checkpoint up to {config.max_position_embeddings:,} positions"
        )
    if architecture(config) == "qwen3" and _needs_divisors(config):
        divisors = rope_as_divisors(config)
        does = "does not load a qwen3 with rotary divisors (llama3)" if divisors else "takes 32 and 1 as YaRN's borders"
        out.append(f"llama.cpp {does}; gangpao runs the file as the checkpoint is")
    return out


def _rope_keys(c: ModelConfig, a: str) -> dict[str, object]:
    s = c.rope_scaling
    if s is None or s.rope_type == "dynamic":  # no scaling up to the context_length of the header
        return {}
    if s.rope_type not in _ROPE_TYPES:
        raise ValueError(f"rope_type {s.rope_type!r} has no GGUF form; there are {', '.join(_ROPE_TYPES)}")
    key = f"{a}.rope.scaling"
    _, attention = inverse_frequencies(c, c.max_position_embeddings)  # what cosine and sine are multiplied by
    if rope_as_divisors(c):
        return {f"{key}.attn_factor": attention} if attention != 1.0 else {}
    out: dict[str, object] = {
        f"{key}.type": s.rope_type,
        f"{key}.original_context_length": s.original_max_position_embeddings or c.max_position_embeddings,
    }
    if s.rope_type != "longrope":
        out[f"{key}.factor"] = s.factor
    if s.rope_type == "yarn":
        attention /= 1.0 + 0.1 * math.log(s.factor)  # readers multiply by the paper's value themselves
        out |= {f"{key}.yarn_beta_fast": s.beta_fast, f"{key}.yarn_beta_slow": s.beta_slow}
    return out | {f"{key}.attn_factor": attention}

"""What a GGUF header says: which architecture a model is, its numbers under that name, and the keys that tell.

The architecture follows from the numbers, never from a model's name (formats/architectures.py has the rows). So what was
trained under one name and computes like another is written as what it computes, and a combination that no architecture of GGUF
has is refused.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gangpao.formats.architectures import (
    DELTA_KEYS,
    INNER_SIZE,
    INTERVAL,
    KEYS,
    LATENT_KEYS,
    LOCAL_BASE,
    NOPE_INTERVAL,
    SECTIONS,
    WINDOW,
    WINDOW_INTERVAL,
    GGUFForm,
    gguf_form,
    layers_of_interval,
    rotating_layers,
)
from gangpao.formats.blocks import WRITTEN
from gangpao.formats.gguf_write import ALIGNMENT
from gangpao.model.config import ModelConfig
from gangpao.model.layers import inverse_frequencies

_PARTS = {
    "qk_norm": "a norm on q and k", "scales": "MiniCPM's scales", "attention_bias": "biases on q, k and v", "experts": "experts",
    "latent": "latent attention", "window": "windows", "post_norms": "norms behind branches",
    "gelu": "GELU", "nope": "layers without rotation",
    "delta": "Gated DeltaNet", "attention_gate": "a gate behind attention", "centred_norms": "norms centred at 0",
}  # fmt: skip
_ROPE_TYPES = ("linear", "yarn", "longrope", "llama3")
_YARN_BORDERS = (32.0, 1.0)  # beta_fast and beta_slow of the paper


def form_of(c: ModelConfig) -> GGUFForm:
    """The architecture of GGUF that computes what this configuration computes. Raises ValueError where there is none."""
    # What changes no number has no part in it: neutral scales, and sparse attention, which is computed densely.
    scaled = (c.scale_emb, c.residual_scale, c.logit_scale) != (1.0, 1.0, 1.0)
    parts = replace(c.parts, scales=scaled, experts=c.moe is not None)
    row = gguf_form(parts, c.model_type, divisors=_needs_divisors(c), square=c.heads_fill_width)
    if row is None or row.gguf is None:
        found = [name for part, name in _PARTS.items() if getattr(parts, part)]
        raise ValueError(
            f"{' together with '.join(found)} is an architecture that GGUF does not have (qwen3 has the norm alone)"
        )
    return row.gguf


def metadata(config: ModelConfig, kind: str, name: str) -> dict[str, object]:
    """Keys of the header that describe the model. Raises ValueError for what GGUF cannot say."""
    c, form = config, form_of(config)
    a = form.name
    out: dict[str, object] = {
        "general.architecture": a,
        "general.name": name,
        "general.file_type": WRITTEN[kind].file_type,
        "general.alignment": ALIGNMENT,
        f"{a}.attention.value_length": c.mla.v_head_dim if c.mla else c.head_dim,
    }
    out |= {f"{a}.{key}": getattr(c, field) for field, key in KEYS.items()}
    if form.scales:  # always all three: a silent file means other ones
        out |= {
            f"{a}.embedding_scale": c.scale_emb,
            f"{a}.residual_scale": c.residual_scale,
            f"{a}.logit_scale": 1.0 / c.logit_scale,  # the file's logit_scale is a divisor
        }
    if c.moe:
        out |= {f"{a}.expert_count": c.moe.num_experts, f"{a}.expert_used_count": c.moe.num_experts_per_tok}
    if c.delta:
        out |= _delta_keys(c, a)
    if c.mla:
        out |= {f"{a}.{key}": getattr(c.mla, field) for field, key in LATENT_KEYS.items()}
    if c.parts.window:
        out |= _window_keys(c, a)
    if c.parts.nope and c.no_rope_layers != rotating_layers(NOPE_INTERVAL, c.num_hidden_layers):
        raise ValueError(
            f"in GGUF each {NOPE_INTERVAL}th layer of a {a} does not rotate, and here others: {c.no_rope_layers}"
        )
    return out | _rope_keys(c, a)


def _window_keys(c: ModelConfig, a: str) -> dict[str, object]:
    if c.kinds != layers_of_interval(WINDOW_INTERVAL, len(c.kinds), "sliding_attention"):
        raise ValueError(f"in GGUF each {WINDOW_INTERVAL}th layer of a {a} sees everything, and here others: {c.kinds}")
    return {f"{a}.{WINDOW}": c.sliding_window, f"{a}.{LOCAL_BASE}": c.rope_local_base_freq}


def _delta_keys(c: ModelConfig, a: str) -> dict[str, object]:
    d, kinds = c.delta, c.kinds
    assert d is not None
    if d.linear_key_head_dim != d.linear_value_head_dim:
        raise ValueError("GGUF has one width for key and value heads of Gated DeltaNet, and here they differ")
    every = next((n for n in range(1, len(kinds) + 2) if kinds == layers_of_interval(n, len(kinds))), None)
    if every is None:
        raise ValueError(
            "GGUF says which layers attend by a number (each n-th one); here they follow no such rule: "
            f"{''.join(kind[0] for kind in kinds)} (f: attention, l: linear attention)"
        )
    return {
        **{f"{a}.{key}": getattr(d, field) for field, key in DELTA_KEYS.items()},
        f"{a}.{INNER_SIZE}": d.value_size,
        f"{a}.{INTERVAL}": every,
        f"{a}.{SECTIONS}": [*(c.mrope_section or (c.rope_dim // 2, 0, 0)), 0],
    }


def _needs_divisors(c: ModelConfig) -> bool:
    """Whether the rotary frequencies are told exactly by a tensor of divisors only.

    Llama 3's rule has no keys. YaRN's borders have some, but llama.cpp always takes 32 and 1 (tests/deploy/test_gguf.py).
    """
    s = c.rope_scaling
    if s is None:
        return False
    return s.rope_type == "llama3" or (s.rope_type == "yarn" and (s.beta_fast, s.beta_slow) != _YARN_BORDERS)


def rope_as_divisors(c: ModelConfig) -> bool:
    """Whether the file holds divisors, and names no scaling type then. llama.cpp refuses such a file where its architecture has no
    divisors."""
    s = c.rope_scaling
    return _needs_divisors(c) and (form_of(c).divisors or (s is not None and s.rope_type == "llama3"))


def differences(config: ModelConfig) -> list[str]:
    """In which ways the file, or llama.cpp with it, differs from the checkpoint; tried in tests/deploy/test_gguf.py."""
    out = []
    if config.rope_scaling and config.rope_scaling.rope_type == "dynamic":
        out.append(
            f"dynamic rope scaling has no GGUF form: the file is the checkpoint up to {config.max_position_embeddings:,} positions"
        )
    form = form_of(config)
    if config.mla and (config.scale_emb, config.scale_depth, config.dim_model_base) != (12.0, 1.4, 256):
        out.append(
            f"llama.cpp takes the scales 12, 1.4 and 256 for any {form.name}; gangpao runs the file as the checkpoint is"
        )
    if _needs_divisors(config) and not form.divisors:
        divisors = rope_as_divisors(config)
        does = (
            f"does not load a {form.name} with rotary divisors (llama3)"
            if divisors
            else "takes 32 and 1 as YaRN's borders"
        )
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

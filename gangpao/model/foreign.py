"""A config.json as others publish it, turned into the fields of ModelConfig, or refused with the reason.

Who a file is about stands in model_type, architectures and auto_map; OpenBMB's older files have only the last two. All that
is said must agree, and every class must be one that our graph computes. An absent key (or null) means what the class takes
for it, which differs between classes. A key that we do not know may change the numbers, so it stops the loading by its
name; keys that are known to change nothing pass. `auto_map` is read as a name and never followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from gangpao.formats.architectures import (
    DELTA_SIZES,
    LATENT_RANKS,
    LOCAL_THETA,
    NOPE_INTERVAL,
    WINDOW_INTERVAL,
    Architecture,
    by_any_name,
    by_model_type,
    layers_of_interval,
    rotating_layers,
)
from gangpao.formats.integers.scheme import Scheme, scheme_of
from gangpao.formats.vision import config as vision_config

Json = Mapping[str, Any]


SCALES = ("scale_emb", "scale_depth", "dim_model_base")
# Qwen3.5 as it is published, and who stands on it: the language model under this prefix, its numbers in text_config.
NESTED_PREFIX = "model.language_model."
_NESTED = {"qwen3_5": "qwen3_5_text"}
# Parts of names, in lower case, of what is published and not computed here, with what is missing.
_MISSING = {
    "sala": "its layers of lightning (linear) attention are not implemented",
    "eagle": "a draft head for speculative decoding has no language model of its own; give the model that it drafts for",
    "dspark": "a draft head for speculative decoding has no language model of its own; give the model that it drafts for",
    "minicpmo": "speech and its language model are not implemented",
    "embedding": "it gives vectors of texts, not words",
    "sequenceclassification": "it gives labels of texts, not words",
}

# Keys that describe the file or its use, and change nothing that we compute.
_IGNORED = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_flash_attn_2_enabled", "_name_or_path",
    "architectures", "attention_dropout", "auto_map", "bos_token", "dtype", "embd_pdrop", "eos_token", "finetuning_task",
    "hidden_act_param", "hidden_dropout", "id2label", "is_llama_config", "keys_to_ignore_at_inference", "label2id",
    "max_length", "max_window_layers", "model_type", "mup_denominator", "output_attentions", "output_hidden_states",
    "output_router_logits", "pad_token", "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict",
    "shift_labels", "sliding_window", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "transformers_weights", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_cache",
    # sampling defaults that old versions of transformers wrote beside the shapes
    "do_sample", "max_new_tokens", "min_length", "num_beams", "repetition_penalty", "temperature", "top_k", "top_p",
    "typical_p",
}  # fmt: skip
# Keys that do change it, with the only values we implement; null is as good as absent.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"), "hidden_activation": ("silu", "swish"), "mlp_bias": (False,), "is_causal": (True,),
    "use_sliding_window": (False,), "partial_rotary_factor": (1.0,), "rope_interleaved": (False,), "is_decoder": (True, False),
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "chunk_size_feed_forward": (0,), "pruned_heads": ({},),
    "torchscript": (True, False), "num_nextn_predict_layers": (0,), "qk_norm": (False,), "lm_head_bias": (False,),
    "attn_output_gate": (True,), "final_logit_softcapping": (), "attn_logit_softcapping": (),
    "use_bidirectional_attention": (False,),
}  # fmt: skip
_WHY = {
    "hidden_act": "MiniCPM-S thresholds a ReLU (fatrelu), other activations are not implemented either",
    "mlp_bias": "biases in the MLP are not implemented",
    "is_causal": "such a model reads in both directions and gives vectors of texts",
}
_SIZES = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings",
}  # fmt: skip
_PACKED = ("quantization_config", "compression_config", "quantization")  # by transformers, of old, by MLX
_EXPERTS = {"num_experts", "num_experts_per_tok", "router_aux_loss_coef"}
_RANKS = {*LATENT_RANKS, "v_head_dim"}
_REALS = {"rms_norm_eps", "initializer_range"}
_SWITCHES = {"tie_word_embeddings", "attention_bias"}
# Of Qwen3.5. Draft heads (mtp) are left out, and the type that a state has in memory is ours to choose.
_DELTA = {*DELTA_SIZES, "full_attention_interval", "partial_rotary_factor"}
_WINDOW = {
    "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq", "query_pre_attn_scalar", "cache_implementation",
}  # fmt: skip
_DELTA_IGNORED = {
    "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings", "mlp_only_layers", "rope_type",
}  # fmt: skip
_ROPE = {"rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"}
_OTHERS = {"bos_token_id", "eos_token_id", "layer_types"}


def fields(data: Json) -> dict[str, Any]:
    """The fields of ModelConfig that a config.json means. Raises ValueError for what we would compute wrongly."""
    if data.get("model_type") in _NESTED:
        return _nested(data)
    sees = vision_config.read(data)
    if sees is not None:
        return fields(sees.text) | {"tensor_prefix": sees.prefix or None}
    family = family_of(data)
    scheme_in(data)
    _refuse_foreign(data, family)
    known = {key: value for key, value in data.items() if value is not None}
    _check_types(known)
    out: dict[str, Any] = {"model_type": family.model_type}
    for key in (_SIZES | _REALS | {"tie_word_embeddings", "bos_token_id", "sparse_config"}) & (
        known.keys() | family.defaults.keys()
    ):
        out[key] = known.get(key) if key in known else family.defaults.get(key)
    if known.get("eos_token_id") not in (None, []):
        out["eos_token_id"] = known["eos_token_id"]
    if not out.get("sparse_config"):
        out.pop("sparse_config", None)
    always = (
        "attention_bias", "qk_norm", "attention_gate", "centred_norms", "post_norms", "gelu", "root_embedding"
    )  # fmt: skip
    out |= {key: getattr(family.parts, key) for key in always} | _scales(data, family)
    out |= _heads(data, known, family)
    if known.get("num_experts"):
        out["moe"] = {key: known[key] for key in _EXPERTS & known.keys()}
    if family.parts.delta:
        out |= _delta(known, family)
    if family.parts.window:
        out |= _window(known, family)
    if family.parts.nope:
        every = int(known.get("no_rope_layer_interval", NOPE_INTERVAL))
        layers = int(known.get("num_hidden_layers", 0))
        out["no_rope_layers"] = tuple(known.get("no_rope_layers") or rotating_layers(every, layers))
    return out | rope(data, family)


def _nested(data: Json) -> dict[str, Any]:
    """Those of the language model of a model that sees, which stand in text_config."""
    inner = data.get("text_config")
    if not isinstance(inner, Mapping):
        raise ValueError(
            f"model_type {data['model_type']!r} without text_config, in which the language model's numbers stand"
        )
    outside = {key: data[key] for key in ("tie_word_embeddings", *_PACKED) if data.get(key) is not None}
    ours = {key: value for key, value in inner.items() if key != "architectures"}
    return fields(ours | outside | {"model_type": _NESTED[data["model_type"]]}) | {"tensor_prefix": NESTED_PREFIX}


def _window(known: Json, family: Architecture) -> dict[str, Any]:
    """Which layers see a window, how wide it is, and the base of their angles."""
    every = int(known.get("sliding_window_pattern", known.get("_sliding_window_pattern", WINDOW_INTERVAL)))
    types = known.get("layer_types") or layers_of_interval(
        every, int(known.get("num_hidden_layers", 0)), "sliding_attention"
    )
    heads, scalar = known.get("head_dim", family.defaults["head_dim"]), known.get("query_pre_attn_scalar", 256)
    if scalar != heads:
        raise ValueError(f"query_pre_attn_scalar is {scalar}, and only the width of a head ({heads}) is implemented")
    local = (known.get("rope_parameters") or {}).get("sliding_attention") or {}
    return {
        "layer_types": tuple(types),
        "sliding_window": known.get("sliding_window", family.defaults["sliding_window"]),
        "rope_local_base_freq": local.get("rope_theta", known.get("rope_local_base_freq", LOCAL_THETA)),
    }


def _delta(known: Json, family: Architecture) -> dict[str, Any]:
    """Sizes of Gated DeltaNet, which layers are of it, and which share of a head RoPE turns."""
    layers = known.get("num_hidden_layers", 0)
    every = known.get("full_attention_interval", family.defaults["full_attention_interval"])
    types = known.get("layer_types") or layers_of_interval(int(every), int(layers))
    rope_keys = known.get("rope_parameters") or known.get("rope_scaling") or {}
    share = rope_keys.get("partial_rotary_factor", known.get("partial_rotary_factor"))
    sections = rope_keys.get("mrope_section", family.defaults["mrope_section"])
    return {
        "delta": {key: known.get(key, value) for key, value in DELTA_SIZES.items()},
        "layer_types": tuple(types),
        "partial_rotary_factor": family.defaults["partial_rotary_factor"] if share is None else share,
        "mrope_section": tuple(sections[:3]),
    }


def scheme_in(data: Json) -> Scheme | None:
    """How a file says that weights are packed; None where they are floats. Raises ValueError for a form that is not read."""
    quantized = next((data[key] for key in _PACKED if data.get(key)), None)
    return scheme_of(quantized) if quantized else None


def family_of(data: Json) -> Architecture:
    """What a file is about. Raises ValueError naming what is not computed."""
    kind, classes = data.get("model_type"), data.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in [kind or "", *classes]):
        raise ValueError("model_type must be a text and architectures a list of texts")
    said = {f"model_type {kind!r:.60}": kind} if kind else {}
    said |= {f"architectures names {name!r:.60}, which": name for name in classes}
    if not said:
        said = _told_by_auto_map(data)
    known = {name: row.model_type for name, row in by_any_name().items()}
    for phrase, name in said.items():
        reason = next((why for part, why in _MISSING.items() if part in name.lower()), None)
        if reason:
            raise ValueError(f"{phrase} is not supported: {reason}")
        if name not in known:
            raise ValueError(f"{phrase} is not supported; this lab builds {', '.join(by_model_type())}")
    told = {known[name] for name in said.values()} or _told_by_keys(data)
    if len(told) > 1:
        raise ValueError(
            f"model_type and architectures contradict each other ({', '.join(map(str, said.values()))}): they compute different "
            "numbers; correct the wrong one in a copy of the file"
        )
    return by_model_type()[told.pop()]


def _told_by_auto_map(data: Json) -> dict[str, str]:
    """Names of classes in auto_map, for a file that says nothing else."""
    told = data.get("auto_map")
    if not isinstance(told, Mapping):
        return {}
    names = [str(told[key]).rpartition(".")[2] for key in ("AutoConfig", "AutoModelForCausalLM") if told.get(key)]
    return {f"auto_map names {name!r:.60}, which": name for name in names}


def _told_by_keys(data: Json) -> set[str]:
    """The family that the keys themselves betray, for a file without any name."""
    if not any(data.get(key) is not None for key in SCALES):
        raise ValueError(
            "model_type, architectures and auto_map are all missing, so the file does not say what it is; "
            f"write model_type into it ({', '.join(by_model_type())})"
        )
    return {"minicpm3" if data.get("kv_lora_rank") else "minicpm"}


def _refuse_foreign(data: Json, family: Architecture) -> None:
    for key, values in _FIXED.items():
        value = None if family.parts.delta and key in _DELTA else data.get(key)
        values = ("gelu_pytorch_tanh",) if family.parts.gelu and key.startswith("hidden_act") else values
        spelled = value.lower() if isinstance(value, str) else value
        if value is not None and spelled not in values:
            why = f": {_WHY[key]}" if key in _WHY else ""
            only = repr(values[0]) if values else "none"
            raise ValueError(f"{key} is {value!r:.60}, and only {only} is implemented{why}")
    if data.get("attention_bias") and not family.parts.attention_bias:
        raise ValueError(
            f"attention_bias is on: {family.model_type} then has biases on q, k, v and o, which are not implemented "
            "(qwen2's on q, k and v are)"
        )
    there = {"full_attention"} | ({"linear_attention"} if family.parts.delta else set())
    there |= {"sliding_attention"} if family.parts.window else set()
    if not there.issuperset(data.get("layer_types") or ()):
        raise ValueError(
            f"layer_types asks for other layers than {' and '.join(sorted(there))}, which are not implemented"
        )
    known = _SIZES | _REALS | _SWITCHES | _ROPE | _OTHERS | _IGNORED | _FIXED.keys() | {*_PACKED, *SCALES}
    known |= (_EXPERTS | {"sparse_config"}) if family.parts.experts else set()
    known |= (_RANKS | {"qk_head_dim"}) if family.parts.latent else set()
    known |= _WINDOW if family.parts.window else set()
    known |= {"no_rope_layers", "no_rope_layer_interval"} if family.parts.nope else set()
    known |= (_DELTA | _DELTA_IGNORED) if family.parts.delta else set()
    if unknown := sorted(key for key in data.keys() - known if data[key] is not None):
        raise ValueError(
            f"unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(f'{k!r:.40}' for k in unknown[:4])}: computing without "
            "knowing what they mean could give wrong answers; if they do not matter, remove them in a copy of the file"
        )


def _check_types(known: Json) -> None:
    """Numbers are numbers: pydantic would read texts and true as such."""

    def whole(value: Any) -> bool:
        return not isinstance(value, bool) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )

    def real(value: Any) -> bool:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)

    def ids(value: Any) -> bool:
        return all(whole(one) for one in (value if isinstance(value, list) else [value]))

    kinds: list[tuple[set[str], Callable[[Any], bool], str]] = [
        (_SIZES | _RANKS | {"dim_model_base", "num_experts", "num_experts_per_tok", "bos_token_id"}, whole, "a whole number"),
        (_DELTA - {"partial_rotary_factor"} | {"no_rope_layer_interval"}, whole, "a whole number"),
        (_REALS | {"partial_rotary_factor", "rope_theta", "scale_emb", "scale_depth", "router_aux_loss_coef"}, real, "a number"),
        (_SWITCHES, lambda value: isinstance(value, bool), "true or false"),
        ({"eos_token_id", "no_rope_layers"}, ids, "a whole number or a list of them"),
    ]  # fmt: skip
    for keys, test, wanted in kinds:
        for key in sorted(keys & known.keys()):
            if not test(known[key]):
                raise ValueError(f"{key} is {known[key]!r:.60}, and must be {wanted}")


def _scales(data: Json, family: Architecture) -> dict[str, Any]:
    """MiniCPM's three numbers. null means neutral, as in transformers; absent ones are asked for."""
    if not family.parts.scales:
        if given := [key for key in SCALES if data.get(key) not in (None, 1, 1.0)]:
            raise ValueError(
                f"{', '.join(f'{key} {data[key]}' for key in given)} beside model_type {family.model_type!r}: that class ignores "
                "them and MiniCPM's applies them; write model_type 'minicpm' if the model was trained with them, else remove them"
            )
        return {}
    if missing := [key for key in SCALES if key not in data]:
        raise ValueError(
            f"{', '.join(missing)} missing: OpenBMB's class would take 1, which no released MiniCPM uses (12, 1.4 and 256), and "
            "transformers other numbers. Write the three numbers this model was trained with into config.json"
        )
    if data["scale_emb"] is None:
        raise ValueError("scale_emb is null; write the number this model was trained with")
    return {key: data[key] for key in SCALES if data[key] is not None}


def _heads(data: Json, known: Json, family: Architecture) -> dict[str, Any]:
    """head_dim, num_key_value_heads and the widths of latent attention."""
    heads, hidden = known.get("num_attention_heads"), known.get("hidden_size")
    whole = int(hidden // heads) if heads and hidden and heads > 0 else None
    out: dict[str, Any] = {}
    if "num_key_value_heads" not in known and (
        "num_key_value_heads" in data or "num_key_value_heads" not in family.defaults
    ):
        out["num_key_value_heads"] = heads
    if not family.parts.latent:
        return out | {"head_dim": known.get("head_dim") or family.defaults.get("head_dim") or whole}
    if "q_lora_rank" in data and data["q_lora_rank"] is None:
        raise ValueError("q_lora_rank is null: latent attention with full-rank queries is not implemented")
    mla = (
        {"v_head_dim": whole}
        | {key: family.defaults[key] for key in LATENT_RANKS}
        | {key: known[key] for key in _RANKS & known.keys()}
    )
    width = mla["qk_nope_head_dim"] + mla["qk_rope_head_dim"]
    if known.get("qk_head_dim", width) != width:
        raise ValueError(f"qk_head_dim {known['qk_head_dim']} is not qk_nope_head_dim + qk_rope_head_dim ({width})")
    return out | {"mla": mla, "head_dim": width}


# What each kind of rope scaling needs (first) and may have (then).
_ROPE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (("short_factor", "long_factor"), ("original_max_position_embeddings", "attention_factor", "factor")),
    "llama3": (("factor",), ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")),
}  # fmt: skip
_ROPE_NAMES = {"su": "longrope", "ntk": "dynamic"}  # older names


def rope(data: Json, family: Architecture) -> dict[str, Any]:
    """rope_theta and rope_scaling, as transformers 4 (rope_scaling) and 5 (rope_parameters) spell them."""
    given = {key: data[key] for key in ("rope_scaling", "rope_parameters") if data.get(key)}
    if family.parts.window and isinstance(told := given.get("rope_parameters"), Mapping) and "full_attention" in told:
        given["rope_parameters"] = told["full_attention"]  # those of the other layers are read by _window
    for key, value in given.items():
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} must be an object or null")
    read = [_one_rope(key, value, data, family) for key, value in given.items()] or [_one_rope("", {}, data, family)]
    if any(one != read[0] for one in read):
        raise ValueError(
            "rope_scaling and rope_parameters differ; remove the one that does not hold in a copy of the file"
        )
    return read[0]


def _one_rope(where: str, given: Json, data: Json, family: Architecture) -> dict[str, Any]:
    s = {key: value for key, value in given.items() if value is not None}
    kind = str(s.pop("rope_type", None) or s.get("type", "default"))
    s.pop("type", None)
    s.pop("finetuned", None)
    kind = _ROPE_NAMES.get(kind, kind)
    theta = s.pop("rope_theta", data.get("rope_theta"))
    if family.parts.delta:  # read by _delta
        s = {key: value for key, value in s.items() if key not in ("partial_rotary_factor", "mrope_section")}
        if s.pop("mrope_interleaved", True) is not True:
            raise ValueError(f"{where}.mrope_interleaved is off, and only interleaved axes are implemented")
    elif s.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"{where}.partial_rotary_factor is {given['partial_rotary_factor']}, and only 1.0 is implemented"
        )
    out: dict[str, Any] = {
        "rope_theta": family.defaults["rope_theta"] if theta is None else theta,
        "rope_scaling": None,
    }
    _check_types({"rope_theta": out["rope_theta"]})
    if kind == "default":
        return out
    if kind not in _ROPE_KEYS:
        raise ValueError(
            f"{where}.rope_type {kind!r:.60} is not implemented; there are {', '.join(_ROPE_KEYS)} and default"
        )
    outside = data.get("original_max_position_embeddings")
    if outside and kind in ("yarn", "longrope", "llama3"):  # transformers prefers it there
        s["original_max_position_embeddings"] = outside
    needed, optional = _ROPE_KEYS[kind]
    if missing := [key for key in needed if key not in s]:
        raise ValueError(f"{where} of type {kind} needs {', '.join(missing)}")
    if unknown := sorted(s.keys() - {*needed, *optional}):
        raise ValueError(f"{where}.{unknown[0]} is not known for the type {kind}, and could change the numbers")
    for key, value in s.items():
        numbers = value if isinstance(value, list) else [value]
        if key != "truncate" and any(
            isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in numbers
        ):
            raise ValueError(f"{where}.{key} is {value!r:.60}, and must be numeric")
    return out | {"rope_scaling": {"rope_type": kind} | _resolved(where, kind, s, data, family)}


def _resolved(where: str, kind: str, s: dict[str, Any], data: Json, family: Architecture) -> dict[str, Any]:
    """The keys of RopeScaling: what transformers derives at run time is derived here."""
    longest = data.get("max_position_embeddings") or family.defaults["max_position_embeddings"]
    original = s.get("original_max_position_embeddings") or longest
    if kind == "dynamic":
        if original != longest:
            raise ValueError(
                f"{where}.original_max_position_embeddings is {original}, and dynamic scaling counts from max_position_embeddings "
                f"({longest}) in transformers; make them equal in a copy of the file"
            )
        s.pop("original_max_position_embeddings", None)
    if s.pop("truncate", True) is not True:
        raise ValueError(f"{where}.truncate is off, and only YaRN's whole bounds are implemented")
    one, all_dims = s.pop("mscale", 0), s.pop("mscale_all_dim", 0)
    if all_dims and family.parts.latent:
        raise ValueError(f"{where}.mscale_all_dim scales latent attention's scores, which is not implemented")
    if kind == "yarn" and one and all_dims and s["factor"] > 1:
        grown = math.log(s["factor"]) * 0.1
        s.setdefault("attention_factor", (grown * one + 1) / (grown * all_dims + 1))
    if kind == "longrope":
        factor = s.pop("factor", None)  # where it is given, transformers takes it for the stretch of the context
        if factor is not None and factor != longest / original:
            grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            s.setdefault("attention_factor", grown)
    return s

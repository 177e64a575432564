"""Who a config.json is about, what its absent keys mean, which unknown ones stop it, and configurations out by value."""

import json

import pytest

from gangpao.model import weights
from gangpao.model.config import ModelConfig, from_hf, to_hf
from gangpao.model.transformer import Transformer
from tests.model.test_transformer import IDS, build, logits
from tests.model.tiny import KINDS, tiny

SHAPE = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
LLAMA = {"model_type": "llama"} | SHAPE
SCALES = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}
MINICPM = {"architectures": ["MiniCPMForCausalLM"]} | SHAPE | SCALES
MLA = {"architectures": ["MiniCPM3ForCausalLM"]} | SHAPE | SCALES | {"q_lora_rank": 8, "kv_lora_rank": 8}


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"architectures": ["MiniCPMForCausalLM"]}, "minicpm"),
        ({"auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMConfig"}}, "minicpm"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"}}, "minicpm"),
        ({"auto_map": {"AutoConfig": "openbmb/MiniCPM3-4B--configuration_minicpm.MiniCPM3Config"}}, "minicpm3"),
        ({"model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"]}, "minicpm"),
        ({"model_type": "minicpm", "architectures": None, "auto_map": {"AutoConfig": "any.Thing"}}, "minicpm"),
        ({"model_type": "minicpm4"}, "minicpm"),
        ({}, "minicpm"),  # no name at all: the three scales betray it
    ],
)
def test_who_it_is(names, kind):
    config = from_hf(SHAPE | SCALES | names)
    assert (config.model_type, config.scale_emb, config.tie_word_embeddings) == (kind, 12, True)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (SHAPE, "model_type, architectures and auto_map are all missing"),
        (LLAMA | {"architectures": ["MiniCPMForCausalLM"]}, "contradict"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "gives labels"),
        (LLAMA | {"architectures": ["PhiForCausalLM"]}, "architectures names 'PhiForCausalLM'"),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "a list of texts"),
        (LLAMA | {"model_type": 7}, "must be a text"),
        (SHAPE | SCALES | {"auto_map": {"AutoConfig": "configuration_x.XConfig"}}, "auto_map names 'XConfig'"),
        (LLAMA | SCALES, "scale_emb 12, scale_depth 1.4, dim_model_base 16 beside model_type 'llama'"),
        (MINICPM | {"scale_emb": None}, "scale_emb is null"),
        (MINICPM | {"num_experts": 4}, "moe.num_experts_per_tok"),
        (LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}, "unknown keys 'num_experts'"),
        (LLAMA | {"q_lora_rank": 8}, "unknown key 'q_lora_rank'"),
        (LLAMA | {"sparse_config": {"topk": 1}}, "unknown key 'sparse_config'"),
        (MINICPM | {"sparse_config": {"topk": 64, "beam": 1}}, "sparse_config.beam"),
        (MINICPM | {"is_causal": False}, "is_causal.*vectors of texts"),
        (MINICPM | {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (LLAMA | {"attention_bias": True}, "biases on q, k, v and o"),
        (LLAMA | {"quantization": {"bits": 4}}, "without a quant_method.*not read"),
        (LLAMA | {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers"),
        (MLA | {"q_lora_rank": None}, "full-rank queries"),
        (MLA | {"qk_head_dim": 95}, "qk_head_dim 95"),
        (LLAMA | {"num_hidden_layers": True}, "num_hidden_layers is True"),
        (LLAMA | {"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        (LLAMA | {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        (LLAMA | {"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        (LLAMA | {"rope_theta": float("inf")}, "rope_theta is inf"),
        (MINICPM | {"scale_depth": float("nan")}, "scale_depth is nan"),
        (LLAMA | {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        (LLAMA | {"eos_token_id": "</s>"}, "eos_token_id"),
        (LLAMA | {"num_key_value_heads": 3}, "multiple"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "rope_scaling of type linear needs factor"),
        (LLAMA | {"rope_scaling": {"type": "mrope"}}, "rope_type 'mrope'"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000}}, "rope_scaling.alpha"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": "2"}}, "rope_scaling.factor"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 0.0}}, "rope_scaling.factor"),
        (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        (LLAMA | {"rope_scaling": {"type": "longrope", "short_factor": [1, 0, 1, 1], "long_factor": [1, 1, 1, 1]}}, "short_factor"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}}, "differ"),
        (LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA | {"max_position_embeddings": 64,
                  "rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32}}, "counts from"),
        (MLA | {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0}}, "mscale_all_dim"),
        ({"model_type": "gangpao"}, "config.json"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(data, says, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=says):
        ModelConfig.from_file(tmp_path / "config.json")


def test_an_absent_key_means_what_the_class_takes():
    llama, minicpm, mla = from_hf(LLAMA), from_hf(MINICPM), from_hf(MLA)
    assert (llama.tie_word_embeddings, minicpm.tie_word_embeddings, mla.tie_word_embeddings) == (False, True, True)
    assert llama.rms_norm_eps == minicpm.rms_norm_eps == 1e-6
    assert (llama.head_dim, llama.num_key_value_heads, llama.max_position_embeddings) == (8, 4, 2048)
    assert mla.mla is not None
    assert (mla.mla.v_head_dim, mla.mla.qk_nope_head_dim, mla.mla.qk_rope_head_dim, mla.head_dim) == (8, 64, 32, 96)
    assert mla.max_position_embeddings == 32_768
    qwen = from_hf({"model_type": "qwen3", **SHAPE, "num_key_value_heads": 2})
    assert (qwen.head_dim, qwen.qk_norm, qwen.max_position_embeddings) == (128, True, 32_768)
    with pytest.raises(ValueError, match="multiple"):  # 32, as transformers takes it
        from_hf({"model_type": "qwen2", **SHAPE})
    assert from_hf({"model_type": "qwen2", **SHAPE, "num_key_value_heads": None}).num_key_value_heads == 4


NULLS = (
    "head_dim", "num_key_value_heads", "rope_scaling", "rope_theta", "tie_word_embeddings", "hidden_act", "quantization_config",
    "sparse_config", "attention_bias", "mlp_bias", "rms_norm_eps", "num_experts", "eos_token_id", "nobody_knows_this_key",
    "architectures",
)  # fmt: skip


@pytest.mark.parametrize("key", NULLS)
def test_null_is_as_good_as_absent(key):
    assert from_hf({"model_type": "minicpm", **MINICPM, key: None}) == from_hf({"model_type": "minicpm", **MINICPM})


def test_null_scales_are_neutral_as_in_transformers():
    config = from_hf(MINICPM | {"scale_depth": None, "dim_model_base": None})
    assert (config.residual_scale, config.logit_scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    "harmless",
    [
        {"unsloth_version": "2026.9.1", "unsloth_fixed": True},
        {"transformers_version": "5.23.0", "_name_or_path": "a/b", "dtype": "bfloat16", "torch_dtype": "float16"},
        {"max_length": 20, "_attn_implementation_autoset": True, "pad_token_id": 3, "pretraining_tp": 2},
        {"sliding_window": 64, "use_sliding_window": False, "max_window_layers": 2, "layer_types": ["full_attention"] * 2},
        {"hidden_act": "SiLU"}, {"hidden_activation": "swish"}, {"mup_denominator": 32}, {"num_experts": 0}, {"rope_scaling": {}},
        {"rope_theta": 10000, "rms_norm_eps": 1e-6, "hidden_size": 32.0}, {"sparse_config": {}},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ],
)  # fmt: skip
def test_what_changes_nothing_passes(harmless):
    assert from_hf(MINICPM | harmless) == from_hf(MINICPM)


def test_ends_of_a_text():
    assert from_hf(LLAMA | {"bos_token_id": 0, "eos_token_id": [1, 130_073]}).eos_token_id == (1, 130_073)
    assert from_hf(LLAMA | {"eos_token_id": []}).eos_token_id is None
    assert from_hf(LLAMA | {"eos_token_id": 2}).eos_token_id == 2


# --- out again


@pytest.mark.parametrize("said", ["llama", "minicpm"])
@pytest.mark.parametrize("scales", [SCALES, {"scale_emb": 12.0}, {"scale_depth": 1.4}, {"dim_model_base": 16}])
def test_scales_survive_whatever_the_model_is_called(said, scales):
    """A configuration called llama lost them, and the trained model read back as another one."""
    config = tiny("llama", model_type=said, **scales)
    assert config.model_type == "minicpm"
    assert to_hf(config)["architectures"] == ["MiniCPMForCausalLM"]
    again = from_hf(json.loads(json.dumps(to_hf(config))))
    assert (again.scale_emb, again.logit_scale) == (config.scale_emb, config.logit_scale)
    assert again.residual_scale == pytest.approx(config.residual_scale)


def test_a_copy_with_scales_is_written_by_value_too():
    """model_copy checks nothing, so the name may lag behind."""
    config = tiny("llama").model_copy(update=SCALES)
    assert config.model_type == "llama"
    assert from_hf(to_hf(config)) == config.model_copy(update={"model_type": "minicpm"})


@pytest.mark.parametrize(
    "config",
    [
        tiny("minicpm", qk_norm=True), tiny("llama", attention_bias=True, qk_norm=True), tiny("qwen2", scale_emb=3.0),
        tiny("qwen3", moe=tiny("moe").moe), tiny("mla", moe=tiny("moe").moe),
    ],
)  # fmt: skip
def test_what_no_published_class_computes_is_kept_under_our_name(config):
    data = to_hf(config)
    assert (data["model_type"], data["architectures"]) == ("gangpao", ["GangpaoForCausalLM"])
    assert from_hf(json.loads(json.dumps(data))) == config


@pytest.mark.parametrize(
    "config", [tiny("llama", **SCALES), tiny("minicpm", qk_norm=True)], ids=["scales", "norms too"]
)
def test_a_saved_model_reads_back_as_itself(config, tmp_path):
    model = Transformer.build(config, seed=2)
    again = weights.load(weights.save(tmp_path / "m", config, weights.state(model)))
    assert again.config == config
    assert logits(again).equal(logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_can_say_it_stays(kind):
    assert (
        tiny(kind).model_type
        == to_hf(tiny(kind))["model_type"]
        == {
            "moe": "minicpm",
            "mla": "minicpm3",
            "delta": "qwen3_5_text",
            "nope": "smollm3",
            "window": "gemma3_text",
        }.get(kind, kind)
    )


def test_sparse_attention_is_kept_said_and_computed_densely(tmp_path, caplog):
    config = from_hf(MINICPM | {"sparse_config": {"dense_len": 4096}})
    assert from_hf(to_hf(config)) == config
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    ModelConfig.from_file(tmp_path / "config.json")
    assert "past 4,096 positions" in caplog.text
    sparse = build("minicpm", sparse_config=config.sparse_config)
    assert logits(sparse, IDS).equal(logits(build("minicpm"), IDS))
    folded, _ = weights.fold_to_llama(sparse.config, weights.state(sparse))
    assert from_hf(to_hf(folded)) == folded
    assert tiny("llama", sparse_config=config.sparse_config).model_type == "minicpm"

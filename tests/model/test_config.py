"""Configurations: presets, config.json in and out, and foreign files that must be refused or read as data."""

import json
import os
import sys
from pathlib import Path

import pytest

from gangpao.model.config import PRESETS, ModelConfig, from_hf, to_hf
from tests.model.tiny import KINDS, tiny

ROOT = Path(__file__).resolve().parents[2]
LLAMA = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "hidden_act": "silu",
}  # fmt: skip
MINICPM = LLAMA | {"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_json(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_hf(PRESETS[name])))
    assert ModelConfig.from_file(path) == PRESETS[name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_one_survives_too(kind):
    assert from_hf(json.loads(json.dumps(to_hf(tiny(kind))))) == tiny(kind)


def test_the_real_minicpm4_file():
    folder = Path(os.environ.get("GANGPAO_SHARED", ROOT.parent / "shared")) / "tokenizers" / "minicpm4"
    if not (folder / "config.json").is_file():
        pytest.skip("the config.json of MiniCPM4-8B is not there: set GANGPAO_SHARED")
    config = ModelConfig.from_file(folder / "config.json")
    scaling = config.rope_scaling
    assert scaling is not None
    assert len(scaling.long_factor) == 64
    assert config.model_copy(update={"rope_scaling": None, "eos_token_id": 2}) == PRESETS["minicpm4-8b"]


def test_transformers_4_and_5_spell_rope_differently():
    four = from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}})
    five = from_hf(LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}})
    assert four == five
    assert four.rope_scaling is not None
    assert four.rope_scaling.factor == 4.0
    assert from_hf(LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}).rope_theta == 7e5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"logits_soft_cap": 30}, "unknown key 'logits_soft_cap'"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 2}, "multiple"),
        ({"hidden_size": "32"}, "hidden_size|head_dim"),
        ({"hidden_size": 10**30, "rms_norm_eps": 2.0}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 1.0}}, "longrope needs"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"num_experts": 4, "num_experts_per_tok": 8}, "num_experts_per_tok"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_what_we_would_compute_wrongly_is_refused(change, says, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | change))
    with pytest.raises(ValueError, match=says) as caught:
        ModelConfig.from_file(path)
    assert str(path) in str(caught.value)


def test_a_minicpm_without_its_scales_is_refused():
    for key in ("scale_emb", "scale_depth", "dim_model_base"):
        with pytest.raises(ValueError, match=f"{key} missing.*12, 1.4 and 256"):
            from_hf({k: v for k, v in MINICPM.items() if k != key})
    assert from_hf(MINICPM).tie_word_embeddings  # the class's own default


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":', "null", "[" * 100_000, '{"vocab_size": 1e999}', "\udcff"])
def test_a_damaged_file_is_an_error_with_its_name(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"config\.json"):
        ModelConfig.from_file(path)
    with pytest.raises(ValueError, match="cannot be read"):
        ModelConfig.from_file(tmp_path / "absent.json")


def test_remote_code_is_never_followed(tmp_path, monkeypatch):
    """S3: auto_map names a module beside the file; reading the configuration must not import it."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil--evil.Model"}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    assert ModelConfig.from_file(path).hidden_size == 32
    assert "evil" not in set(sys.modules) - before

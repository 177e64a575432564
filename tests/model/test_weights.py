"""Checkpoints in and out, foreign ones too, and what is said when they are damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from gangpao.model import weights
from gangpao.model.config import from_hf, to_hf
from gangpao.model.transformer import Transformer
from tests.model.test_transformer import IDS, build, logits
from tests.model.tiny import KINDS, tiny


def stored(tmp_path, kind="minicpm", **options):
    model = Transformer.build(tiny(kind), seed=4)
    return model, weights.save(tmp_path / "m", model.config, weights.state(model), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [weights.SHARD_BYTES, 40_000])
def test_saved_and_loaded_is_equal(kind, shard_bytes, tmp_path):
    model, folder = stored(tmp_path, kind, shard_bytes=shard_bytes)
    again = weights.load(folder)
    assert again.config == model.config
    assert (folder / "model.safetensors.index.json").exists() == (shard_bytes < 1e6)
    a, b = model.state_dict(), again.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    half = weights.load(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_transformers_reads_what_we_write(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = build("minicpm")
    config, folded = weights.fold_to_llama(model.config, weights.state(model))
    folder = weights.save(tmp_path / "llama", config, folded)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    assert type(theirs).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(weights.load(folder)), logits(model), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["moe", "mla"])
def test_what_llama_has_not_cannot_be_folded(kind):
    with pytest.raises(ValueError, match="folded"):
        weights.fold_to_llama(tiny(kind), {})


def test_a_torch_bin_and_bmtrain_names_load_too(tmp_path):
    model, folder = stored(tmp_path, "minicpm")
    names = {
        "model.embed_tokens.weight": "input_embedding.weight",
        "model.norm.weight": "encoder.output_layernorm.weight",
        "input_layernorm": "self_att.layernorm_before_attention",
        "post_attention_layernorm": "ffn.layernorm_before_ffn",
        "self_attn.o_proj": "self_att.self_attention.attention_out",
        "mlp.gate_proj": "ffn.ffn.w_in.w_0", "mlp.up_proj": "ffn.ffn.w_in.w_1", "mlp.down_proj": "ffn.ffn.w_out",
        **{f"self_attn.{x}_proj": f"self_att.self_attention.project_{x}" for x in "qkv"},
    }  # fmt: skip

    def bmtrain(name):
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        return name.replace("model.layers", "encoder.layers")

    foreign = {bmtrain(n): p for n, p in weights.state(model).items()}
    assert not any(name.startswith("model.") for name in foreign)
    torch.save(foreign, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    again = weights.load(folder).state_dict()
    assert all(torch.equal(again[n], p) for n, p in model.state_dict().items())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda w: w.pop("model.norm.weight"), "1 tensors are missing .model.norm.weight"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 tensors are left over .extra"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), r"has shape \[3\], config.json says \[64\]"),
    ],
)
def test_a_wrong_set_of_tensors_is_named(damage, says, tmp_path):
    model, folder = stored(tmp_path)
    tensors = dict(weights.state(model))
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        weights.load(folder)


def test_stored_buffers_and_a_stored_copy_of_the_embedding_are_passed_over(tmp_path):
    model, folder = stored(tmp_path)
    copy = model.lm_head.weight.detach().clone()
    extra = {"lm_head.weight": copy, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    save_file(weights.state(model) | extra, folder / "model.safetensors")
    again = weights.load(folder)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert again.config == model.config


def test_a_trained_head_beside_a_tied_configuration_is_kept(tmp_path):
    """As transformers 5 does: a merged adapter with lm_head leaves such a folder."""
    model, folder = stored(tmp_path)
    head = torch.randn(320, 64)
    save_file(weights.state(model) | {"lm_head.weight": head}, folder / "model.safetensors")
    again = weights.load(folder)
    assert torch.equal(again.lm_head.weight, head)
    assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert not again.config.tie_word_embeddings
    twice = weights.load(weights.save(tmp_path / "again", again.config, weights.state(again)))
    assert torch.equal(twice.lm_head.weight, head)


def test_the_language_model_of_one_that_sees(tmp_path):
    """MiniCPM-V 2.0 keeps its MiniCPM under llm., beside vpm and resampler."""
    model = Transformer.build(tiny("minicpm", tie_word_embeddings=False), seed=4)
    data = to_hf(model.config) | {
        "model_type": "minicpmv",
        "architectures": ["MiniCPMV"],
        "query_num": 64,
        "image_size": 448,
    }
    (tmp_path / "config.json").write_text(json.dumps(data))
    others = {"vpm.norm.weight": torch.zeros(3), "resampler.query": torch.zeros(2, 2)}
    save_file({f"llm.{n}": p for n, p in weights.state(model).items()} | others, tmp_path / "model.safetensors")
    again = weights.load(tmp_path).state_dict()
    assert all(torch.equal(again[n], p) for n, p in model.state_dict().items())


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.3 * i for i in range(8)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "longest", "rope"),
    [
        ("Llama", 256, {"rope_type": "default"}),
        ("Llama", 256, {"rope_type": "linear", "factor": 3.0}),
        ("Llama", 16, {"rope_type": "dynamic", "factor": 4.0}),  # 24 positions: it grows
        ("Llama", 64, {"rope_type": "dynamic", "factor": 4.0}),
        ("Llama", 256, YARN),
        ("Llama", 256, YARN | {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}),
        ("Llama", 256, YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}),
        ("Llama", 256, LONGROPE | {"original_max_position_embeddings": 16}),  # long factors, grown by 256 / 16
        ("Llama", 256, LONGROPE | {"original_max_position_embeddings": 64}),
        ("Llama", 256, LONGROPE | {"original_max_position_embeddings": 64, "factor": 2.5}),
        ("Llama", 64, LONGROPE | {"original_max_position_embeddings": 78}),  # as MiniCPM-V 4 has it: no stretch at all
        ("Llama", 256, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 64}),
        ("Qwen2", 256, {"rope_type": "default"}),
        ("Qwen3", 256, YARN),
        ("MiniCPM3", 256, {"rope_type": "default"}),
        ("MiniCPM3", 256, {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 3.0, 4.0, 5.0],
                           "original_max_position_embeddings": 16}),
    ],
)  # fmt: skip
def test_we_read_what_transformers_writes(kind, longest, rope, tmp_path):
    """A folder that transformers 5 saved has its logits; spelled as by version 4, it is the same configuration."""
    transformers = pytest.importorskip("transformers")
    shape = {
        "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "rms_norm_eps": 2e-5, "initializer_range": 0.2, "max_position_embeddings": longest,
        "rope_parameters": {"rope_theta": 5000.0} | rope,
    }  # fmt: skip
    if kind == "MiniCPM3":
        shape |= {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
        shape |= {"num_key_value_heads": 4, "scale_emb": 7.5, "scale_depth": 1.1, "dim_model_base": 16}
    else:
        shape |= {"num_key_value_heads": 2, "head_dim": 16}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape, attn_implementation="eager")
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(logits(weights.load(tmp_path)), expected, rtol=1e-4, atol=1e-4)
    data = json.loads((tmp_path / "config.json").read_text())
    five = from_hf(data)
    given = data.pop("rope_parameters")
    data["rope_theta"] = given.pop("rope_theta")
    kind_of_rope = given.pop("rope_type")
    given["type"] = {"longrope": "su"}.get(kind_of_rope, kind_of_rope)
    data |= {"rope_scaling": None if kind_of_rope == "default" else given, "torch_dtype": data.pop("dtype", None)}
    assert from_hf(data) == five


def test_damaged_files_are_named(tmp_path):
    _, folder = stored(tmp_path, shard_bytes=40_000)
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{shard.name}: cannot be read"):
        weights.load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name} is missing"):
        weights.load(folder)
    index = folder / "model.safetensors.index.json"
    for text in ("{", "[]", '{"weight_map": 3}', json.dumps({"weight_map": {"a": "../../etc/passwd"}})):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json"):
            weights.load(folder)
    index.unlink()
    with pytest.raises(ValueError, match=r"there is no model\.safetensors"):
        weights.load(folder)


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    model, folder = stored(tmp_path)
    with pytest.raises(ValueError, match="exists already"):
        weights.save(folder, model.config, weights.state(model))

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        weights.save(tmp_path / "other", model.config, weights.state(model))
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_whoever_reads_the_configuration_reads_the_weights(tmp_path):
    model = Transformer.build(tiny(), seed=0)
    weights.save(tmp_path / "m", model.config, weights.state(model))
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1

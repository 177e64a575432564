"""Everything a Hugging Face folder can say that changes answers: each is honoured, as transformers has it, or refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from gangpao.deploy import gguf as writer
from gangpao.engine.generate import Engine
from gangpao.model import weights
from tests.model.test_transformer import build
from tests.text.hf_folder import byte_level, save

IDS = [5, 17, 300, 42, 7, 99]


def folder(path, kind="llama", **fields):
    model = build(kind, **fields).float()
    weights.save(path, model.config, weights.state(model))
    return save(path, byte_level())


def merged(path, values):
    data = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in (data | values).items() if v != "DROP"}))


CONFIG_REFUSED = [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is on"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types asks for other layers"),
    ({"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window is True"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "bogus": 1}}, "bogus"),
    ({"rope_scaling": {"rope_type": "mrope", "factor": 4.0}}, "mrope"),
    ({"head_dim": 32}, r"k_proj.weight has shape \[32, 64\], config.json says \[64, 64\]"),
    ({"num_key_value_heads": 4}, r"k_proj.weight has shape \[32, 64\], config.json says \[64, 64\]"),
    ({"vocab_size": 330}, r"has shape \[320, 64\], config.json says \[330, 64\]"),
    ({"num_hidden_layers": 2}, "9 tensors have no place"),
    ({"num_hidden_layers": 4}, "9 tensors are missing"),
    ({"tie_word_embeddings": False}, "there is no lm_head.weight"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.bits is"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, and only none"),
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, and only none"),
    ({"query_pre_attn_scalar": 8}, "unknown key 'query_pre_attn_scalar'"),
    ({"attention_multiplier": 0.1}, "unknown key 'attention_multiplier'"),
    ({"residual_multiplier": 0.2}, "unknown key 'residual_multiplier'"),
    ({"no_rope_layers": [1, 0, 1]}, "unknown key 'no_rope_layers'"),
    ({"num_local_experts": 8}, "unknown key 'num_local_experts'"),
    ({"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16}, "scale_emb 12.*MiniCPM's applies them"),
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "mistral"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "says"), CONFIG_REFUSED, ids=[says for _, says in CONFIG_REFUSED])
def test_a_configuration_that_we_would_compute_wrongly_is_refused(values, says, tmp_path):
    path = folder(tmp_path / "m")
    merged(path / "config.json", values)
    with pytest.raises(ValueError, match=says):
        writer.export(path, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 24.0, "beta_slow": 2.0}
HONOURED = [
    ("llama", {"rms_norm_eps": 0.05}),
    ("llama", {"rope_theta": 50.0}),
    ("llama", {"rope_scaling": "DROP", "rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}}),
    ("llama", {"rope_scaling": YARN}),
    ("llama", {"rope_scaling": YARN | {"attention_factor": 1.4}}),
    ("llama", {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}),
    ("llama", {"sliding_window": 2, "max_window_layers": 1, "pretraining_tp": 2}),
    ("llama", {"head_dim": "DROP"}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 2}),
    ("qwen3", {"rms_norm_eps": 0.02}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), HONOURED, ids=str)
def test_what_is_honoured_is_what_transformers_computes(kind, values, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = folder(tmp_path / "m", kind)
    merged(path / "config.json", values)
    engine = Engine.load(writer.export(path, tmp_path / "m.gguf", "F32"), context=64)
    ours = engine.session().feed(IDS).astype(np.float64)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([IDS])).logits[0, -1].double().numpy()
    ours, theirs = (x - np.logaddexp.reduce(x) for x in (ours, theirs))
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def changed(name, **values):
    return lambda path: merged(path / name, values)


def with_tensor(name, value):
    def change(path):
        tensors = load_file(path / "model.safetensors")
        save_file(tensors | {name: value(tensors)}, path / "model.safetensors")

    return change


def tokenizer(change):
    def apply(path):
        data = json.loads((path / "tokenizer.json").read_text())
        change(data)
        (path / "tokenizer.json").write_text(json.dumps(data))

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
FOLDER_REFUSED = [
    (lambda path: save(path, byte_level(added=["<a>", "<b>"])), "322 pieces and the model 320 rows, so '<a>' and what comes"),
    (lambda path: save(path, byte_level(added=[AddedToken("<a>", single_word=True)])), "single_word"),
    (tokenizer(lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)), "no GGUF pre-tokenizer"),
    (tokenizer(lambda d: d["pre_tokenizer"]["pretokenizers"].pop(0)), "no GGUF pre-tokenizer"),
    (tokenizer(lambda d: d["model"].update(type="Unigram")), "gangpao reads BPE"),
    (tokenizer(lambda d: d["model"].update(dropout=0.1)), "model.dropout"),
    (lambda path: (path / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    (changed("generation_config.json", eos_token_id=[1, 400]), "end tokens: generation_config.json names 400"),
    (changed("generation_config.json", temperature="hot"), "temperature is 'hot', it must be a number"),
    (with_tensor(UP, lambda t: (t[UP] * 10).to(torch.int8)), "holds int8, not floats"),
    (with_tensor(UP, lambda t: t[UP] * float("inf")), f"tensor {UP}, to be written as Q8_0: row 0"),
    (with_tensor(UP, lambda t: t[UP] * 1e9), f"tensor {UP}, to be written as Q8_0: row 0: a scale of a block"),
    (with_tensor(UP[:-6] + "lora_A.weight", lambda t: torch.zeros(4, 64)), "1 tensors have no place"),
    (with_tensor(UP[:-6] + "bias", lambda t: torch.zeros(96)), "1 tensors have no place"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), FOLDER_REFUSED, ids=[says for _, says in FOLDER_REFUSED])
def test_a_folder_that_gguf_cannot_say_is_refused(change, says, tmp_path):
    path = folder(tmp_path / "m")
    change(path)
    with pytest.raises(ValueError, match=says):
        writer.export(path, tmp_path / "m.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("files", "template", "notes"),
    [
        ({"config": {"chat_template": "{{ x }}"}}, "{{ x }}", 0),
        ({"config": {"chat_template": NAMED}}, "D", 0),
        ({"config": {"chat_template": NAMED[:1]}}, None, 1),
        ({"config": {"chat_template": "old"}, "chat_template__jinja": "new"}, "new", 0),
        ({"chat_template__json": {"chat_template": "legacy"}}, "legacy", 0),
        ({}, None, 0),
    ],
)
def test_the_chat_template_is_the_one_that_transformers_takes(files, template, notes, tmp_path):
    path = save(folder(tmp_path / "m"), byte_level(), **files)
    seen = []
    engine = Engine.load(writer.export(path, tmp_path / "m.gguf", on_note=seen.append), context=64)
    assert engine.template.source == template
    assert len(seen) == notes


def test_tensors_of_other_float_types_and_old_buffers_are_taken(tmp_path):
    path = folder(tmp_path / "m")
    tensors = load_file(path / "model.safetensors")
    kinds = (torch.float64, torch.bfloat16, torch.float16, torch.float32)
    mixed = {name: t.to(kinds[i % 4]) for i, (name, t) in enumerate(tensors.items())}
    save_file(mixed | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, path / "model.safetensors")
    writer.export(path, tmp_path / "m.gguf", "BF16")


def test_a_table_of_many_ends_says_what_llama_cpp_reads(tmp_path):
    path = folder(tmp_path / "m")
    merged(path / "generation_config.json", {"eos_token_id": [1, 2, 3, 4]})
    seen = []
    writer.export(path, tmp_path / "m.gguf", on_note=seen.append)
    assert seen == ["4 tokens end an answer; llama.cpp reads 3 of them (eos, eot, eom)"]

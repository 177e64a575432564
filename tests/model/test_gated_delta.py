"""Gated DeltaNet in torch: transformers' numbers, both forms equal, gradients, folders in and out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gangpao.model import weights
from gangpao.model.config import PRESETS, ModelConfig, from_hf, to_hf
from gangpao.model.count import flops_per_token, kv_bytes_per_token, parameters, state_bytes
from gangpao.model.gated_delta import CHUNK, chunked, recurrent
from gangpao.model.transformer import Transformer
from tests.model.test_transformer import build
from tests.model.tiny import tiny

IDS = torch.randint(0, 320, (2, 150), generator=torch.Generator().manual_seed(1))
EVERY_FOURTH = ("linear_attention",) * 3 + ("full_attention",)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def heads(time):
    """q, k, v, logarithms of decays and betas of three heads."""
    k = random(2, 3, time, 16)
    return (
        random(2, 3, time, 16), k / k.norm(dim=-1, keepdim=True), random(2, 3, time, 12), -random(2, 3, time).square(),
        random(2, 3, time).sigmoid(),
    )  # fmt: skip


def documents(time, border):
    number = (torch.arange(time) >= border).int()
    return ((number[:, None] == number[None]) & torch.ones(time, time, dtype=torch.bool).tril())[None].expand(2, -1, -1)


@pytest.mark.parametrize("time", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("packed", [False, True])
def test_both_forms_are_equal_and_so_are_their_gradients(time, packed):
    inputs = [x.requires_grad_() for x in heads(time)]
    start = random(2, 3, 16, 12).requires_grad_()
    seen = documents(time, time // 2) if packed else None
    found = [form(*inputs, None if packed else start, seen) for form in (recurrent, chunked)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    wanted = inputs if packed else [*inputs, start]
    gradients = [torch.autograd.grad(y.square().sum() + s.sum(), wanted) for y, s in found]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_gradients_are_those_of_differences():
    inputs = [x[:1, :1, :5].detach().requires_grad_() for x in heads(5)]
    assert torch.autograd.gradcheck(chunked, inputs, fast_mode=True)
    model = build("delta")
    layer = model.model.layers[0].linear_attn
    x = random(1, 4, 64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, None, None), [x], fast_mode=True)


def test_a_document_does_not_see_the_state_of_the_one_before():
    q, k, v, decay, beta = heads(80)
    packed, _ = chunked(q, k, v, decay, beta, None, documents(80, 37))
    for part in (slice(0, 37), slice(37, 80)):
        alone, _ = recurrent(*(x[:, :, part] for x in (q, k, v, decay, beta)))
        torch.testing.assert_close(packed[:, :, part], alone, rtol=1e-10, atol=1e-10)


def test_transformers_computes_the_same():
    qwen = pytest.importorskip("transformers.models.qwen3_5.modeling_qwen3_5", reason="transformers 5 is not installed")
    config = tiny("delta", layer_types=EVERY_FOURTH)
    theirs = qwen.Qwen3_5ForCausalLM(qwen.Qwen3_5TextConfig(**to_hf(config))).eval()
    ours = build("delta", layer_types=EVERY_FOURTH).float()
    missing = theirs.load_state_dict(ours.state_dict())
    assert not missing.missing_keys
    places = torch.stack([torch.arange(150), torch.arange(150) // 3, torch.arange(150) % 7])[:, None].expand(3, 2, 150)
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(ours.logits(ours(IDS).hidden), expected, rtol=0, atol=1e-4)
        turned = theirs(IDS, position_ids=places).logits
        torch.testing.assert_close(ours.logits(ours(IDS, positions_3BT=places).hidden), turned, rtol=0, atol=1e-4)
    assert (turned - expected).abs().max() > 1e-2
    assert expected.std() > 0.1, "the random model says nothing"


def test_folders_in_and_out(tmp_path):
    model = build("delta").float()
    weights.save(tmp_path / "m", model.config, weights.state(model))
    again = weights.load(tmp_path / "m")
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(IDS).hidden, model(IDS).hidden)


def test_the_published_form_is_read(tmp_path):
    """Numbers in text_config, tensors under a prefix, beside an encoder and a draft head."""
    model = build("delta", tie_word_embeddings=False).float()
    folder = weights.save(tmp_path / "m", model.config, weights.state(model))
    inner = json.loads((folder / "config.json").read_text()) | {
        "mtp_num_hidden_layers": 1,
        "mamba_ssm_dtype": "float32",
    }
    del inner["tie_word_embeddings"]
    outer = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": inner,
             "tie_word_embeddings": False, "vision_config": {"depth": 1}, "image_token_id": 5}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(outer))
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        n.replace("model.", "model.language_model.", 1) if n != "lm_head.weight" else n: t for n, t in tensors.items()
    }
    more = {"model.visual.patch_embed.weight": torch.ones(2, 2), "mtp.fc.weight": torch.ones(2, 2)}
    save_file(renamed | more, folder / "model.safetensors")
    again = weights.load(folder)
    assert again.config.model_copy(update={"tensor_prefix": None}) == model.config
    assert "model that sees" in again.config.remarks[0]
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in again.named_parameters())


def test_what_config_json_leaves_out():
    data = {"model_type": "qwen3_5_text", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    config = from_hf(data)
    assert config.kinds == EVERY_FOURTH * 2
    assert (config.head_dim, config.rope_dim, config.mrope_section) == (256, 64, (11, 11, 10))
    assert config.delta is not None
    assert (config.delta.linear_num_value_heads, config.delta.linear_num_key_heads, config.delta.value_size) == (
        32,
        16,
        4096,
    )
    assert from_hf(data | {"full_attention_interval": 2}).kinds == EVERY_FOURTH[2:] * 4
    assert from_hf(data | {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e7}}).rope_dim == 128


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer_types": ["full_attention"] * 4}, "belong together"),
        ({"layer_types": ["linear_attention"] * 3}, "names 3 layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "other layers than full_attention and linear_attention"),
        ({"attn_output_gate": False}, "attn_output_gate"),
        ({"linear_num_value_heads": 3}, "not a multiple of linear_num_key_heads"),
        ({"linear_num_key_heads": "2"}, "linear_num_key_heads is '2', and must be a whole number"),
        ({"rope_parameters": {"mrope_interleaved": False}}, "mrope_interleaved is off"),
        ({"rope_parameters": {"mrope_section": [90, 1, 1]}}, "mrope_section"),
        ({"num_experts": 4}, "unknown key 'num_experts'"),
    ],
)
def test_what_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        from_hf(to_hf(tiny("delta")) | change)


def test_other_models_have_no_such_layers():
    with pytest.raises(ValueError, match="belong together"):
        ModelConfig.model_validate(tiny("qwen3").model_dump() | {"layer_types": ("linear_attention",) * 3})


def test_counts():
    """By hand for Qwen3.5-0.8B's language model: 18 layers with a state, 6 that attend."""
    c = PRESETS["qwen3.5-0.8b"]
    state = 1024 * (6144 + 2048 + 32) + 2048 * 1024 + 6144 * 4 + 2 * 16
    attention = 1024 * (2 * 2048 + 512 + 512) + 2048 * 1024
    count = parameters(c)
    assert count.attention == 18 * state + 6 * attention
    assert (
        count.total == 248_320 * 1024 + count.attention + 24 * 3 * 1024 * 3584 + 24 * 2048 + 1024 + 18 * 128 + 6 * 512
    )
    assert kv_bytes_per_token(c) == 6 * 2 * 2 * 256 * 2
    assert state_bytes(c) == 4 * 18 * (16 * 128 * 128 + 3 * 6144)
    one, two = (flops_per_token(c, context) for context in (1000, 2000))
    assert two - one == 1000 * 2 * 8 * 256 * 6 * 2 / 2 * 1.0


def test_first_values():
    model = Transformer.build(tiny("delta"))
    layer = model.model.layers[0]
    assert torch.equal(layer.linear_attn.dt_bias, torch.ones(4))
    assert ((layer.linear_attn.A_log.exp() > 0) & (layer.linear_attn.A_log.exp() <= 16)).all()
    assert torch.equal(layer.linear_attn.norm.weight, torch.ones(16))
    assert not layer.input_layernorm.weight.any()
    assert layer.linear_attn.conv1d.weight.std() > 0.01

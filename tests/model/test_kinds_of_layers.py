"""SmolLM3 (layers without rotation) and Gemma 3 (windows, norms behind branches, GELU) are transformers' numbers."""

import pytest
import torch

from gangpao.model import weights
from gangpao.model.config import from_hf, to_hf
from gangpao.model.layers import windowed
from tests.model.test_transformer import IDS, build
from tests.model.tiny import tiny

CLASSES = {
    "nope": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "window": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_computes_the_same(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config_name, class_name = CLASSES[kind]
    ours = build(kind).float()
    config = getattr(transformers, config_name)(**to_hf(ours.config))
    theirs = getattr(transformers, class_name)(config).eval()
    assert not theirs.load_state_dict(ours.state_dict()).missing_keys
    with torch.no_grad():
        expected = theirs(IDS).logits
        found = ours.logits(ours(IDS).hidden)
    assert expected.std() > 0.1, "the random model says nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    folder = weights.save(tmp_path / "m", ours.config, weights.state(ours))
    assert weights.load(folder).config == ours.config
    assert from_hf(config.to_dict() | {"architectures": [class_name]}).kinds == ours.config.kinds


def test_what_config_json_leaves_out():
    shape = {
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    }
    smol = from_hf(shape | {"model_type": "smollm3"})
    assert smol.no_rope_layers == (1, 1, 1, 0) * 2
    assert (smol.rope_theta, smol.tie_word_embeddings) == (2e6, True)
    gemma = from_hf(shape | {"model_type": "gemma3_text", "sliding_window": 512})
    assert gemma.kinds == ("sliding_attention",) * 5 + ("full_attention",) + ("sliding_attention",) * 2
    assert (gemma.head_dim, gemma.rope_theta, gemma.rope_local_base_freq, gemma.embedding_scale) == (256, 1e6, 1e4, 8.0)
    assert from_hf(shape | {"model_type": "gemma3_text", "sliding_window_pattern": 2}).kinds[:2] == gemma.kinds[4:6]


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("window", {"query_pre_attn_scalar": 168}, "only the width of a head"),
        ("window", {"final_logit_softcapping": 30.0}, "only none is implemented"),
        ("window", {"hidden_activation": "silu"}, "only 'gelu_pytorch_tanh' is implemented"),
        ("window", {"layer_types": ["linear_attention"] * 6}, "other layers than full_attention and sliding_attention"),
        ("nope", {"no_rope_layers": [1, 0]}, "no_rope_layers names 2 layers"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "other layers than full_attention"),
    ],
)
def test_what_is_refused(kind, change, says):
    with pytest.raises(ValueError, match=says):
        from_hf(to_hf(tiny(kind)) | change)


def test_a_window_is_itself_and_those_before():
    mask = windowed(None, 5, 0, 2)
    assert mask is not None
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    behind = windowed(None, 1, 4, 2)
    assert behind is not None
    assert behind[0, 0].int().tolist() == [[0, 0, 0, 1, 1]]
    assert windowed(None, 5, 0, 5) is None

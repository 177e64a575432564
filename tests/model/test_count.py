"""Counts from configurations against the published numbers and against real modules."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gangpao import catalog
from gangpao.model import cpu
from gangpao.model.command import examine, find, presets_table, report
from gangpao.model.config import PRESETS
from gangpao.model.count import flops_per_token, kv_bytes_per_token, lora_parameters, memory, parameters
from gangpao.model.transformer import Transformer
from tests.model.tiny import KINDS, tiny

# non-embedding and total as published: arXiv:2404.06395 tables 2 and 8 (three digits there), model cards.
PUBLISHED = {
    "minicpm-2b": (2_442_057_984, 2_724_880_896),
    "minicpm-1b": (1_247_442_432, None),
    "minicpm5-2b": (1_981_982_720, 2_516_756_480),
    "minicpm5-1b": (679_552_512, 1_080_632_832),
    "smollm2-135m": (None, 134_515_008),
    "qwen2.5-0.5b": (None, 494_032_768),
    "qwen2.5-1.5b": (None, 1_543_714_304),
}
ROUNDED = {"minicpm-9m": 0.009, "minicpm-30m": 0.036, "minicpm-70m": 0.066, "minicpm-0.1b": 0.109, "minicpm-0.17b": 0.166,
           "minicpm-0.2b": 0.241, "minicpm-0.5b": 0.499, "minicpm-moe-8x2b": 13.6}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_exact_counts(name):
    count = parameters(PRESETS[name])
    non_embedding, total = PUBLISHED[name]
    assert non_embedding in (None, count.non_embedding)
    assert total in (None, count.total)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_counts(name):
    published = ROUNDED[name]
    digits = 1 if published > 1 else 3
    assert round(parameters(PRESETS[name]).non_embedding / 1e9, digits) == published


def test_the_catalog_says_the_same_of_minicpm5():
    assert catalog.entry("minicpm5-2b").parameters == parameters(PRESETS["minicpm5-2b"]).total
    assert catalog.entry("minicpm5-2b").bytes == 1_561_318_368
    assert kv_bytes_per_token(PRESETS["minicpm5-2b"]) == 42 * 1024


def test_an_untied_2b_has_3007703808():
    assert parameters(PRESETS["minicpm-2b-128k"]).total == 3_007_703_808


def test_lora_as_peft_prints_it():
    assert lora_parameters(PRESETS["minicpm-2b"]) == 2_949_120


@pytest.mark.parametrize("config", [*PRESETS.values(), *map(tiny, KINDS)], ids=[*PRESETS, *KINDS])
def test_formulas_equal_modules(config):
    with torch.device("meta"):
        model = Transformer(config)
    count = parameters(config)
    assert sum(p.numel() for p in model.parameters()) == count.total
    embedding = model.model.embed_tokens.weight.numel()
    assert count.embedding == embedding
    assert count.head == (0 if config.tie_word_embeddings else embedding)


@pytest.mark.parametrize("kind", ["llama", "minicpm", "mla"])
@pytest.mark.parametrize("training", [False, True])
def test_flops_equal_what_torch_counts(monkeypatch, kind, training):
    """Torch counts attention in full, without the causal half, and multiplies no biases or norms.

    Our own attention for CPUs does little more than the causal half, so torch's is counted.
    """
    monkeypatch.setattr(cpu, "applies", lambda x: False)
    config = tiny(kind, num_key_value_heads=4)
    model, time = Transformer.build(config), 32
    ids = torch.arange(time)[None]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not see the flash kernel
        logits = model.logits(model(ids).hidden)
        if training:
            logits.sum().backward()
    key, value = (24, 12) if kind == "mla" else (16, 16)
    attention = 2 * config.num_attention_heads * (key + value) * time * config.num_hidden_layers
    norms = parameters(config).norms
    ours = flops_per_token(config, time) - 2 * norms
    ours += attention - 2 * config.num_attention_heads * (key + value) * (time + 1) / 2 * config.num_hidden_layers
    assert counter.get_total_flops() == pytest.approx(ours * time * (3 if training else 1), rel=0.02)


def test_cache_bytes():
    assert kv_bytes_per_token(PRESETS["minicpm-2b"]) == 40 * 2 * 36 * 64 * 2
    assert kv_bytes_per_token(PRESETS["minicpm3-4b"]) == 62 * (256 + 32) * 2
    assert kv_bytes_per_token(PRESETS["minicpm-1b"], 1.125) == 52 * 2 * 8 * 64 * 1.125


def test_memory_of_the_published_recipes():
    """LoRA on the 2B took 10,619 MiB on one card; a plan must come out below a full 16-bit copy plus slack, not above."""
    plan = memory(PRESETS["minicpm-2b"], context=4096, tokens=2048)
    assert 2 * 2.72e9 < plan["tune_lora_bf16"] < 10_619 * 2**20
    assert plan["tune_lora_4bit"] < 5_500 * 2**20
    assert plan["train_adamw"] > 16 * 2.72e9


def test_show_speaks_of_presets_folders_and_files(tmp_path):
    from gangpao.model.config import to_hf

    (tmp_path / "config.json").write_text(json.dumps(to_hf(PRESETS["minicpm-1b"])))
    assert find(str(tmp_path)) == find(str(tmp_path / "config.json")) == find("minicpm-1b")
    with pytest.raises(ValueError, match="neither a preset"):
        find("minicpm-7t")
    facts = examine(find("minicpm-2b"), 4096, 4096)
    text = report("minicpm-2b", facts)
    assert "2,442,057,984" in text
    assert "368,640 bytes" in text
    assert json.loads(json.dumps(facts))["parameters"]["total"] == 2_724_880_896
    assert all(name in presets_table() for name in PRESETS)

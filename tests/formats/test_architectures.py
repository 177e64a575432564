"""The table of architectures: its names are those of the gguf package, and one row is all that run, lab and export need."""

import gguf
import numpy as np
import pytest
import torch

from gangpao.deploy import gguf as writer
from gangpao.deploy.header import form_of
from gangpao.engine.generate import Engine
from gangpao.formats import architectures
from gangpao.formats.architectures import (
    ARCHITECTURES,
    DELTA_KEYS,
    DELTA_TENSORS,
    DRAFT_LAYERS,
    EXPERT_TENSORS,
    HEAD,
    INNER_SIZE,
    INTERVAL,
    KEYS,
    LATENT_KEYS,
    LAYER_TENSORS,
    SECTIONS,
    TENSORS,
    Architecture,
    GGUFForm,
    Parts,
    by_gguf_name,
)  # fmt: skip
from gangpao.model import weights
from gangpao.model.config import ModelConfig, from_hf, to_hf
from gangpao.model.transformer import Transformer
from tests.formats.gguf_maker import vocabulary
from tests.model.tiny import tiny

IDS = list(range(3, 40))


def test_names_are_those_of_the_gguf_package() -> None:
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    for name, row in by_gguf_name().items():
        names = gguf.get_tensor_name_map(known[name], 2)
        for ours, theirs in TENSORS.items():
            assert f"{names.get_name(ours.removesuffix('.weight'))}.weight" == theirs, ours
        assert row.gguf is not None
        latents = {ours for ours in LAYER_TENSORS if "_a_" in ours or "_b_" in ours}
        for ours, theirs in row.gguf.layer_tensors().items():
            found = names.get_name(f"model.layers.1.{ours}")
            optional = set() if row.gguf.experts else {"mlp.gate"}
            optional |= set() if row.parts.qk_norm else {"self_attn.q_norm", "self_attn.k_norm"}
            optional |= {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"} if row.parts.latent else latents
            assert found == f"blk.1.{theirs}" or (found is None and ours in optional), (name, ours)
        assert names.get_name(HEAD.removesuffix(".weight")) == "output"
        for ours, theirs in DELTA_TENSORS.items() if row.parts.delta else ():
            renamed = ours.replace("dt_bias", "dt_proj.bias")  # as the converter does first
            found = names.get_name(f"model.layers.1.{renamed}", try_suffixes=(".weight", ".bias"))
            assert found in (f"blk.1.{theirs}", f"blk.1.{theirs.removesuffix('.bias')}"), ours
    llm = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM
    keys = {v for group in llm for v in vars(group).values() if isinstance(v, str)}
    ours = [*KEYS.values(), *DELTA_KEYS.values(), *LATENT_KEYS.values(), INNER_SIZE, INTERVAL, SECTIONS, DRAFT_LAYERS]
    assert {f"{{arch}}.{key}" for key in ours} <= keys
    assert {f"blk.1.{name}" for name in EXPERT_TENSORS.values()} == {
        gguf.TENSOR_NAMES[t].format(bid=1)
        for t in (gguf.MODEL_TENSOR.FFN_GATE_EXP, gguf.MODEL_TENSOR.FFN_UP_EXP, gguf.MODEL_TENSOR.FFN_DOWN_EXP)
    }


def test_no_name_stands_for_two_rows() -> None:
    names = [name for row in ARCHITECTURES for name in row.names()]
    assert len(names) == len(set(names))
    assert [row.gguf.name for row in ARCHITECTURES if row.gguf] == list(by_gguf_name())


def test_a_row_is_all_that_a_new_architecture_needs(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Biases and norms together, rotated pairs side by side: nobody has that."""
    row = Architecture(
        "tryout", "TryoutForCausalLM", Parts(attention_bias=True, qk_norm=True), GGUFForm("tryout", interleaved=True),
        defaults=ARCHITECTURES[0].defaults,
    )  # fmt: skip
    config = tiny("qwen3", attention_bias=True)
    with pytest.raises(ValueError, match="a norm on q and k together with biases"):
        form_of(config)
    assert to_hf(config)["model_type"] == "gangpao"
    monkeypatch.setattr(architectures, "ARCHITECTURES", (*ARCHITECTURES, row))
    config = ModelConfig.model_validate(config.model_dump())
    data = to_hf(config)
    assert (data["model_type"], data["architectures"]) == ("tryout", ["TryoutForCausalLM"])
    assert from_hf(data) == config
    model = Transformer.build(config, seed=1).float()
    path = writer.write(tmp_path / "m.gguf", config, weights.state(model), vocabulary(config.vocab_size), "F32")
    engine = Engine.load(path, context=64)
    assert engine.model.config.architecture == "tryout"
    ours = engine.model.forward(IDS, engine.model.new_cache(64))
    with torch.no_grad():
        theirs = model.lm_head(model(torch.tensor([IDS])).hidden)[0, -1].numpy()
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


MOE = tiny("moe").moe


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (tiny("qwen2", moe=MOE), "llama"),  # llama.cpp's qwen2 has no experts
        (tiny("llama", moe=MOE), "minicpm"), (tiny("moe"), "minicpm"),
        (tiny("qwen3", scale_emb=1.0, dim_model_base=64), "qwen3"),  # neutral: hidden_size is 64
        (tiny("qwen3", sparse_config={}), "qwen3"),
        (tiny("llama").model_copy(update={"scale_emb": 12.0}), "minicpm"), (tiny("minicpm", attention_bias=True), "minicpm"),
    ],
)  # fmt: skip
def test_the_form_follows_the_values(config: ModelConfig, form: str) -> None:
    assert form_of(config).name == form


def test_experts_with_norms_have_no_form() -> None:
    with pytest.raises(ValueError, match="a norm on q and k together with experts"):
        form_of(tiny("qwen3", moe=MOE))

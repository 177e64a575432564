"""Every row of the table: begins as the base, learns, is switched off; IA3 against peft; adapters as files hold them."""

from typing import get_args

import numpy as np
import peft
import pytest
import torch

from gangpao.formats.adapters import read_adapter, write_peft
from gangpao.model.transformer import Transformer
from gangpao.tune.base.nf4 import quantize
from gangpao.tune.base.quantized import QuantizedLinear
from gangpao.tune.methods import LEFT_OUT, METHODS, MethodConfig, apply
from gangpao.tune.methods.config import Kind
from tests.model.tiny import tiny
from tests.tune.methods.peers import IDS, named, our_loss, pair, same, their_loss

FROZEN = [kind for kind, method in METHODS.items() if not method.trains_base]


def build(kind="llama"):
    return Transformer.build(tiny(kind), seed=3)


def test_the_table_has_every_kind_and_what_bmtunes_library_offered():
    assert set(METHODS) == set(get_args(Kind))
    library = {
        "lora",
        "bitfit",
        "adapter",
        "parallel_adapter",
        "low_rank_adapter",
        "compacter",
        "prefix",
        "soft_prompt",
    }
    assert library <= set(METHODS) | set(LEFT_OUT)
    assert not set(METHODS) & set(LEFT_OUT)


@pytest.mark.parametrize("model_kind", ["llama", "moe"])
@pytest.mark.parametrize("kind", FROZEN)
def test_a_method_begins_as_the_base_learns_and_leaves(kind, model_kind):
    model = build(model_kind).requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        base = model(IDS).hidden
        applied = apply(model, MethodConfig(kind=kind, rank=4), seed=1)
        torch.testing.assert_close(model(IDS).hidden, base, rtol=0, atol=1e-5)
    optimizer = torch.optim.AdamW(applied.trainable.values(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = our_loss(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    with torch.no_grad(), applied.off():
        assert torch.equal(model(IDS).hidden, base)
    with torch.no_grad():
        assert not torch.allclose(model(IDS).hidden, base, atol=1e-4)
    after = {name.replace("base.", ""): p for name, p in model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(after[name], p) for name, p in before.items())


@pytest.mark.parametrize("kind", FROZEN)
def test_recomputed_gradients_are_the_kept_ones(kind):
    applied = apply(build(), MethodConfig(kind=kind, rank=4), seed=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in applied.trainable.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    values = list(applied.trainable.values())
    kept, again = (torch.autograd.grad(our_loss(applied.model, recompute=r), values) for r in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_ia3_equals_pefts():
    theirs = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    applied, peer = pair(MethodConfig(kind="ia3"), theirs=theirs)
    ours, other = our_loss(applied.model), their_loss(peer)
    same(ours, other)
    ours.backward()
    other.backward()
    for name, p in named(peer).items():
        same(applied.trainable[name].grad, p.grad.flatten())


def test_bitfit_is_a_bias():
    applied = apply(build("qwen2"), MethodConfig(kind="bitfit"), seed=1)
    plain = build("qwen2")
    with torch.no_grad():
        for i in range(3):
            for leaf in ("q_proj", "k_proj", "v_proj"):
                name = f"model.layers.{i}.self_attn.{leaf}"
                applied.trainable[f"{name}.shift"].fill_(0.3)
                plain.get_submodule(name).bias.add_(0.3)
        same(applied.model(IDS).hidden, plain(IDS).hidden)


def test_full_tuning_trains_every_weight_once_by_the_models_rules():
    model = build("minicpm")
    applied = apply(model, MethodConfig(kind="full"), seed=1)
    assert applied.trainable.keys() == dict(model.named_parameters()).keys()
    assert "lm_head.weight" not in applied.trainable  # tied
    assert applied.lr_factor("model.layers.0.mlp.up_proj.weight") == 16 / 64
    assert applied.decay("model.layers.0.mlp.up_proj.weight")
    assert not applied.decay("model.norm.weight")
    with pytest.raises(ValueError, match="full tuning changes the base itself"), applied.off():
        pass
    with pytest.raises(ValueError, match="full is not an adapter that PEFT or GGUF files hold; these are: lora, dora"):
        applied.adapter()


def test_full_tuning_refuses_a_base_in_blocks():
    model = build()
    model.model.layers[1].mlp.gate_proj = QuantizedLinear(quantize(model.model.layers[1].mlp.gate_proj.weight.detach()))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.gate_proj is kept in blocks"):
        apply(model, MethodConfig(kind="full"), seed=1)


def test_a_compacter_needs_multiples_of_four():
    with pytest.raises(ValueError, match="multiples of 4, not 6 and 64"):
        apply(build(), MethodConfig(kind="compacter", rank=6), seed=1)


@pytest.mark.parametrize(
    "config",
    [
        MethodConfig(rank=4, alpha=6.0, rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3.0}),
        MethodConfig(kind="dora", rank=4),
        MethodConfig(rank=4, targets=("embed_tokens", "o_proj")),
    ],
)
def test_the_adapter_that_is_written_is_the_one_that_was_trained(config, tmp_path):
    applied, peer = pair(config, "qwen2")
    adapter = applied.adapter(base="base", base_sha256="0" * 64)
    assert list(adapter.parts) == list(applied.modules)
    assert (adapter.base, adapter.base_sha256, adapter.rank) == ("base", "0" * 64, 4)
    plain = Transformer.build(tiny("qwen2"), seed=3)
    with torch.no_grad():
        state = dict(applied.model.named_parameters())
        for name, p in plain.named_parameters():
            at = name.rpartition(".")[0]
            p.copy_(state.get(name, state.get(f"{at}.base.{name.rpartition('.')[2]}")))
        embedding = plain.model.embed_tokens.weight.clone()
        plain.lm_head.weight = torch.nn.Parameter(embedding)  # an adapter on the embedding is not on the tied head
        for name, part in adapter.parts.items():
            weight = plain.get_submodule(name).weight
            weight.copy_(torch.from_numpy(part.applied(weight.numpy())))
        same(plain.lm_head(plain(IDS).hidden), applied.model.logits(applied.model(IDS).hidden))
        same(plain.lm_head(plain(IDS).hidden), peer(IDS).logits)
    write_peft(tmp_path / "adapter", adapter)
    again = read_adapter(tmp_path / "adapter")
    assert again.parts.keys() == adapter.parts.keys()
    for name, part in adapter.parts.items():
        assert again.parts[name].scale == pytest.approx(part.scale)
        assert np.array_equal(again.parts[name].b, part.b)

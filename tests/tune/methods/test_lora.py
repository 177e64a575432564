"""LoRA and DoRA: against peft, against autograd, over other bases, and off."""

import threading

import pytest
import torch
from torch.nn import functional as F

from gangpao.formats.blocks import quantize
from gangpao.model.layers import replace_linears
from gangpao.model.transformer import Transformer
from gangpao.tune.base.quantized import Blocks, QuantizedLinear
from gangpao.tune.methods import MethodConfig, apply
from tests.model.tiny import KINDS, tiny
from tests.tune.methods.peers import IDS, named, our_loss, pair, same, their_loss

CONFIGS = {
    "lora": MethodConfig(rank=4, alpha=6.0),
    "rslora": MethodConfig(rank=4, alpha=6.0, rslora=True),
    "dora": MethodConfig(kind="dora", rank=4, alpha=6.0),
    "dora_rslora": MethodConfig(kind="dora", rank=4, rslora=True),
    "patterns": MethodConfig(
        rank=4, alpha=6.0, rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8}, alpha_pattern={"v_proj": 3.0, "down_proj": 16}
    ),
    "some": MethodConfig(rank=4, targets=("q_proj", "v_proj", "layers.2.mlp.down_proj")),
    "expression": MethodConfig(rank=4, targets=r".*layers\.[02]\..*(o|up)_proj"),
    "tables": MethodConfig(rank=4, alpha=6.0, targets=("q_proj", "embed_tokens", "lm_head")),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("case", CONFIGS)
def test_loss_and_gradients_equal_pefts(kind, case):
    applied, peer = pair(CONFIGS[case], kind)
    ours, theirs = our_loss(applied.model), their_loss(peer)
    same(ours, theirs)
    ours.backward()
    theirs.backward()
    for name, p in named(peer).items():
        same(applied.trainable[name].grad, p.grad)
    assert all(p.grad is None for p in applied.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("case", ["lora", "dora"])
def test_three_steps_equal_pefts(case):
    applied, peer = pair(CONFIGS[case])
    theirs = named(peer)
    ours = torch.optim.AdamW(applied.trainable.values(), lr=1e-3, weight_decay=0.0)
    other = torch.optim.AdamW([theirs[name] for name in applied.trainable], lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        for optimizer, loss in ((ours, our_loss(applied.model)), (other, their_loss(peer))):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, p in applied.trainable.items():
        torch.testing.assert_close(p, theirs[name], rtol=0, atol=1e-5)
    same(our_loss(applied.model), their_loss(peer))


def build(kind="llama", storage=torch.float32, **fields):
    return Transformer.build(tiny(kind, **fields), seed=3).to(storage)


def shaken(applied):
    """Values that a training may have brought, not those of the beginning."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in applied.trainable.values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return applied


def in_blocks(model):
    """All linears of the layers in 8-bit blocks, as a GGUF file has them."""

    def replace(name, linear):
        raw = quantize(linear.weight.detach().numpy(), "Q8_0")
        bias = None if linear.bias is None else linear.bias.detach()
        return QuantizedLinear(Blocks(raw, "Q8_0", linear.in_features), bias) if name != "lm_head" else None

    replace_linears(model, replace)
    return model


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_computes_what_the_summed_weights_do(kind, method):
    applied = shaken(apply(build(kind), MethodConfig(kind=method, rank=3, alpha=5), seed=1))
    model = Transformer.build(tiny(kind), seed=3)
    with torch.no_grad():
        for name, m in applied.modules.items():
            weight = m.base.weight + m.scale * m.lora_B @ m.lora_A
            if method == "dora":
                weight *= (m.magnitude / weight.norm(dim=1))[:, None]
            model.get_submodule(name).weight.copy_(weight)
        same(applied.model(IDS).hidden, model(IDS).hidden)
    plain, again = our_loss(applied.model), our_loss(applied.model, recompute=True)
    gradients = [
        torch.autograd.grad(loss, list(applied.trainable.values()), allow_unused=True) for loss in (plain, again)
    ]
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept is recomputed is None or torch.equal(kept, recomputed)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "blocks"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_untrained_and_off_are_the_base_to_the_bit(method, storage):
    model = build("qwen2", torch.bfloat16 if storage == "bfloat16" else torch.float32)
    if storage == "blocks":
        in_blocks(model)
    model.requires_grad_(False)
    base = model(IDS, dtype=torch.float32).hidden
    applied = apply(model, MethodConfig(kind=method, rank=4), seed=1)
    torch.testing.assert_close(model(IDS, dtype=torch.float32).hidden, base, rtol=0, atol=1e-5)
    shaken(applied)
    assert not torch.allclose(model(IDS, dtype=torch.float32).hidden, base, atol=1e-3)
    with applied.off():
        assert torch.equal(model(IDS, dtype=torch.float32).hidden, base)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(model(IDS, dtype=torch.float32).hidden.detach()))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], model(IDS, dtype=torch.float32).hidden)  # off is off for one thread


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_gradients_over_blocks_equal_those_over_the_floats_they_stand_for(method):
    blocks, floats = in_blocks(build("qwen2")), build("qwen2")
    for name, module in blocks.named_modules():
        if isinstance(module, QuantizedLinear):
            floats.get_submodule(name).weight.data.copy_(module.dense())
    found = []
    for model in (blocks, floats):
        applied = shaken(apply(model, MethodConfig(kind=method, rank=4), seed=1))
        found.append(torch.autograd.grad(our_loss(model), list(applied.trainable.values())))
    for ours, theirs in zip(*found, strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_bf16_computation_is_near(method):
    applied = shaken(apply(build(storage=torch.bfloat16), MethodConfig(kind=method, rank=4), seed=1))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        loss = our_loss(applied.model, dtype=dtype)
        found.append(torch.autograd.grad(loss, list(applied.trainable.values())))
    assert {g.dtype for g in found[0]} == {torch.float32}
    for near, exact in zip(*found, strict=True):
        assert F.cosine_similarity(near.flatten(), exact.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_dropout_is_made_again_for_the_backward_pass(method):
    """A loss that is linear in B: its change is the gradient times the change, with the same random numbers."""
    applied = shaken(apply(build(num_hidden_layers=1), MethodConfig(kind=method, rank=4, dropout=0.4), seed=1))
    assert applied.draws_random_numbers
    state = torch.get_rng_state()

    def loss(**options):
        torch.set_rng_state(state)
        return our_loss(applied.model, **options)

    first = loss()
    assert torch.equal(first, loss())
    assert not torch.equal(first, our_loss(applied.model))  # other numbers
    parameters = list(applied.trainable.values())
    gradients = torch.autograd.grad(first, parameters)
    again = torch.autograd.grad(loss(recompute=True), parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    if method == "lora":
        for p, g in zip(parameters, gradients, strict=True):
            step = 1e-2 * g / g.norm()
            with torch.no_grad():
                p += step
                high = loss()
                p -= 2 * step
                low = loss()
                p += step
            assert float((high - low) / 2e-2) == pytest.approx(float(g.norm()), rel=0.02)
    applied.model.eval()
    assert torch.equal(our_loss(applied.model), our_loss(applied.model))


def test_first_values_depend_on_seed_and_name_alone():
    whole, some = (apply(build(), MethodConfig(rank=4, targets=t), seed=1) for t in ("all-linear", ("v_proj",)))
    other = apply(build(), MethodConfig(rank=4), seed=2)
    for name, p in some.trainable.items():
        assert torch.equal(p, whole.trainable[name])
    name = "model.layers.1.self_attn.v_proj.lora_A"
    assert not torch.equal(whole.trainable[name], other.trainable[name])
    assert float(whole.trainable[name].detach().abs().max()) == pytest.approx(
        64**-0.5, rel=0.05
    )  # kaiming_uniform_(a=sqrt(5))
    assert not whole.trainable[name.replace("_A", "_B")].any()


def test_a_router_is_no_target():
    applied = apply(build("moe"), MethodConfig(rank=2), seed=1)
    assert "model.layers.0.mlp.experts.3.w2" in applied.modules
    assert not any("gate" in name for name in applied.modules)
    assert apply(build("moe"), MethodConfig(rank=2, targets=("mlp.gate",)), seed=1).modules


def test_a_tied_head_moves_alone():
    """PEFT's merge of such an adapter moves the input embeddings too; training must not."""
    model = build("minicpm")
    applied = shaken(apply(model, MethodConfig(rank=4, targets=("lm_head",)), seed=1))
    before = build("minicpm")
    assert list(applied.modules) == ["lm_head"]
    same(model(IDS).hidden, before(IDS).hidden, 1e-6)
    assert not torch.allclose(model.logits(model(IDS).hidden), before.logits(before(IDS).hidden))
    assert model.lm_head.base.weight is model.model.embed_tokens.weight


def test_learning_rates_and_decay():
    applied = apply(build(), MethodConfig(kind="dora", rank=4, lora_plus=16), seed=1)
    at = "model.layers.0.mlp.up_proj."
    assert [applied.lr_factor(at + leaf) for leaf in ("lora_A", "lora_B", "magnitude")] == [
        1,
        16,
        16,
    ]  # as peft's optimizer
    assert [applied.decay(at + leaf) for leaf in ("lora_A", "lora_B", "magnitude")] == [True, True, False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"targets": ("q_prj",)}, "targets: this model has no q_prj; did you mean q_proj?"),
        ({"targets": "q_proj"}, "targets: this model has no q_proj"),  # a regular expression for whole names
        ({"kind": "dora", "targets": ("embed_tokens",)}, "DoRA is for linears"),
        ({"kind": "ia3", "targets": ("embed_tokens",)}, "is no linear"),
    ],
)
def test_what_cannot_be_is_said(config, words):
    with pytest.raises(ValueError, match=words):
        apply(build(), MethodConfig(**config), seed=1)


@pytest.mark.parametrize("config", [{"targets": ()}, {"targets": "("}, {"rank_pattern": {"q_proj": 0}}])
def test_a_wrong_configuration_is_refused(config):
    with pytest.raises(ValueError, match=r"targets are empty|regular expression|above zero"):
        MethodConfig(**config)


def test_all_linears_and_what_is_outside_the_layers():
    alone, more = (
        apply(build(), MethodConfig(rank=4, targets=t), seed=1)
        for t in ("all-linear", ("embed_tokens", "all-linear", "lm_head"))
    )
    assert set(more.modules) == {*alone.modules, "model.embed_tokens", "lm_head"}

"""The forward pass: against transformers, cached = uncached, packed = apart, recomputed = plain, and the first values."""

import math

import pytest
import torch

from gangpao.model.config import PRESETS, RopeScaling
from gangpao.model.init import KindRule, kind_of, rule_of
from gangpao.model.layers import Linear, replace_linears
from gangpao.model.transformer import Transformer
from tests.model.tiny import KINDS, tiny

IDS = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(1))


def build(kind, **fields):
    """A model whose norms and biases are not 1 and 0, so that leaving one out shows."""
    model = Transformer.build(tiny(kind, **fields), seed=3).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
            elif "embed" not in name:
                p.mul_(2.0)
    return model


def logits(model, ids=IDS, **options):
    return model.lm_head(model(ids, **options).hidden)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[24], [1] * 24, [7, 1, 16]])
def test_cached_equals_uncached(kind, cuts):
    model = build(kind)
    with torch.no_grad():
        whole = logits(model)
        caches = model.new_cache(2, 24)
        parts = [logits(model, ids, caches=caches) for ids in IDS.split(cuts, dim=1)]
    assert caches[0].length == 24
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="the cache holds 24"):
        logits(model, IDS[:, :1], caches=caches)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_equal_documents_apart(kind):
    model = build(kind)
    lengths = [5, 1, 11, 7]
    documents = torch.repeat_interleave(torch.tensor([4, 9, 4, 2]), torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = logits(model, IDS[:1], documents_BT=documents)
        apart = torch.cat([logits(model, part) for part in IDS[:1].split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_gradients_equal_kept_ones(kind):
    grads = []
    for recompute in (False, True):
        model = build(kind)
        out = model(IDS, recompute=recompute)
        loss = out.hidden.square().mean() + (0 if out.balance is None else out.balance)
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "name", "fields"),
    [
        ("llama", "Llama", {}),
        ("llama", "Llama", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
        ("llama", "Llama", {"rope_scaling": RopeScaling(rope_type="linear", factor=3.0)}),
        ("llama", "Llama", {"rope_scaling": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)}),
        ("llama", "Llama", {"rope_scaling": RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=64)}),
        ("qwen2", "Qwen2", {}),
        ("qwen3", "Qwen3", {}),
    ],
)  # fmt: skip
def test_logits_equal_those_of_transformers(kind, name, fields):
    transformers = pytest.importorskip("transformers")
    from gangpao.model.config import to_hf

    model = build(kind, **fields)
    keys = {k: v for k, v in to_hf(model.config).items() if k not in ("model_type", "architectures", "qk_norm")}
    theirs = getattr(transformers, f"{name}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**keys, attn_implementation="eager")
    ).double()
    theirs.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)  # they turn in float32


def test_the_formula_of_minicpm():
    """One layer at a time, written out as the technical report has it, without any of our layers."""
    model = build("minicpm")
    c, w = model.config, {n: p.detach() for n, p in model.state_dict().items()}

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * weight

    ids = IDS[0]
    steps = torch.arange(len(ids), dtype=torch.float64)
    angle = steps[:, None] * c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    turn = torch.polar(torch.ones_like(angle), angle)
    h = w["model.embed_tokens.weight"][ids] * 7.5
    for i in range(3):
        a = {k.removeprefix(f"model.layers.{i}."): v for k, v in w.items() if k.startswith(f"model.layers.{i}.")}
        x = norm(h, a["input_layernorm.weight"])
        out = []
        for head in range(4):
            q, k, v = (
                x @ a[f"self_attn.{p}_proj.weight"].view(-1, 16, 64)[g].T
                for p, g in zip("qkv", (head, head // 2, head // 2), strict=True)
            )
            q, k = (torch.complex(y[:, :8], y[:, 8:]) * turn for y in (q, k))
            score = (q[:, None] * k.conj()[None]).real.sum(-1) / 4.0
            score = score.masked_fill(steps[None] > steps[:, None], -math.inf)
            out.append(score.softmax(-1) @ v)
        h = h + torch.cat(out, -1) @ a["self_attn.o_proj.weight"].T * (1.1 / math.sqrt(3))
        x = norm(h, a["post_attention_layernorm.weight"])
        gate = x @ a["mlp.gate_proj.weight"].T
        y = gate / (1 + (-gate).exp()) * (x @ a["mlp.up_proj.weight"].T)
        h = h + y @ a["mlp.down_proj.weight"].T * (1.1 / math.sqrt(3))
    expected = norm(h, w["model.norm.weight"]) * (16 / 64) @ w["model.embed_tokens.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(logits(model)[0], expected, rtol=1e-5, atol=1e-6)


def test_experts_equal_a_loop_over_tokens():
    model = build("moe")
    moe = model.model.layers[0].mlp
    x = torch.randn(3, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y, balance = moe(x)
        for b, t in ((0, 0), (1, 3), (2, 4)):
            p = (x[b, t] @ moe.gate.weight.T).softmax(-1)
            top = p.argsort(descending=True)[:2]
            expected = sum(p[e] / p[top].sum() * moe.experts[e](x[b, t][None])[0] for e in top.tolist())
            torch.testing.assert_close(y[b, t], expected, rtol=1e-6, atol=1e-9)
        moe.gate.weight.zero_()
        _, even = moe(x)
    assert balance > 0
    assert even == pytest.approx(1.0)


def test_first_values_follow_the_rules():
    """Table 7 of arXiv:2404.06395: inner matrices 0.1 / sqrt(d / 256) and lr / (d / 256), the embedding 0.1 and lr."""
    config = PRESETS["minicpm-0.1b"].model_copy(update={"num_hidden_layers": 1, "vocab_size": 2000})
    model = Transformer.build(config, seed=1)
    m = 768 / 256
    for name, p in model.named_parameters():
        rule = rule_of(name, config)
        inner = "proj" in name
        assert rule.lr_scale == pytest.approx(1 / m if inner else 1.0), name
        if rule.std is None:
            assert p.eq(1).all(), name
        else:
            expected = 0.1 / math.sqrt(m) if inner else 0.1
            assert p.std().item() == pytest.approx(expected, rel=0.01), name
            assert abs(p.mean().item()) < 0.01 * expected, name
            assert rule.decay_scale == 1.0


def test_plain_models_have_one_rule_for_all_matrices():
    config = tiny("llama")
    rules = {rule_of(n, config) for n, p in Transformer.build(config).named_parameters() if p.dim() == 2}
    assert rules == {rule_of("model.layers.0.mlp.up_proj.weight", config)}


def test_other_rules_replace_the_usual_ones_kind_by_kind():
    config = PRESETS["minicpm-0.1b"].model_copy(update={"num_hidden_layers": 1, "vocab_size": 2000})
    rules = {
        "hidden": KindRule(std=0.05, lr=0.5, eps=0.25),
        "embedding": KindRule(lr=8.0, weight_decay=0.5),
        "norm": KindRule(std=3.0, lr=2.0),
    }
    one, usual = Transformer.build(config, seed=1, rules=rules), Transformer.build(config, seed=1)
    for name, p in one.named_parameters():
        rule, before = rule_of(name, config, rules), rule_of(name, config)
        if kind_of(name) == "norm":  # ones stay ones, and still do not decay
            assert rule == (None, 2.0, 0.0, 1.0)
            assert p.eq(1).all()
        elif kind_of(name) == "embedding":
            assert rule == (before.std, 8.0, 0.5, 1.0)
            assert torch.equal(p, usual.get_parameter(name))
        else:
            assert rule == (0.05, 0.5, 1.0, 0.25)
            torch.testing.assert_close(p, usual.get_parameter(name) * (0.05 / before.std))


def test_the_same_seed_gives_the_same_model_whatever_its_depth():
    a, b, c = (
        Transformer.build(tiny(), seed=7),
        Transformer.build(tiny(num_hidden_layers=2), seed=7),
        Transformer.build(tiny(), seed=8),
    )
    first = dict(a.named_parameters())
    assert all(torch.equal(p, first[n]) for n, p in b.named_parameters())
    assert not torch.equal(first["model.embed_tokens.weight"], c.model.embed_tokens.weight)
    assert a.lm_head.weight is a.model.embed_tokens.weight


def test_replace_linears_reaches_all_and_keeps_names():
    model = build("llama", tie_word_embeddings=False)
    before = list(model.state_dict())
    with torch.no_grad():
        expected = logits(model)

    class Twice(Linear):
        def forward(self, x):
            return super().forward(x) * 2 / 2

    def replace(name, old):
        if name == "lm_head":
            return None
        new = Twice(old.in_features, old.out_features, bias=False)
        new.weight = old.weight
        return new

    swapped = replace_linears(model, replace)
    assert len(swapped) == 3 * 7
    assert list(model.state_dict()) == before
    with torch.no_grad():
        assert torch.equal(logits(model), expected)


def test_bf16_stays_near_float32():
    model = Transformer.build(tiny(), seed=3)
    with torch.no_grad():
        a, b = model(IDS).hidden, model(IDS, dtype=torch.bfloat16).hidden
    assert b.dtype == torch.bfloat16
    assert (a - b.float()).norm() / a.norm() < 0.03


def test_small_weights_are_computed_with_in_the_dtype_that_is_asked_for():
    """bf16 embeddings times MiniCPM's scale are not rounded to bf16 where float32 is computed in."""
    model = build("minicpm").bfloat16().requires_grad_(False)
    ours = model.logits(model(IDS, dtype=torch.float32).hidden)
    wide = model.float()
    torch.testing.assert_close(ours, wide.logits(wide(IDS).hidden), rtol=1e-5, atol=1e-5)

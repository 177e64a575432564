"""Rules of transfer are power laws, say it in the keys of a configuration, and MiniCPM's is what a plain run does anyway."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gangpao.model.config import ModelConfig
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.sandbox.trials.transfer import RULES, Base, Law, Multipliers, Transfer, describe, get_rule, resolve

BASE = Base(width=256, layers=4, batch_tokens=4096)
exponents = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0])
widths = st.integers(1, 64).map(lambda n: 32 * n)


def shape(width, layers=2, *, tied=True, **changes):
    return ModelConfig(
        model_type="minicpm", vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, head_dim=32,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, tie_word_embeddings=tied, **changes,
    )  # fmt: skip


def names(config):
    with torch.device("meta"):
        return [name for name, _ in Transformer(config).named_parameters()]


@given(
    width=widths,
    layers=st.integers(1, 4),
    batch=st.integers(2, 10**7),
    tied=st.booleans(),
    base_layers=st.integers(1, 64),
)
@settings(max_examples=60, deadline=None)
def test_minicpm_is_what_a_plain_run_does(width, layers, batch, tied, base_layers):
    """The very floats: a trial under this rule is bit for bit a run of `gangpao train` with MiniCPM's four numbers."""
    base = Base(width=256, layers=base_layers, batch_tokens=4096)
    resolved = resolve(RULES["minicpm"], width=width, layers=layers, batch_tokens=batch, base=base)
    numbers = {"dim_model_base": 256, "scale_emb": 12.0, "scale_depth": 1.4, "initializer_range": 0.1}
    assert resolved.change == numbers
    assert resolved.lr_factor == 1.0
    config = shape(width, layers, tied=tied, attention_bias=True, **numbers)
    for name in names(config):
        assert rule_of(name, config, resolved.rules) == rule_of(name, config), name


def test_weights_begin_the_same():
    resolved = resolve(RULES["minicpm"], width=96, layers=2, batch_tokens=64, base=BASE)
    config = shape(96, **resolved.change)
    plain, ruled = Transformer.build(config, seed=5), Transformer.build(config, seed=5, rules=resolved.rules)
    for (name, a), b in zip(plain.named_parameters(), ruled.parameters(), strict=True):
        assert torch.equal(a, b), name


@given(
    base=st.floats(1e-3, 1e3),
    a=exponents,
    b=exponents,
    c=exponents,
    width=widths,
    layers=st.integers(1, 80),
    batch=st.integers(1, 10**7),
)
def test_a_law_is_a_power_law(base, a, b, c, width, layers, batch):
    law = Law(base=base, width=a, depth=b, batch=c)
    expected = math.log(base) + a * math.log(width / 256) + b * math.log(layers / 4) + c * math.log(batch / 4096)
    assert math.log(law.at(width, layers, batch, BASE)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert law.at(256, 4, 4096, BASE) == base
    absolute = law.model_copy(update={"absolute": True})
    assert absolute.at(1, 1, 1, BASE) == base
    assert absolute.at(width, layers, batch, BASE) == absolute.at(
        width, layers, batch, Base(width=8, layers=9, batch_tokens=10)
    )


@given(width=widths, layers=st.integers(1, 80), batch=st.integers(2, 10**7), name=st.sampled_from(list(RULES)))
@settings(deadline=None)
def test_what_the_model_computes_with_is_what_the_rule_says(width, layers, batch, name):
    """Through ModelConfig and rule_of: multipliers of the forward pass and options of the optimizer."""
    rule = RULES[name]
    resolved = resolve(rule, width=width, layers=layers, batch_tokens=batch, base=BASE)
    config = shape(width, layers, tied=False, **resolved.change)
    at = (width, layers, batch, BASE)
    assert config.scale_emb == rule.multipliers.embedding.at(*at)
    assert config.residual_scale == pytest.approx(rule.multipliers.residual.at(*at), rel=1e-12)
    assert config.logit_scale == pytest.approx(rule.multipliers.logits.at(*at), rel=1e-12)
    for kind, parameter in {
        "embedding": "model.embed_tokens.weight",
        "head": "lm_head.weight",
        "hidden": "model.layers.0.mlp.up_proj.weight",
    }.items():
        laws, found = rule.kinds[kind], rule_of(parameter, config, resolved.rules)
        assert found == (laws.std.at(*at), laws.lr.at(*at), laws.weight_decay.at(*at), laws.eps.at(*at))
    norm = rule_of("model.norm.weight", config, resolved.rules)
    assert (norm.std, norm.decay_scale) == (None, 0.0)


def test_what_the_papers_say():
    """Twice the width and four times the depth, in numbers."""

    def at(name, **change):
        return resolve(RULES[name], **{"width": 256, "layers": 4, "batch_tokens": 4096, **change}, base=BASE)

    wide = at("minicpm", width=512).rules
    assert (wide["hidden"].lr, wide["embedding"].lr, wide["norm"].lr) == (0.5, 1.0, 1.0)
    assert wide["hidden"].std == pytest.approx(0.1 / math.sqrt(2))
    deep = at("completep", width=512, layers=16)
    assert shape(512, 16, **deep.change).residual_scale == pytest.approx(0.7 / 4)
    hidden, embedding = deep.rules["hidden"], deep.rules["embedding"]
    assert (hidden.lr, hidden.weight_decay, hidden.eps) == (0.5, 2.0, 1 / 8)
    assert (embedding.lr, embedding.weight_decay, embedding.eps) == (1.0, 1.0, 0.5)
    plain = at("standard", width=1024, layers=32)
    assert {(r.lr, r.weight_decay, r.eps) for r in plain.rules.values()} == {(1.0, 1.0, 1.0)}
    config = shape(1024, 32, **plain.change)
    assert (config.scale_emb, config.residual_scale, config.logit_scale, config.initializer_range) == (
        1.0,
        1.0,
        1.0,
        0.02,
    )
    loud = at("standard-embedding", width=1024)
    assert loud.rules["embedding"].lr == 32.0
    assert {**loud.rules, "embedding": None} == {**at("standard", width=1024).rules, "embedding": None}


def test_completep_is_minicpm_at_the_base():
    both = [resolve(RULES[n], width=256, layers=4, batch_tokens=4096, base=BASE) for n in ("minicpm", "completep")]
    assert both[0] == both[1]


@given(e=exponents, width=widths, batch=st.integers(2, 10**6))
def test_the_rate_follows_the_batch(e, width, batch):
    assume(batch != 4096)
    rule = RULES["minicpm"].model_copy(update={"lr_batch": e})
    found = resolve(rule, width=width, layers=4, batch_tokens=batch, base=BASE)
    assert found.lr_factor == pytest.approx((batch / 4096) ** e)
    assert found.rules == resolve(RULES["minicpm"], width=width, layers=4, batch_tokens=batch, base=BASE).rules


def test_a_rule_is_data():
    for rule in RULES.values():
        assert Transfer.model_validate_json(rule.model_dump_json()) == rule
        assert rule.source
        assert get_rule(rule.name) is rule


def test_a_rule_as_a_table():
    rows = {row["kind"]: row for row in describe(RULES["completep"])}
    assert rows["hidden"] == {
        "kind": "hidden", "init": "0.1 m^-0.5", "lr": "1 m^-1", "weight decay": "1 m", "eps": "1 m^-1 l^-1",
        "multiplier": "0.7 l^-1",
    }  # fmt: skip
    assert rows["norm"]["init"] == "1"
    assert rows["bias"]["weight decay"] == "0"
    assert {row["kind"]: row for row in describe(RULES["minicpm"])}["hidden"]["multiplier"] == "1.4 layers^-0.5"
    batch = RULES["standard"].model_copy(update={"lr_batch": 0.5})
    assert {row["lr"] for row in describe(batch)} == {"1 k^0.5"}


def test_mistakes_are_said():
    with pytest.raises(ValueError, match="'magic': there are minicpm, standard, standard-embedding, completep"):
        get_rule("magic")
    with pytest.raises(ValueError, match="layers 0: it must be 1 or more"):
        resolve(RULES["minicpm"], width=64, layers=0, batch_tokens=64, base=BASE)
    half = RULES["minicpm"].model_copy(update={"multipliers": Multipliers(logits=Law(base=1.0, width=-0.5))})
    assert resolve(half, width=64, layers=1, batch_tokens=64, base=BASE).change["dim_model_base"] == 128
    with pytest.raises(ValueError, match=r"width 96 asks for dim_model_base 156\.767, which must be a whole number"):
        resolve(half, width=96, layers=1, batch_tokens=64, base=BASE)

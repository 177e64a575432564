"""Hidden states and attention: the formulas in plain torch, in double precision, and which layer goes with which."""

import math

import numpy as np
import pytest
import torch

from gangpao.compress.distil.inner import (
    Projections,
    Taps,
    attentions_apart,
    checked_pairs,
    even_pairs,
    looked_at,
    states_apart,
)
from gangpao.data.tokens.pack import Batch
from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import hidden_states
from tests.model.tiny import tiny


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_pairs_are_even_and_end_with_the_last_layer():
    assert even_pairs(4, 8) == ((0, 1), (1, 3), (2, 5), (3, 7))
    assert even_pairs(3, 3) == ((0, 0), (1, 1), (2, 2))
    assert even_pairs(2, 7) == ((0, 3), (1, 6))
    assert even_pairs(4, 2) == ((0, 0), (1, 0), (2, 1), (3, 1))
    assert checked_pairs(((1, 2), (1, 2)), 2, 3) == ((1, 2),)


def test_states():
    a, b = draw(0, 9, 16), draw(1, 9, 16)
    unit = [x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (a, b)]
    torch.testing.assert_close(states_apart(a, b, "mse"), (unit[0] - unit[1]).square().mean(-1))
    cosine = (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(states_apart(a, b, "cosine"), 1 - cosine)
    torch.testing.assert_close(states_apart(3 * a, a, "mse"), torch.zeros(9, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("heads", [4, 2, 3])
def test_attention_of_as_many_heads_or_others(kind, heads):
    mask = torch.ones(5, 5, dtype=torch.bool).tril()

    def logs(seed, n):
        return torch.log_softmax(draw(seed, 2, n, 5, 5).masked_fill(~mask, -torch.inf), -1)

    ours, theirs = logs(0, 4).requires_grad_(), logs(1, heads)
    groups = math.gcd(4, heads)
    q = ours.exp().reshape(2, groups, -1, 5, 5).mean(2)
    p = theirs.exp().reshape(2, groups, -1, 5, 5).mean(2)
    if kind == "mse":
        expected = (q - p).square().sum(-1).mean(1)
    else:
        expected = torch.where(mask, p * (p / q).log(), 0.0).sum(-1).mean(1)
    found = attentions_apart(ours, theirs, kind)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), ours)
    assert bool(gradient.isfinite().all())


def test_what_is_looked_at_is_what_attention_does():
    model = Transformer.build(tiny("qwen3", num_hidden_layers=2), seed=1)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 320, (2, 12))
    documents = np.repeat([[0] * 5 + [1] * 7], 2, axis=0)
    taps = Taps(model, [0, 1], [1])
    with taps.looking() as seen:
        hidden_states(model, Batch(ids, ids, documents), dtype=None, recompute=False)
    module, x, cos, sin, mask = seen.attention[1]
    logp = looked_at(module, x, cos, sin, mask)
    v = module.v_proj(x).view(2, 12, -1, 16).transpose(1, 2).repeat_interleave(2, dim=1)
    expected = module(x, cos, sin, mask, None)
    found = module.o_proj((logp.exp() @ v).transpose(1, 2).reshape(2, 12, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert seen.hidden.keys() == {0, 1}
    taps.close()
    with taps.looking() as seen:
        hidden_states(model, Batch(ids, ids, documents), dtype=None, recompute=False)
    assert not seen.hidden


def test_latent_attention_is_refused():
    with pytest.raises(ValueError, match="leave attention out"):
        Taps(Transformer.build(tiny("mla")), [], [0])


def test_projections_keep_lengths_and_come_from_the_seed():
    one, two = Projections([(0, 1)], 8, 12, 4), Projections([(0, 1)], 8, 12, 4)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one(x, (0, 1)).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(one(x, (0, 1)), two(x, (0, 1)))
    assert not list(Projections([(0, 1)], 8, 8, 4).parameters())

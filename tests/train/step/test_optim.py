"""Optimizers: muP's groups against one torch AdamW a parameter, Muon against numpy, state that comes back to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from gangpao.model.init import Rule, rule_of
from gangpao.model.transformer import Transformer
from gangpao.train.config import OptimizerConfig
from gangpao.train.step.optim import NEWTON_SCHULZ, Average, Optimizer, orthogonalize
from tests.train.tiny import shape


def newton_schulz(g):
    """The same five rounds in float64, written down once more from the formula."""
    a, b, c = NEWTON_SCHULZ
    x = g / np.sqrt((g * g).sum())
    if x.shape[0] > x.shape[1]:
        return newton_schulz(g.T).T
    for _ in range(5):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


@pytest.mark.parametrize("size", [(6, 6), (5, 17), (17, 5), (1, 9), (64, 32)])
def test_orthogonalize_is_newton_schulz(size):
    g = np.random.default_rng(0).normal(size=(3, *size)) * np.array([1e-6, 1.0, 1e5])[:, None, None]
    ours = orthogonalize(torch.from_numpy(g).float()).numpy()
    for mine, one in zip(ours, g, strict=True):
        np.testing.assert_allclose(mine, newton_schulz(one), rtol=1e-3, atol=2e-5)
        u, _, v = np.linalg.svd(one, full_matrices=False)
        singular = np.diag(u.T @ mine @ v.T)  # in the frame of the gradient: its directions are kept
        assert (singular > 0.3).all()
        assert (singular < 1.3).all()


def test_no_gradient_is_no_direction():
    assert not orthogonalize(torch.zeros(2, 4, 3)).any()


def gradients(model, seed):
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=g)


def test_each_parameter_learns_by_its_rule():
    config = shape()
    ours, plain = Transformer.build(config), Transformer.build(config)
    options = OptimizerConfig(lr=0.01, weight_decay=0.3)
    optimizer = Optimizer(ours.named_parameters(), lambda n: rule_of(n, config), options)
    singles = {}
    for name, p in plain.named_parameters():
        rule = rule_of(name, config)
        decay = 0.3 * rule.decay_scale
        singles[name] = torch.optim.AdamW([p], lr=0.01 * rule.lr_scale, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    for step in range(4):
        gradients(ours, step)
        gradients(plain, step)
        optimizer.step(0.01)
        for single in singles.values():
            single.step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    scales = {group["lr_scale"] for part in optimizer.parts for group in part.param_groups}
    assert scales == {1.0, 0.5}  # hidden_size 32 over dim_model_base 16


def test_epsilon_and_decay_follow_the_rule():
    """One step of AdamW on a gradient of the size of epsilon, by hand."""
    p = torch.nn.Parameter(torch.tensor([1.0]))
    options = OptimizerConfig(eps=1e-3, weight_decay=0.1)
    optimizer = Optimizer([("up_proj.weight", p)], lambda n: Rule(0.1, 2.0, 3.0, 0.5), options)
    p.grad = torch.tensor([2e-3])
    optimizer.step(0.01)
    step = 2 * 0.01
    assert p.item() == pytest.approx(1 - step * 0.3 - step * 2e-3 / (2e-3 + 0.5e-3), rel=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_step_moves_the_versions_of_what_it_changed(kind):
    weight, still = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Optimizer(
        [("a.weight", weight), ("b.weight", still)], lambda _: Rule(None, 1.0, 0.0), OptimizerConfig(kind=kind)
    )
    weight.grad = torch.ones(4, 4)
    before = weight._version, still._version
    optimizer.step(0.1)
    assert not torch.equal(weight, torch.ones(4, 4))
    assert weight._version > before[0]
    assert still._version == before[1]


def test_muon_is_its_formula():
    p = nn.Parameter(torch.randn(8, 20, generator=torch.Generator().manual_seed(1)))
    options = OptimizerConfig(kind="muon", weight_decay=0.1, momentum=0.9)
    optimizer = Optimizer([("mlp.up_proj.weight", p)], lambda n: Rule(0.1, 0.5, decay_scale=1.0), options)
    w = p.detach().numpy().astype(np.float64)
    buffer = np.zeros_like(w)
    for step in range(3):
        gradients(nn.ParameterList([p]), step)
        g = p.grad.numpy().astype(np.float64)
        buffer = 0.9 * buffer + 0.1 * g
        ahead = 0.9 * buffer + 0.1 * g
        w = w * (1 - 0.02 * 0.5 * 0.1) - 0.02 * 0.5 * 0.2 * np.sqrt(20) * newton_schulz(ahead)
        optimizer.step(0.02)
    np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-4, atol=1e-5)


def test_a_step_of_muon_has_the_size_of_one_of_adamw():
    p = nn.Parameter(torch.zeros(128, 512))
    optimizer = Optimizer(
        [("q_proj.weight", p)], lambda n: Rule(0.1, 1.0, decay_scale=1.0), OptimizerConfig(kind="muon")
    )
    gradients(nn.ParameterList([p]), 0)
    optimizer.step(1.0)
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("kind", ["adamh", "muonh"])
def test_a_hyperball_turns_its_matrices_by_the_learning_rate(kind):
    """W <- R unit(W - lr turn R unit(u)), where u is what the optimizer inside would have done."""
    start = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    inner = {"adamh": "adamw", "muonh": "muon"}[kind]
    rule = Rule(0.1, 0.25, decay_scale=1.0)  # muP's factor and the decay are not for it
    ball = Optimizer([("up_proj.weight", p)], lambda n: rule, OptimizerConfig(kind=kind, weight_decay=0.1, turn=2.0))
    plain = OptimizerConfig(kind=inner, weight_decay=0.0)
    base = Optimizer([("up_proj.weight", q)], lambda n: rule._replace(lr_scale=1.0), plain)
    radius, w = start.norm(), start.clone()
    for step in range(3):
        for one, optimizer, lr in ((p, ball, 0.03), (q, base, 1.0)):
            gradients(nn.ParameterList([one]), step)
            before = one.detach().clone()
            optimizer.step(lr)
        u = before - q.detach()
        w = w - 0.06 * radius * u / u.norm()
        w = w * radius / w.norm()
        torch.testing.assert_close(p.detach(), w, rtol=1e-4, atol=1e-5)
        assert float(p.detach().norm()) == pytest.approx(float(radius), rel=1e-6)


def test_a_hyperball_needs_a_norm_to_keep():
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = Optimizer([("up_proj.weight", p)], lambda n: Rule(0.1, 1.0, 1.0), OptimizerConfig(kind="adamh"))
    gradients(nn.ParameterList([p]), 0)
    with pytest.raises(ValueError, match="begins at zero"):
        optimizer.step(0.1)


def test_muon_takes_inner_matrices_only_and_frozen_ones_are_nobodys():
    config = shape()
    model = Transformer.build(config)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    optimizer = Optimizer(model.named_parameters(), lambda n: rule_of(n, config), OptimizerConfig(kind="muon"))
    adamw, muon = ([p for g in part.param_groups for p in g["params"]] for part in optimizer.parts)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("_proj" in names[id(p)] for p in muon)
    assert len(muon) == 2 * 7 - 1
    assert not any("_proj" in names[id(p)] for p in adamw)
    assert "model.layers.0.mlp.up_proj.weight" not in optimizer.named


@pytest.mark.parametrize("kind", ["adamw", "muon", "adamh", "muonh"])
def test_state_comes_back_to_the_bit(kind):
    config = shape()

    def make():
        model = Transformer.build(config)
        return model, Optimizer(model.named_parameters(), lambda n: rule_of(n, config), OptimizerConfig(kind=kind))

    one, two = make(), make()
    for step in range(3):
        gradients(one[0], step)
        one[1].step(0.01)
    with torch.no_grad():
        for a, b in zip(two[0].parameters(), one[0].parameters(), strict=True):
            a.copy_(b)
    two[1].restore({name: t.clone() for name, t in one[1].state().items()})
    for model, optimizer in (one, two):
        gradients(model, 9)
        optimizer.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    with pytest.raises(ValueError, match="does not train"):
        two[1].restore({"exp_avg.model.nobody.weight": torch.zeros(1)})


def test_the_average_follows_its_recurrence():
    p = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([("p", p)], 0.75)
    expected = p.detach().clone()
    for step in range(1, 5):
        with torch.no_grad():
            p.fill_(float(step))
        average.update()
        expected = 0.75 * expected + 0.25 * step
    torch.testing.assert_close(average.values["p"], expected)

"""One MLP into experts: equal to the dense one with all of them, and better than chance with few; groups of equal size."""

import numpy as np
import pytest
import torch

from gangpao.compress.experts import cluster, router
from gangpao.compress.experts.config import ExpertsConfig
from gangpao.compress.experts.layer import Cut, Mlp, Samples, cut, sizes, weights_of
from gangpao.model.config import MoEConfig
from gangpao.model.moe import MoE
from tests.model.tiny import tiny

D, F, TOPICS, TOKENS = 32, 128, 8, 600


@pytest.fixture(scope="module")
def mlp():
    """Channels of eight topics, shuffled: those of one open on tokens of that topic, and a little on others."""
    g = torch.Generator().manual_seed(0)
    topic = torch.randperm(F, generator=g) % TOPICS
    directions = torch.linalg.qr(torch.randn(D, D, generator=g)).Q[:TOPICS]
    gate = 2.0 * directions[topic] + 0.1 * torch.randn(F, D, generator=g)
    up, down = (0.3 * torch.randn(shape, generator=g) for shape in ((F, D), (D, F)))
    return Mlp(gate, up, down), topic, directions


@pytest.fixture(scope="module")
def samples(mlp):
    g = torch.Generator().manual_seed(1)
    about = torch.rand(TOKENS, TOPICS, generator=g).topk(2, dim=1).indices
    x = 2.5 * mlp[2][about].sum(1) + 0.4 * torch.randn(TOKENS, D, generator=g)
    return Samples(x, torch.ones(TOKENS), torch.arange(TOKENS) % 4 == 3)


def as_moe(dense: Mlp, made: Cut, k: int) -> MoE:
    moe = MoE(tiny("moe", hidden_size=D, intermediate_size=made.channels.shape[1],
                   moe=MoEConfig(num_experts=len(made.channels), num_experts_per_tok=k)))  # fmt: skip
    state = {"gate.weight": made.router}
    for e, at in enumerate(made.channels):
        state |= {f"experts.{e}.w1.weight": dense.gate[at], f"experts.{e}.w3.weight": dense.up[at]}
        state[f"experts.{e}.w2.weight"] = made.down[e]
    moe.load_state_dict(state)
    return moe


def error(dense: Mlp, made: Cut, x: torch.Tensor, k: int) -> float:
    with torch.no_grad():
        y, found = dense.inner(x) @ dense.down.T, as_moe(dense, made, k)(x[None])[0][0]
    return float((y - found).square().sum() / y.square().sum())


@pytest.mark.parametrize("fields", [{}, {"clustering": "random"}, {"experts": 4}, {"shared": 0.25}])
def test_all_experts_with_even_weights_are_the_dense_mlp(mlp, samples, fields):
    config = ExpertsConfig(**({"experts": 8, "active": 1.0} | fields))
    made = cut(mlp[0], samples, config, 0)
    assert not made.router.any()
    with torch.no_grad():
        y = mlp[0].inner(samples.x) @ mlp[0].down.T
        found = as_moe(mlp[0], made, config.experts)(samples.x[None])[0][0]
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5 * float(y.abs().max()))


def test_channels_of_a_topic_come_together(mlp, samples):
    made = cut(mlp[0], samples, ExpertsConfig(router_steps=100), 0)
    topic = mlp[1][made.channels]
    assert float((topic == topic.mode(dim=1, keepdim=True).values).float().mean()) > 0.95
    assert sorted(made.channels.flatten().tolist()) == list(range(F))


def test_what_is_chosen_is_better_than_chance_and_more_is_better(mlp, samples):
    x = samples.x[samples.measured]

    def of(**fields):
        config = ExpertsConfig(router_steps=100, **fields)
        made = cut(mlp[0], samples, config, 0)
        assert made.facts["error"] == pytest.approx(error(mlp[0], made, x, config.chosen), rel=1e-3, abs=1e-6)
        assert made.facts["routed"] <= made.facts["held"] + 1e-6
        return made.facts["error"]

    two, four = of(active=2), of(active=4)
    assert four < two < 0.6 * min(of(active=2, clustering="random"), of(active=2, clustering="index"))
    assert two < of(active=2, reconstruct=False) < 0.5
    assert of(active=1, shared=0.25) < of(active=1)


def test_the_scales_lie_between_the_number_of_chosen_and_that_of_all(mlp, samples):
    """down is a_e times the dense one: at most E, which would be right for a blind choice."""
    made = cut(mlp[0], samples, ExpertsConfig(active=2, reconstruct=False, router_steps=100), 0)
    ratio = torch.stack([made.down[e] / mlp[0].down[:, at] for e, at in enumerate(made.channels)])
    scales = ratio.mean(dim=(1, 2))
    torch.testing.assert_close(ratio, scales[:, None, None].expand_as(ratio), rtol=1e-3, atol=1e-3)
    assert ((scales > 1.5) & (scales < 8)).all()


def test_weights_are_the_softmax_of_the_chosen():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    weights = weights_of(logits, 2)
    p = logits.softmax(1) * (weights > 0)
    torch.testing.assert_close(weights, p / p.sum(1, keepdim=True))
    assert ((weights > 0).sum(1) == 2).all()
    assert (weights.argmax(1) == logits.argmax(1)).all()


def test_a_router_learns_who_carries_most():
    g = torch.Generator().manual_seed(3)
    x, truth = 40 * torch.randn(2000, 16, generator=g), torch.randn(5, 16, generator=g)
    energy = (x @ truth.T / 40).exp()
    found = router.trained(x[:1500], energy[:1500], 300, 0)
    right = ((x[1500:] @ found.T).argmax(1) == energy[1500:].argmax(1)).float().mean()
    assert right > 0.9
    assert torch.equal(found, router.trained(x[:1500], energy[:1500], 300, 0))


def test_groups_stay_equal_and_each_half_step_holds_more():
    rng = np.random.default_rng(4)
    topic, about = np.arange(60) % 6, rng.integers(0, 6, 300)
    energy = (rng.exponential(size=(300, 60)) * (1 + 5 * (about[:, None] == topic))).astype(np.float32)
    energy /= energy.sum(axis=1, keepdims=True)
    start = topic.copy()
    start[:18] = rng.permutation(start[:18])
    made = cluster.concentrated(energy, start, 6, 2)
    assert np.bincount(made).tolist() == [10] * 6
    assert cluster.captured(energy, made, 6, 2) > cluster.captured(energy, start, 6, 2) + 0.01
    whole = cluster.coactivated(energy, 6, 1, 0)
    assert all(len(set(topic[whole == group])) == 1 for group in range(6))
    worth = np.random.default_rng(5).normal(size=(60, 6)).astype(np.float32)
    best = cluster.exchanged(worth, start)
    at = np.arange(60)
    assert np.bincount(best).tolist() == [10] * 6
    assert worth[at, best].sum() > worth[at, start].sum()
    for f in range(60):  # no pair gains
        gain = worth[f, best] + worth[at, best[f]] - worth[f, best[f]] - worth[at, best]
        assert gain.max() < 1e-3


@pytest.mark.parametrize(
    ("channels", "fields", "expected"),
    [
        (1536, {}, (0, 192)),
        (768, {"experts": 16}, (0, 48)),
        (768, {"shared": 0.25}, (192, 72)),
        (96, {"shared": 0.5}, (48, 6)),
    ],
)
def test_sizes_are_whole_and_fit_blocks_where_they_can(channels, fields, expected):
    shared, own = sizes(channels, ExpertsConfig(**fields))
    assert shared + own * ExpertsConfig(**fields).experts == channels
    assert fields.get("shared", 0) == 0 or (shared + own) % 32 == 0 or own == 1
    if not fields.get("shared"):
        assert (shared, own) == expected


def test_what_cannot_be_is_said():
    with pytest.raises(
        ValueError, match="100 channels are not 8 experts of the same size; possible: 2, 4, 5, 10, 20, 25, 50"
    ):
        sizes(100, ExpertsConfig())
    with pytest.raises(ValueError, match="active is 9, and there are 8"):
        ExpertsConfig(active=9)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ExpertsConfig(active=1.5)
    assert (ExpertsConfig(active=0.5).chosen, ExpertsConfig(active=1.0).chosen, ExpertsConfig(active=1).chosen) == (
        4,
        8,
        1,
    )

"""Our losses of fixed log-probabilities, beside the numbers that TRL 1.16.0 gave for them."""

import math

import pytest
import torch

from gangpao.tune.objectives import losses
from gangpao.tune.objectives.config import ObjectiveConfig

# Log-probabilities of 4 answers of 3, 1, 2 and 3 tokens, two chosen and two rejected ones, and the reference's of the whole
# answers.
LOGPS = torch.tensor([[-0.2, -1.5, -0.9], [-0.4, 0.0, 0.0], [-2.5, -0.1, 0.0], [-1.1, -0.3, -3.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
BEFORE = torch.tensor([-3.5, -0.3, -1.4, -4.0])
ADVANTAGES = torch.tensor([1.2, -0.4, 0.3, -1.1])
OLD = LOGPS + torch.tensor([[0.3, -0.1, 0.0], [-0.5, 0.0, 0.0], [0.2, 0.4, 0.0], [-0.3, 0.1, 0.2]])

# What TRL 1.16.0 says of them; test_peer.py asks it again.
TRL = {
    "dpo": 0.538059831,
    "ipo": 20.7388878,
    "simpo": 0.570574284,
    "odds": 0.027702257,
    "kto": 0.490635455,
    "grpo": 0.106164604,
    "dapo": 0.0198173169,
    "dr_grpo": 0.00557362055,
    "cispo": -0.0706059933,
    "dapo with KL": 0.0213366505,
}


def ours():
    """Each of our losses by its name, the mean over pairs, answers or tokens."""
    sums, lengths = (LOGPS * MASK).sum(1), MASK.sum(1).float()
    ratios, means = sums - BEFORE, sums / lengths
    (chosen, rejected), (high, low), (per_c, per_r) = ratios.chunk(2), means.chunk(2), (ratios / lengths).chunk(2)
    clipped = losses.clipped((LOGPS - OLD).exp(), ADVANTAGES[:, None], low=0.2, high=0.28) * MASK
    weighted = losses.weighted(LOGPS, (LOGPS - OLD).exp(), ADVANTAGES[:, None], largest=1.1) * MASK
    kl = losses.divergence(LOGPS, OLD) * MASK
    desirable = torch.tensor([True, True, False, False])
    return {
        "dpo": losses.dpo(chosen, rejected, beta=0.3).mean(),
        "ipo": losses.ipo(per_c, per_r, beta=0.1).mean(),
        "simpo": losses.simpo(high, low, beta=2.0, gamma=1.0, label_smoothing=0.1).mean(),
        "odds": losses.odds_ratio(high, low, beta=0.1).mean(),
        "kto": losses.kto(ratios, desirable, torch.tensor(0.25), beta=0.1, desirable=1.5, undesirable=0.5).mean(),
        "grpo": (clipped.sum(1) / lengths).mean(),
        "dapo": clipped.sum() / lengths.sum(),
        "dr_grpo": clipped.sum() / (4 * 8),
        "cispo": weighted.sum() / lengths.sum(),
        "dapo with KL": (clipped + 0.04 * kl).sum() / lengths.sum(),
    }


def test_the_numbers_of_trl():
    assert {name: float(value) for name, value in ours().items()} == pytest.approx(TRL, rel=1e-5, abs=1e-6)


def test_before_the_first_step():
    """Nothing is learned yet: the reference is the model."""
    zero = torch.zeros(3)
    assert losses.dpo(zero, zero, beta=0.1, label_smoothing=0.3).tolist() == pytest.approx([math.log(2)] * 3)
    assert losses.ipo(zero, zero, beta=0.1).tolist() == pytest.approx([25.0] * 3)
    assert losses.kto(zero, torch.tensor([True, False, True]), torch.tensor(0.0), beta=0.1).tolist() == [0.5] * 3
    assert losses.divergence(zero, zero).tolist() == [0.0] * 3
    assert losses.clipped(torch.ones(3), torch.tensor([1.0, -2.0, 0.0]), low=0.2, high=0.2).tolist() == [-1.0, 2.0, 0.0]


def test_smoothing_is_the_mean_of_both_ways_round():
    margins = torch.tensor([-3.0, 0.0, 0.5, 40.0])
    both = 0.8 * losses.preference(margins) + 0.2 * losses.preference(-margins)
    torch.testing.assert_close(losses.preference(margins, 0.2), both)


def test_advantages():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    group = losses.advantages(rewards)
    assert group[0].tolist() == pytest.approx([0.86587, -0.86587, -0.86587, 0.86587], rel=1e-4)
    assert group[1].tolist() == [0.0] * 4  # all equally good: nothing to learn, and nothing divided by zero
    batch = rewards[0].sub(0.5).sign() * 0.5 / (rewards.std() + 1e-4)
    assert losses.advantages(rewards, "batch")[0].tolist() == pytest.approx(batch.tolist())
    assert losses.advantages(rewards, "none")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
    with pytest.raises(ValueError, match="at least 2 answers"):
        losses.advantages(rewards[:, :1])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "ipo", "beta": 0}, "above 0"),
        ({"kind": "grpo", "average": "cispo"}, "epsilon_high"),
        ({"kind": "grpo", "ratio": "sequence"}, "average to grpo"),
        ({"label_smoothing": 0.5}, "less than 0.5"),
    ],
)
def test_options_that_make_no_sense(fields, words):
    with pytest.raises(ValueError, match=words):
        ObjectiveConfig.model_validate(fields)


def test_every_option_says_what_it_is():
    assert all(field.description for field in ObjectiveConfig.model_fields.values())

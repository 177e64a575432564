"""The formulas: log-probabilities in, one loss for every pair, answer or token out. Nothing here knows a model.

A log-ratio is log p(answer) - log p_reference(answer), summed over the answer's tokens. P pairs, S answers, R tokens.

    DPO    -log sigmoid(beta (ratio_c - ratio_r))                                   arXiv:2305.18290
    IPO    (ratio_c / n_c - ratio_r / n_r - 1 / (2 beta))^2                         arXiv:2310.12036
    SimPO  -log sigmoid(beta (logp_c / n_c - logp_r / n_r) - gamma)                 arXiv:2405.14734
    ORPO   nll_c - beta log sigmoid(log odds_c - log odds_r), odds p / (1 - p)      arXiv:2403.07691
    KTO    w (1 - sigmoid(+-(beta ratio - beta KL)))                                arXiv:2402.01306
    GRPO   -min(r A, clip(r, 1 - low, 1 + high) A) + beta KL, of every token        arXiv:2402.03300

The values are those of TRL 1.16.0 (tests/tune/objectives/test_losses.py). IPO divides by the lengths, which its authors confirmed
to TRL and the paper does not say. TRL's DPO ignores label_smoothing with loss_type "sigmoid"; ours is the smoothing of its CPO and
AOT.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CERTAIN = -1e-7  # the largest mean log-probability whose odds are finite in float32


def preference(margins_P: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(margin) [P], where a share `label_smoothing` of the labels may be the wrong way round."""
    loss = -F.logsigmoid(margins_P)
    return loss + label_smoothing * margins_P if label_smoothing else loss  # log sigmoid(-x) = log sigmoid(x) - x


def dpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Losses [P] of pairs of log-ratios."""
    return preference(beta * (chosen_P - rejected_P), label_smoothing)


def ipo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Losses [P] of pairs of log-ratios that are divided by the number of the answer's tokens."""
    return (chosen_P - rejected_P - 1 / (2 * beta)).square()


def simpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, gamma: float, label_smoothing: float = 0.0) -> Tensor:
    """Losses [P] of pairs of mean log-probabilities."""
    return preference(beta * (chosen_P - rejected_P) - gamma, label_smoothing)


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) of mean log-probabilities."""
    certain = logps.clamp(max=CERTAIN)
    small = (
        certain < -0.693
    )  # of the two forms of log(1 - p) the one that keeps its digits; each is given only what it can take
    low = torch.where(small, certain, -1.0)
    high = torch.where(small, -0.5, certain)
    return certain - torch.where(small, torch.log1p(-low.exp()), torch.log(-torch.expm1(high)))


def odds_ratio(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """ORPO's term beside the cross-entropy, [P], of pairs of mean log-probabilities."""
    return -beta * F.logsigmoid(log_odds(chosen_P) - log_odds(rejected_P))


def kto(
    ratios_S: Tensor, desirable_S: Tensor, kl: Tensor, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """Losses [S] of log-ratios. desirable_S: bool; kl: one number, no less than 0; the last two are the weights."""
    sign = torch.where(desirable_S, 1.0, -1.0)
    weight = torch.where(desirable_S, desirable, undesirable)
    return weight * torch.sigmoid(sign * beta * (kl - ratios_S))  # 1 - sigmoid(x) = sigmoid(-x)


def divergence(logps_R: Tensor, reference_R: Tensor) -> Tensor:
    """An estimate [R] of each token's KL divergence from the reference, unbiased and never below 0 (Schulman's k3)."""
    difference = reference_R - logps_R
    return torch.expm1(difference) - difference


def clipped(ratios_R: Tensor, advantages_R: Tensor, *, low: float, high: float, delta: float | None = None) -> Tensor:
    """GRPO's and PPO's losses [R]: no gain from a ratio of probabilities beyond [1 - low, 1 + high]; delta: the largest one where
    the advantage is negative."""
    inside = ratios_R.clamp(1 - low, 1 + high)
    ratios = ratios_R if delta is None else ratios_R.clamp(max=delta)
    return -torch.minimum(ratios * advantages_R, inside * advantages_R)


def weighted(logps_R: Tensor, ratios_R: Tensor, advantages_R: Tensor, *, largest: float) -> Tensor:
    """CISPO's losses [R]: the clipped ratio is a constant weight, so that every token keeps a gradient (arXiv:2506.13585)."""
    return -ratios_R.detach().clamp(max=largest) * advantages_R * logps_R


def advantages(rewards_GN: Tensor, scale: str = "group") -> Tensor:
    """Rewards [G prompts, N answers each] as advantages of the same shape: minus the prompt's mean, divided by the standard
    deviation (of a sample) of the prompt ("group"), of all ("batch") or by nothing ("none").

    Raises ValueError for fewer than two answers to a prompt.
    """
    if rewards_GN.shape[1] < 2:
        raise ValueError("advantages: a prompt needs at least 2 answers, else there is nothing to compare with")
    centred = rewards_GN - rewards_GN.mean(dim=1, keepdim=True)
    if scale == "none":
        return centred
    deviation = rewards_GN.std() if scale == "batch" else rewards_GN.std(dim=1, keepdim=True)
    return centred / (deviation + 1e-4)

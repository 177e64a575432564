"""The formulas: how far a student's distribution q is from a teacher's p, and the gradient for the student's logits z.

    forward   KL(p || q) = sum p (log p - log q)               dL/dz = q - p
    reverse   KL(q || p) = sum q (log q - log p)               dL/dz = q (log q - log p - L)
    mix       (1 - w) forward + w reverse
    js        w KL(p || m) + (1 - w) KL(q || m),  m = w p + (1 - w) q
              with g = (1 - w) (log q - log m)                 dL/dz = q (g - sum q g)

js is the generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649): w -> 0 is forward KL and w -> 1 reverse KL, each times w
or 1 - w. Forward KL covers all that the teacher says, reverse KL what it says most (MiniLLM, arXiv:2306.08543).

A teacher of whom only the K likeliest tokens are known has K + 1 outcomes: these tokens, and "another one". The student's last
logit is then the logarithm of the sum of exponentials of all others, and the same formulas hold. That is the divergence of the two
distributions after tokens were merged, never more than that of the whole ones, and equal to it where K is the vocabulary.
Shapes: R rows (tokens), M outcomes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["forward", "reverse", "mix", "js"]


def divergence(logq_RM: Tensor, logp_RM: Tensor, kind: Kind, weight: float = 0.5) -> tuple[Tensor, Tensor]:
    """Losses [R] of log-probabilities, and their gradient [R, M] for logits whose log-softmax logq is."""
    q = logq_RM.exp()
    if kind == "forward":
        return _forward(q, logq_RM, logp_RM)
    if kind == "reverse":
        return _reverse(q, logq_RM, logp_RM)
    if kind == "mix":
        (a, da), (b, db) = _forward(q, logq_RM, logp_RM), _reverse(q, logq_RM, logp_RM)
        return (1 - weight) * a + weight * b, da.mul_(1 - weight).add_(db, alpha=weight)
    return _jensen_shannon(q, logq_RM, logp_RM, weight)


def _forward(q: Tensor, logq: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
    p = logp.exp()
    loss = torch.sum(p * (logp - logq), dim=-1)
    return loss, q - p


def _reverse(q: Tensor, logq: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
    ratio = logq - logp
    loss = torch.sum(q * ratio, dim=-1)
    return loss, ratio.sub_(loss[:, None]).mul_(q)


def _jensen_shannon(q: Tensor, logq: Tensor, logp: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    logm = torch.logaddexp(logp + math.log(weight), logq + math.log1p(-weight))
    g = (logq - logm) * (1 - weight)
    of_q = torch.sum(q * g, dim=-1)
    loss = of_q + weight * torch.sum(logp.exp() * (logp - logm), dim=-1)
    return loss, g.sub_(of_q[:, None]).mul_(q)

"""A linear router: from a hidden state, which experts carry most of what the MLP would add there.

It is trained towards the shares that the experts have in the squared length of all their outputs, by the cross entropy of its
softmax; which of them a token meets, its k largest logits, is all that is asked of it (layer.py sets how the chosen are weighed).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BATCH = 1024
_LR = 0.05
_DECAY = 1e-4


def trained(x_ND: Tensor, energy_NE: Tensor, steps: int, seed: int) -> Tensor:
    """Weights [E, D] of the router, float32. x: hidden states; energy: of each expert's output on them, squared lengths."""
    shares = energy_NE / energy_NE.sum(dim=1, keepdim=True).clamp_min(1e-30)
    size = (
        x_ND.square().mean().sqrt().clamp_min(1e-20)
    )  # states of length about 1 a dimension, whatever the norm's weights are
    inputs = x_ND / size
    router = torch.zeros(shares.shape[1], x_ND.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([router], lr=_LR / x_ND.shape[1] ** 0.5, weight_decay=_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
            loss = F.cross_entropy(inputs[rows] @ router.T, shares[rows])
            (router.grad,) = torch.autograd.grad(loss, [router])
            optimizer.step()
            schedule.step()
    return router.detach() / size

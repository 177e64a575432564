"""Experts in place of the MLP (MiniCPM-MoE): a router sends every token to its top-k, whose weights are renormalised.

Names as in the released checkpoint: gate [E, D], experts.{e}.w1 (gate), w3 (up), w2 (down). Beside the result comes the
balancing loss for training to add: E * sum over experts of (share of tokens) * (mean probability), 1 when the load is even
(Switch Transformer, arXiv:2101.03961, equation 4).

What it gives up: experts run one after the other, which is right for two cores and for tests, not for a cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gangpao.model.config import ModelConfig
from gangpao.model.layers import Linear


class Expert(nn.Module):
    """One MLP under the names of the checkpoint."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.w1 = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.w3 = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.w2 = Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class MoE(nn.Module):
    """A router over experts."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        assert c.moe is not None
        self.top_k = c.moe.num_experts_per_tok
        self.gate = Linear(c.hidden_size, c.moe.num_experts, bias=False)
        self.experts = nn.ModuleList(Expert(c) for _ in range(c.moe.num_experts))

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        x = x_BTD.reshape(-1, x_BTD.shape[-1])
        probability = self.gate(x).float().softmax(dim=-1)
        weight, chosen = probability.topk(self.top_k, dim=-1)
        weight = (weight / weight.sum(dim=-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, slot = (chosen == e).nonzero(as_tuple=True)
            out = out.index_add(0, token, expert(x[token]) * weight[token, slot, None])
        share = F.one_hot(chosen, len(self.experts)).float().mean(dim=(0, 1))
        balance = len(self.experts) * (share * probability.mean(dim=0)).sum()
        return out.view_as(x_BTD), balance

"""How a new model begins, and how fast each of its parts may learn: MiniCPM's width-transfer rules.

A rule says for one parameter the standard deviation of its first values and the factor on the learning rate. With
dim_model_base set (MiniCPM, arXiv:2404.06395 table 7), m = hidden_size / dim_model_base:

    matrices inside the layers   std = initializer_range / sqrt(m)    lr / m
    embedding                    std = initializer_range              lr
    norms                        1                                    lr
    untied head                  std = initializer_range              lr

The paper says 0.1 for "others", norms among them; the training code sets norms to 1, and we follow the code. Without
dim_model_base every matrix has std = initializer_range and the plain learning rate (standard parametrization).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from gangpao.model.config import ModelConfig


class Rule(NamedTuple):
    """std: of the first values, None for ones (norms), 0 for zeros (biases). lr_scale: factor on the learning rate."""

    std: float | None
    lr_scale: float
    decays: bool


def rule_of(name: str, config: ModelConfig) -> Rule:
    """The rule for a parameter by its Hugging Face name."""
    width = config.hidden_size / config.dim_model_base if config.dim_model_base else 1.0
    if name.endswith(".bias"):
        return Rule(0.0, 1.0, decays=False)
    if "norm" in name:
        return Rule(None, 1.0, decays=False)
    if "embed_tokens" in name or "lm_head" in name:
        return Rule(config.initializer_range, 1.0, decays=True)
    return Rule(config.initializer_range / math.sqrt(width), 1.0 / width, decays=True)


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter by its rule. Each has a generator of its own, so a value depends on seed, name and shape alone."""
    for name, parameter in model.named_parameters():
        rule = rule_of(name, config)
        if rule.std is None:
            parameter.fill_(1.0)
        elif rule.std == 0.0:
            parameter.zero_()
        else:
            generator = torch.Generator(device="cpu").manual_seed(_mix(seed, name))
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, rule.std, generator=generator)
            parameter.copy_(values)


def _mix(seed: int, name: str) -> int:
    """A seed for one parameter (FNV-1a over its name, stable across runs and machines)."""
    value = 0xCBF29CE484222325 ^ (seed & (2**64 - 1))
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value >> 1

"""How a new model begins, and how fast each of its parts may learn: MiniCPM's width-transfer rules.

A rule says for one parameter the standard deviation of its first values and the factor on the learning rate. With
dim_model_base set (MiniCPM, arXiv:2404.06395 table 7), m = hidden_size / dim_model_base:

    matrices inside the layers   std = initializer_range / sqrt(m)    lr / m
    embedding                    std = initializer_range              lr
    norms                        1 (centred ones 0)                   lr
    untied head                  std = initializer_range              lr

The paper says 0.1 for "others", norms among them; the training code sets norms to 1, and we follow the code. Without
dim_model_base every matrix has std = initializer_range and the plain learning rate (standard parametrization).

Another table can be laid over this one, kind by kind (`KindRule`): the sandbox compares parametrizations that way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import nn

from gangpao.config import Frozen
from gangpao.model.config import ModelConfig

ParameterKind = Literal["embedding", "head", "hidden", "norm", "bias", "decay"]
LARGEST_DECAY = 16.0  # e^A_log of Gated DeltaNet begins between 0.01 and this, as in transformers


class KindRule(Frozen):
    """What replaces the usual rule for all parameters of a kind."""

    std: float | None = Field(default=None, gt=0, description="Of the first values; none: as without this rule.")
    lr: float = Field(default=1.0, gt=0, description="Factor on the learning rate, in place of the usual one.")
    weight_decay: float = Field(
        default=1.0, ge=0, description="Factor on the weight decay; norms and biases have none."
    )
    eps: float = Field(default=1.0, gt=0, description="Factor on AdamW's epsilon.")


class Rule(NamedTuple):
    """std: of the first values, None for ones (norms), 0 for zeros (biases). The rest: factors on the optimizer's options."""

    std: float | None
    lr_scale: float
    decay_scale: float
    eps_scale: float = 1.0


Rules = Mapping[ParameterKind, KindRule]


def kind_of(name: str) -> ParameterKind:
    """What a parameter is, by its Hugging Face name; a tied head is the embedding."""
    if name.endswith((".A_log", ".dt_bias")):
        return "decay"
    if name.endswith(".bias"):
        return "bias"
    if "norm" in name:
        return "norm"
    if "embed_tokens" in name:
        return "embedding"
    return "head" if "lm_head" in name else "hidden"


def rule_of(name: str, config: ModelConfig, rules: Rules | None = None) -> Rule:
    """The rule for a parameter by its Hugging Face name, with `rules` over the usual table."""
    kind = kind_of(name)
    width = config.hidden_size / config.dim_model_base if config.dim_model_base and kind == "hidden" else 1.0
    match kind:
        case "bias":
            rule = Rule(0.0, 1.0, 0.0)
        case "norm":
            centred = config.centred_norms and ".linear_attn." not in name
            rule = Rule(0.0 if centred else None, 1.0, 0.0)
        case "decay":
            rule = Rule(None, 1.0, 0.0)
        case _:
            rule = Rule(config.initializer_range / math.sqrt(width), 1.0 / width, 1.0)
    other = rules.get(kind) if rules else None
    if other is None:
        return rule
    std = other.std if other.std is not None and rule.std else rule.std
    return Rule(std, other.lr, rule.decay_scale * other.weight_decay, other.eps)


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, seed: int, rules: Rules | None = None) -> None:
    """Fill every parameter by its rule. Each has a generator of its own, so a value depends on seed, name and shape alone."""
    for name, parameter in model.named_parameters():
        rule = rule_of(name, config, rules)
        if name.endswith(".A_log"):
            generator = torch.Generator(device="cpu").manual_seed(parameter_seed(seed, name))
            parameter.copy_(torch.empty(parameter.shape).uniform_(0.01, LARGEST_DECAY, generator=generator).log_())
        elif rule.std is None:
            parameter.fill_(1.0)
        elif rule.std == 0.0:
            parameter.zero_()
        else:
            generator = torch.Generator(device="cpu").manual_seed(parameter_seed(seed, name))
            values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, rule.std, generator=generator)
            parameter.copy_(values)


def parameter_seed(seed: int, name: str) -> int:
    """A seed for one parameter (FNV-1a over its name, stable across runs and machines)."""
    value = 0xCBF29CE484222325 ^ (seed & (2**64 - 1))
    for byte in name.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value >> 1

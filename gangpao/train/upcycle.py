"""Sparse upcycling: a trained dense model becomes a mixture of experts whose every expert begins as its MLP.

Since a router's top-k weights add up to one and all experts are equal, the new model computes what the old one did; training
then lets the experts part. The router begins as normal noise of variance 0.01 (MiniCPM-MoE, arXiv:2404.06395, section 6).

What it gives up: the optimizer's state is not copied; an expert sees k / E of the tokens that the old moments were made of.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from gangpao.model.config import ModelConfig, MoEConfig
from gangpao.model.weights import hf_name

ROUTER_STD = 0.1
_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_MLP = re.compile(r"(model\.layers\.(\d+)\.mlp)\.(gate_proj|up_proj|down_proj)\.weight")


def upcycled(config: ModelConfig, num_experts: int, num_experts_per_tok: int = 2) -> ModelConfig:
    """The shape of the mixture. Raises ValueError for a model that has experts already."""
    if config.moe:
        raise ValueError("this model has experts already; upcycling begins with a dense one")
    moe = MoEConfig.model_validate({"num_experts": num_experts, "num_experts_per_tok": num_experts_per_tok})
    return config.model_copy(update={"moe": moe})


def upcycle(config: ModelConfig, dense: dict[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the mixture `config` from those of the dense model."""
    assert config.moe is not None
    out: dict[str, Tensor] = {}
    for foreign, tensor in dense.items():
        name = hf_name(foreign)
        match = _MLP.fullmatch(name)
        if not match:
            out[name] = tensor
            continue
        prefix, layer, leaf = match[1], int(match[2]), match[3]
        if leaf == "gate_proj":
            generator = torch.Generator().manual_seed(seed * 100_003 + layer)
            noise = torch.empty(config.moe.num_experts, config.hidden_size).normal_(
                0.0, ROUTER_STD, generator=generator
            )
            out[f"{prefix}.gate.weight"] = noise.to(tensor.dtype)
        for e in range(config.moe.num_experts):
            out[f"{prefix}.experts.{e}.{_NAMES[leaf]}.weight"] = tensor.clone()
    return out

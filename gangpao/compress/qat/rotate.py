"""The same function in a rotated basis: outliers of the residual stream are spread over all columns, so that few levels lose less.

A residual stream h may be replaced by R h with an orthogonal R, if everything that reads it is turned back and everything that
writes it is turned too. RMSNorm commutes with R once its weights are 1, so these go into the matrices behind it first (QuaRot,
arXiv:2404.00456; SliceGPT). Nothing is left to do at run time: the file is one of the same architecture.

    embed' = embed R^T      q, k, v, gate, up' = W diag(norm) R^T      o, down' = R W      head' = head diag(norm) R^T

R is a Hadamard matrix with random signs, divided by the root of its size: blocks of the largest power of two that divides the
width. A head that was the embedding becomes one of its own, since only one of both has the last norm in it; MiniCPM's three scales
are factors and stay.

What it gives up: the head's own matrix in files whose model was tied; rotation inside heads and of the MLP's width, which needs
work at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gangpao.model.config import ModelConfig
from gangpao.model.layers import Linear
from gangpao.model.transformer import Block, Transformer

_BEHIND_FIRST, _BEHIND_SECOND = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")


def hadamard(size: int, seed: int) -> Tensor:
    """An orthogonal float64 [size, size]: Hadamard blocks with random signs."""
    block = size & -size
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < block:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    signs = torch.randint(2, (size,), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    out: Tensor = torch.kron(torch.eye(size // block, dtype=torch.float64), h / block**0.5) * signs
    return out


@torch.no_grad()
def rotated(model: Transformer, seed: int) -> Transformer:
    """The model with its residual stream rotated, float32, every norm on it 1 and a head of its own; the same function.

    Raises ValueError for experts and latent attention.
    """
    c = model.config
    if not c.plain:
        raise ValueError("rotation is for models without experts, latent attention and Gated DeltaNet: leave it out")
    r = hadamard(c.hidden_size, seed)
    device = model.model.norm.weight.device
    r = r.to(device)
    head, table = model.lm_head.weight.double(), model.model.embed_tokens.weight.double()
    model.lm_head.weight = _new(head * model.model.norm.weight.double() @ r.T)
    model.model.embed_tokens.weight = _new(table @ r.T)
    model.model.norm.weight = nn.Parameter(torch.ones_like(model.model.norm.weight))
    for layer in model.model.layers:
        assert isinstance(layer, Block)
        attention, mlp = layer.get_submodule("self_attn"), layer.get_submodule("mlp")
        for norm, reads, place in (
            (layer.input_layernorm, _BEHIND_FIRST, attention),
            (layer.post_attention_layernorm, _BEHIND_SECOND, mlp),
        ):
            for name in reads:
                linear = place.get_submodule(name)
                assert isinstance(linear, Linear)
                linear.weight = _new(linear.weight.double() * norm.weight.double() @ r.T)
            norm.weight = nn.Parameter(torch.ones_like(norm.weight))
        for linear in (attention.get_submodule("o_proj"), mlp.get_submodule("down_proj")):
            assert isinstance(linear, Linear)
            linear.weight = _new(r @ linear.weight.double())
    model.config = untied(c)
    return model


def _new(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float().contiguous())


def untied(config: ModelConfig) -> ModelConfig:
    """The configuration of a model whose head is its own."""
    return config.model_copy(update={"tie_word_embeddings": False})

"""A small model with every knob off its neutral value, parts of it dead, and as a folder with a tokenizer."""

from pathlib import Path

import numpy as np
import torch

from gangpao.compress.prune.cut import Kept
from gangpao.model import weights
from gangpao.model.transformer import Transformer
from gangpao.text.tokenizer_json import hugging_face_files
from tests.model.tiny import tiny
from tests.text.tiny import byte_level


def model(kind="minicpm", seed=0, **fields):
    """Weights large enough that every layer says something."""
    built = Transformer.build(tiny(kind, **fields), seed=seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, p in built.named_parameters():
        if "norm" in name:
            p.mul_(0.5 + torch.rand(p.shape, generator=generator))
        elif name.endswith("bias"):
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
        elif "embed" not in name and "lm_head" not in name:
            p.mul_(2.0)
    return built


def ids(count=4, length=24, seed=0):
    return np.random.default_rng(seed).integers(0, 300, (count, length)).astype(np.int64)


def logits(built, rows):
    with torch.no_grad():
        return built.logits(built(torch.from_numpy(rows)).hidden)


def kept(c, *, layers=None, ffn=None, heads=None, groups=None, width=None):
    """Everything but what is given, the same in every layer."""
    full = Kept.everything(c)
    layers = layers or full.layers
    n = len(layers)
    return Kept(
        tuple(layers),
        (tuple(ffn or full.ffn[0]),) * n,
        (tuple(heads or full.heads[0]),) * n,
        (tuple(groups or full.groups[0]),) * n,
        tuple(width or full.width),
    )


@torch.no_grad()
def kill(built, k):
    """Make all that goes of layers that stay add nothing: zeros in the columns that read it and the rows that write it."""
    c = built.config
    gone = [i for i in range(c.hidden_size) if i not in k.width]
    built.model.embed_tokens.weight[:, gone] = 0
    for new, layer in enumerate(k.layers):
        block = built.model.layers[layer]
        block.mlp.down_proj.weight[:, [i for i in range(c.intermediate_size) if i not in k.ffn[new]]] = 0
        lines = [h for h in range(c.num_attention_heads) if h not in k.heads[new]]
        columns = [h * c.head_dim + i for h in lines for i in range(c.head_dim)]
        block.self_attn.o_proj.weight[:, columns] = 0
        block.mlp.down_proj.weight[gone] = 0
        block.self_attn.o_proj.weight[gone] = 0
    for layer in set(range(c.num_hidden_layers)) - set(k.layers):
        built.model.layers[layer].mlp.down_proj.weight.zero_()
        built.model.layers[layer].self_attn.o_proj.weight.zero_()


def save(built, folder: Path) -> Path:
    """As a Hugging Face folder whose tokenizer has few pieces."""
    metadata = byte_level("qwen2")
    return weights.save(folder, built.config, weights.state(built), extra=hugging_face_files(metadata))

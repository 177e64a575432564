"""A random model of Gated DeltaNet and attention, as a GGUF file and in torch."""

from pathlib import Path

import torch

from gangpao.deploy import gguf as writer
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from tests.formats.gguf_maker import vocabulary
from tests.model.tiny import tiny

VOCAB = 320


def hybrid(**fields) -> ModelConfig:
    """Three layers that keep a state, one that attends, and again; two value heads to a key head."""
    kinds = ("linear_attention",) * 3 + ("full_attention",)
    return tiny("delta", max_position_embeddings=1024, num_hidden_layers=4, layer_types=kinds, **fields)


def build(config: ModelConfig, seed: int = 3) -> Transformer:
    """Random weights so large that every part shows."""
    model = Transformer.build(config, seed=seed).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn(p.shape, generator=generator) * 0.2)
            elif "conv1d" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
            else:
                p.mul_(2.0)
    return model


def write(path: Path, model: Transformer, kind: str = "F32") -> Path:
    return writer.write(path, model.config, weights.state(model), vocabulary(VOCAB), kind)

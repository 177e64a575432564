"""First values of a new merger, from what the encoder says of some pictures of the data.

An encoder's states have any scale: behind the sixth layer of a DINOv2 they are 0.1 large, and most of that is the same for every
patch of every picture. A language model gets rows of 0.05 among token embeddings of 4 (nano's, times scale_emb), and for thousands
of steps it learns that pictures say nothing (docs/log.md, 2026-11-30). So each channel comes with mean 0 and deviation 1 into the
merger, by factors in its first matrix, and its rows are as large as the tokens beside which they stand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gangpao.images.slices import Piece
from gangpao.model.transformer import Transformer
from gangpao.model.vision.tower import VisionTower

PICTURES = 128  # that are looked at
_LEAST = 1e-2  # of the usual deviation of a channel: one that never moves is not blown up


@torch.no_grad()
def calibrate(tower: VisionTower, pieces: Sequence[Piece], language: Transformer) -> None:
    """Change the merger of LLaVA's form (linear, GELU, linear) in place."""
    states = torch.cat(tower.encode(pieces))
    first, second = tower.merger.get_submodule("linear_1"), tower.merger.get_submodule("linear_2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    deviation = states.std(dim=0)
    deviation = deviation.clamp_min(_LEAST * float(deviation.mean()))
    first.weight.div_(deviation)
    first.bias.sub_(first.weight @ states.mean(dim=0))
    rows = torch.cat(tower.merger(states, [piece.grid for piece in pieces]))
    tokens = float(language.model.embed_tokens.weight.std()) * language.config.scale_emb
    factor = tokens / float((rows - rows.mean(dim=0)).std())
    second.weight.mul_(factor)
    second.bias.copy_((second.bias - rows.mean(dim=0)) * factor)

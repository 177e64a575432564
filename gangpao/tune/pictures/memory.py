"""What the tower of a model that sees takes in a tuning, from its shape alone: an upper bound, as if a pass were all pictures."""

from __future__ import annotations

import torch

from gangpao.formats.vision import VisionModel
from gangpao.images.slices import sizes
from gangpao.model.vision.tower import VisionTower
from gangpao.tune.pictures.config import SightConfig
from gangpao.tune.pictures.table import KEPT_BYTES

_STATES = (
    10  # vectors [hidden] a patch and layer that a backward pass keeps: norms, q, k, v, attention, its sum, residuals
)


def sight_bytes(
    vision: VisionModel, text_size: int, config: SightConfig, tokens: int, *, stored: float, recompute: bool
) -> dict[str, int]:
    """Bytes by what takes them. tokens: of one pass; stored: bytes of a weight."""
    with torch.device("meta"):
        tower = VisionTower(vision, text_size)
    counts = {part: sum(p.numel() for p in tower.get_submodule(part).parameters()) for part in ("encoder", "merger")}
    trained = sum(count for part, count in counts.items() if part in config.train)
    side = vision.slicing.resolution
    plan = sizes(side, side, vision)
    rows = max(1, plan.tokens[0])
    patches = -(-tokens // rows) * plan.grids[0][0] * plan.grids[0][1]
    e = vision.encoder
    layer = 4 * patches * (_STATES * e.hidden_size + 2 * e.intermediate_size)
    kept = 1
    if "encoder" in config.train:
        kept = e.layers if not recompute else 2
    return {
        "weights": int(stored * sum(counts.values())),
        "trained": 12 * trained,  # gradients and two moments, float32
        "activations": kept * layer + 4 * tokens * 3 * text_size,
        "pictures": KEPT_BYTES,
    }

"""Which parts of a model that sees learn: the method of the run in the language model, merger and encoder as they are."""

from __future__ import annotations

from torch import nn

from gangpao.model.transformer import Transformer
from gangpao.model.vision.tower import VisionTower
from gangpao.tune.methods.apply import Applied, apply
from gangpao.tune.methods.config import MethodConfig
from gangpao.tune.methods.lora import Switch
from gangpao.tune.pictures.config import SightConfig


def apply_parts(
    language: Transformer, tower: VisionTower, method: MethodConfig, sight: SightConfig, *, seed: int
) -> Applied:
    """Put a method into the language model where that learns, and mark what learns of the tower."""
    if "text" in sight.train:
        applied = apply(language, method, seed=seed)
    else:
        language.requires_grad_(False)
        applied = Applied(language, method, {}, {}, Switch())
    tower.train_only(*(part for part in ("encoder", "merger") if part in sight.train))
    seen: dict[str, nn.Parameter] = {f"vision.{name}": p for name, p in tower.named_parameters() if p.requires_grad}
    rates = {"vision.merger.": sight.merger_rate, "vision.encoder.": sight.encoder_rate}
    return Applied(language, method, applied.trainable | seen, applied.modules, applied.switch, rates)

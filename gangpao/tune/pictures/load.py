"""A folder that sees as a base: its row of vision, its tower, its language model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gangpao.formats.vision import VisionModel
from gangpao.formats.vision.config import read
from gangpao.model.config import ModelConfig, from_hf
from gangpao.model.transformer import Transformer
from gangpao.model.vision.load import described, load_vision
from gangpao.model.vision.tower import VisionTower


def sees(path: Path) -> bool:
    """Whether a path is the folder of a model that sees. Raises ValueError for one of a kind that is not read."""
    file = path / "config.json"
    if not file.is_file():
        return False
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False  # whoever reads it as a language model says what is wrong
    return isinstance(data, dict) and read(data) is not None


def shapes(path: Path) -> tuple[VisionModel, ModelConfig]:
    """What a folder is, from its configuration alone. Raises ValueError for what would be computed wrongly."""
    found = described(path)
    return found.vision, from_hf(found.text)


def load(path: Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> tuple[VisionTower, Transformer]:
    """Tower and language model of a folder. Raises ValueError for a tensor that is missing, left over or of another shape."""
    _, tower, language = load_vision(path, dtype=dtype, device=device)
    assert language is not None
    return tower, language

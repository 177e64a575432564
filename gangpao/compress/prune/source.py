"""A model that is to be pruned, as floats with what belongs to it, and the folder that comes out.

A GGUF file becomes floats; its tokenizer is written as the files that Hugging Face's library reads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gangpao.compress.prune.config import Calibration
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Transformer
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.base.load import base_tokenizer_files, load_base

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Source:
    """A model in float32, its tokenizer, the tokenizer's files by name, and what all of it hashes to."""

    path: Path
    model: Transformer
    tokenizer: Tokenizer
    files: Mapping[str, bytes]
    sha256: str


def load(path: Path) -> Source:
    """A Hugging Face folder or a .gguf file. Raises ValueError as load_base does, and for a tokenizer that has no such files."""
    base = load_base(path, storage="fp32", dtype=torch.float32)
    return Source(path, base.model.eval(), base.tokenizer, base_tokenizer_files(path), base.sha256)


def windows(tokenizer: Tokenizer, config: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Ids [windows, length] for importance and [measured, length] for comparisons, of one text: no window is in both."""
    from gangpao.compress.importance.calibration import calibration_ids

    files = [Path(config.root) / name for name in config.files]
    count = config.windows + config.measured
    ids = calibration_ids(tokenizer, files, windows=count, length=config.length)
    every = np.zeros(count, dtype=bool)  # spread over the whole text, which goes from language to language
    every[np.linspace(0, count - 1, config.measured).round().astype(int)] = True
    return ids[~every], ids[every]


def digest(sha256: str, told: Mapping[str, object], *ids: np.ndarray) -> str:
    """What a step depends on: its model, what it was told, and its text."""
    out = hashlib.sha256(sha256.encode())
    out.update(json.dumps(told, sort_keys=True, default=str).encode())
    for array in ids:
        out.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
    return out.hexdigest()


def build(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Transformer:
    """A model of these tensors, which it shares."""
    with torch.device("meta"):
        model = Transformer(config)
    weights.fill(model, iter(tensors.items()), dtype=None, device="cpu", where="the pruned model")
    return model.requires_grad_(False).eval()

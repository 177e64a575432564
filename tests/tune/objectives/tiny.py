"""A tiny model, an adapter of one matrix that can be switched off, and preferences in any packing."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gangpao.model.transformer import Transformer
from tests.train.tiny import VOCAB, shape


@dataclass(frozen=True)
class Batch:
    """Stands for gangpao.tune.data.batches.Preferences."""

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    sequences: np.ndarray
    desirable: np.ndarray


def answers(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Documents (ids, labels) of a prompt and an answer each, every length another one; neighbours share their prompt."""
    rng = np.random.default_rng(seed)
    out = []
    prompt = np.empty(0)
    for i in range(count):
        if i % 2 == 0:
            prompt = rng.integers(0, VOCAB, rng.integers(2, 6))
        whole = np.concatenate([prompt, rng.integers(0, VOCAB, rng.integers(2, 8))])
        labels = whole[1:].copy()
        labels[: len(prompt) - 1] = -100
        out.append((whole[:-1], labels))
    return out


def packed(documents: list[tuple[np.ndarray, np.ndarray]], rows: list[list[int]], length: int = 40) -> Batch:
    """Those documents in rows: rows[r] are the numbers that lie in row r, one after the other; the rest is padding."""
    shape = (len(rows), length)
    numbers = sorted(n for row in rows for n in row)
    ids, labels = np.zeros(shape, np.int64), np.full(shape, -100)
    places, sequences = np.full(shape, 99), np.full(shape, -1)
    for r, row in enumerate(rows):
        at = 0
        for n in row:
            inside = (r, slice(at, at + len(documents[n][0])))
            ids[inside], labels[inside] = documents[n]
            places[inside] = n
            sequences[inside] = np.where(documents[n][1] == -100, -1, numbers.index(n))
            at += len(documents[n][0])
    return Batch(ids, labels, places, sequences, np.array([n % 2 == 0 for n in numbers]))


class Tuned:
    """A model whose middle norm has a factor that `off` takes away: what an adapter is to an objective."""

    def __init__(self, seed: int = 1, **changes: object) -> None:
        self.model = Transformer.build(shape(**changes), seed=seed)
        for p in self.model.parameters():
            p.requires_grad_(False)
        layer = self.model.model.layers[0].mlp.down_proj
        self.adapter = nn.Parameter(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
        self.on = True
        layer.register_forward_hook(lambda _, x, y: y + x[0] @ self.adapter.T if self.on else y)

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def gradient(self, objective, batches, count=None) -> tuple[dict[str, float], torch.Tensor]:
        """Values and the adapter's gradient of a step of these batches, as the loop computes them."""
        self.adapter.grad = None
        total = sum(objective.measure(batch)[0] for batch in batches)
        values: dict[str, float] = {}
        for batch in batches:
            terms = objective(self.model, batch, 1 / total)
            terms.loss.backward()
            for name, value in terms.values.items():
                values[name] = values.get(name, 0.0) + float(value)
        assert self.adapter.grad is not None
        return values, self.adapter.grad.clone()

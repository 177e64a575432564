"""How much worse a model is on calibration text: loss of the next token, or KL divergence from the model of before.

Of the model of before only its last hidden states are kept, [T, width] for every window; its logits are made again some rows at a
time, because all of them would be larger than the model. For choosing between cuts; what is reported for people is
`gangpao eval perplexity` and `gangpao compare`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import rows_at_once

Measure = Literal["kl", "loss"]


class Judge:
    """The model of before on some windows, and how far another is from it, in nats a token."""

    def __init__(self, model: Transformer, ids_NT: np.ndarray, by: Measure) -> None:
        self.ids, self.by, self.head = ids_NT, by, model.lm_head
        with torch.no_grad():
            self.hidden = [_hidden(model, row) for row in ids_NT] if by == "kl" else []

    @torch.no_grad()
    def __call__(self, model: Transformer) -> float:
        """Mean KL(before || model) over all positions, or mean loss of the next token."""
        total, count = 0.0, 0
        for i, row in enumerate(self.ids):
            hidden = _hidden(model, row)
            before = self.hidden[i] if self.by == "kl" else None
            total += self._window(model.lm_head, hidden, before, row)
            count += len(row) if self.by == "kl" else len(row) - 1
        return total / count if math.isfinite(total) else math.inf

    def _window(self, head: nn.Module, hidden: Tensor, before: Tensor | None, row: np.ndarray) -> float:
        total = 0.0
        for part in _parts(len(row), head):
            logp = torch.log_softmax(head(hidden[part]).float(), dim=-1)
            if before is not None:
                base = torch.log_softmax(self.head(before[part]).float(), dim=-1)
                total += float((base.exp() * (base - logp)).sum(dtype=torch.float64))
                continue
            labels = torch.from_numpy(np.ascontiguousarray(row[part.start + 1 : part.stop + 1]))
            total -= float(logp[: len(labels)].gather(1, labels[:, None]).sum(dtype=torch.float64))
        return total


def _parts(count: int, head: nn.Module) -> Iterator[slice]:
    size = rows_at_once(int(head.get_parameter("weight").shape[0]))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _hidden(model: Transformer, row: np.ndarray) -> Tensor:
    out: Tensor = model(torch.from_numpy(np.ascontiguousarray(row))[None]).hidden[0]
    return out


@contextmanager
def only_layers(model: Transformer, layers: Iterable[int]) -> Iterator[Transformer]:
    """The model with these layers alone, the factor of a branch as it was."""
    every = model.model.layers
    model.model.layers = nn.ModuleList(every[i] for i in layers)
    try:
        yield model
    finally:
        model.model.layers = every

"""Held-out rows during a run: the objective itself, on rows that training never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gangpao.train.loop import Objective, Summarises
from gangpao.train.step.lanes import Lanes, split_rows, summed

Evaluate = Callable[[Callable[[], bool]], dict[str, float] | None]


def evaluator(model: nn.Module, objective: Objective, heldout: Callable[[], Iterable[Any]], lanes: Lanes) -> Evaluate:
    """The objective's mean over what is held out ("heldout"), and `heldout_NAME` for the other values that it reports.

    heldout: makes the batches anew, each time the same.
    """

    @torch.no_grad()
    def values(batch: Any) -> dict[str, Tensor]:
        return objective(model, batch, 1.0).values

    def evaluate(stop: Callable[[], bool]) -> dict[str, float] | None:
        sums: dict[str, float] = {}
        count = 0
        for batch in heldout():
            if stop():
                return None
            found = summed(lanes.map(values, split_rows(batch, lanes.count)))
            sums = {key: sums.get(key, 0.0) + float(value) for key, value in found.items()}
            count += objective.measure(batch)[0]
        if not count:
            return None
        means = {key: value / count for key, value in sums.items()}
        means = objective.summary(means) if isinstance(objective, Summarises) else means
        return {"heldout": means.pop("loss"), **{f"heldout_{key}": value for key, value in sorted(means.items())}}

    return evaluate

"""Threads of a training step on a CPU: every lane takes rows of its own through forward and backward pass.

The usual way is many threads inside each operation: some hundred times a step they begin together and wait for the last one.
Waiting threads spin, so beside other work, or in a model of small operations, most of the time goes there. Lanes are Python threads
(torch lets go of the interpreter while it computes) whose operations have one thread each; they meet once a step, when their
gradients are added in the order of the rows. On two busy cores that is 1.6 times the tokens of one thread where threads inside
operations are slower than one; on two free ones it is as fast or some percent faster (docs/log.md, 2026-11-29).

The number of lanes decides where sums are parted, as the micro-batch does, so it belongs to a run and is the same when it goes on;
how many cores there are does not matter.

What it gives up: a gradient of every parameter for each lane. Models for which that is much (MOST_BYTES) have long operations
and keep threads inside them. Objectives must not draw random numbers, and what a lane computes must not depend on other rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gangpao import machine
from gangpao.model import cpu
from gangpao.train.step.loss import Terms

MOST_BYTES = 1 << 29  # of gradients for each lane: 134 M parameters

Result = TypeVar("Result")
Objective = Callable[[nn.Module, Any, float], Terms]


class Lanes:
    """`count` threads that compute at the same time, each with `inside` threads for its operations.

    Raises ValueError for fewer than one of either.
    """

    def __init__(self, count: int, inside: int = 1) -> None:
        if min(count, inside) < 1:
            raise ValueError(f"lanes: {count} with {inside} threads each; both must be at least 1")
        self.count = count
        machine.keep_freed_memory()
        cpu.use_full_width()
        if count == 1:
            torch.set_num_threads(inside)
            return
        outside = torch.get_num_threads()
        here = threading.Barrier(count + 1)

        def begin() -> None:
            torch.get_num_threads()  # else torch gives the thread the caller's number at its first operation (2.13)
            torch.set_num_threads(inside)
            here.wait()

        self._pool = ThreadPoolExecutor(count, "lane", begin)
        for _ in range(count):
            self._pool.submit(int)
        here.wait()  # all have begun, and what new threads get is set back
        torch.set_num_threads(outside)

    def map(self, work: Callable[[Any], Result], parts: Sequence[Any]) -> list[Result]:
        """work of every part, in their order. Raises what went wrong in the first of them that did."""
        if self.count == 1:
            return [work(part) for part in parts]
        futures = [self._pool.submit(work, part) for part in parts]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads."""
        if self.count > 1:
            self._pool.shutdown()

    def backward(
        self, objective: Objective, model: nn.Module, batch: Any, scale: float, parameters: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Add the gradients of a batch to those in the parameters; its values, summed over the lanes."""
        parts = split_rows(batch, self.count)
        if len(parts) == 1:
            terms = objective(model, batch, scale)
            terms.loss.backward()  # type: ignore[no-untyped-call]
            return terms.values

        def gradients(part: Any) -> tuple[dict[str, Tensor], Sequence[Tensor | None]]:
            terms = objective(model, part, scale)
            return terms.values, torch.autograd.grad(terms.loss, parameters, allow_unused=True)

        found = self.map(gradients, parts)
        self.map(_add, [(i, self.count, parameters, [g for _, g in found]) for i in range(self.count)])
        return summed([values for values, _ in found])


def _add(share: tuple[int, int, Sequence[Tensor], list[Sequence[Tensor | None]]]) -> None:
    """Add the gradients of all lanes, in their order, to every count-th parameter from the first one on."""
    first, count, parameters, found = share
    with torch.no_grad():
        for i in range(first, len(parameters), count):
            for gradients in found:
                gradient, p = gradients[i], parameters[i]
                if gradient is not None:
                    p.grad = gradient if p.grad is None else p.grad.add_(gradient)


def summed(values: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The values of several passes, each added up in their order."""
    out: dict[str, Tensor] = {}
    for one in values:
        out = out | {name: out[name] + v if name in out else v for name, v in one.items()}
    return out


def split_rows(batch: Any, count: int) -> list[Any]:
    """A batch (a dataclass of arrays with one row each) as up to `count` batches of neighbouring rows."""
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    rows = len(next(iter(fields.values())))
    if min(count, rows) == 1:
        return [batch]
    edges = np.linspace(0, rows, min(count, rows) + 1).round().astype(int).tolist()
    return [
        dataclasses.replace(batch, **{name: array[a:b] for name, array in fields.items()})
        for a, b in itertools.pairwise(edges)
    ]


def lane_count(threads: int, micro_rows: int, gradient_bytes: int) -> int:
    """Lanes of a model whose rows do not depend on one another."""
    return min(threads, micro_rows) if gradient_bytes <= MOST_BYTES else 1


def lanes_for(threads: int, micro_rows: int, gradient_bytes: int, *, separable: bool) -> Lanes:
    """How `threads` threads are best used. gradient_bytes: of one copy of all gradients. separable: rows do not depend on one
    another, and the model may be called from several threads at once."""
    count = lane_count(threads, micro_rows, gradient_bytes) if separable else 1
    return Lanes(count, max(1, threads // count))

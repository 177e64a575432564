"""One optimizer step of the loop: gradients of all micro-batches, their norm, then clipping and the update.

Usually gradients lie in the parameters between the two. A lean optimizer may release them (gangpao.train.step.lean): then a
backward pass is for the norm, and `apply` repeats it with the same random numbers, or the update has happened on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gangpao.train.step.lanes import Lanes, summed
from gangpao.train.step.lean import Lean
from gangpao.train.step.optim import Average, Optimizer
from gangpao.train.step.parallel import World, exchange_gradients, whole


class Job(Protocol):
    """What a step needs of gangpao.train.loop.Job."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def forward(self) -> nn.Module | None: ...
    @property
    def optimizer(self) -> Optimizer | Lean: ...
    @property
    def objective(self) -> Any: ...
    @property
    def average(self) -> Average | None: ...
    @property
    def world(self) -> World: ...
    @property
    def lanes(self) -> Lanes: ...
    @property
    def clip(self) -> float: ...
    @property
    def no_sync(self) -> bool: ...


def check(job: Job, passes: int) -> None:
    """Raises ValueError where the parts of a job do not go together: lanes with an objective whose rows depend on one another,
    released gradients with more than one backward pass a step."""
    if job.lanes.count > 1 and not getattr(job.objective, "separable", True):
        raise ValueError(
            f"the rows of this objective depend on one another, so they cannot be split over {job.lanes.count} lanes: use one lane"
        )
    if job.optimizer.release is None:
        return
    found = {"micro-batches a step": passes, "ranks": job.world.size, "lanes": job.lanes.count}
    many = [f"{n} {what}" for what, n in found.items() if n > 1]
    if many:
        raise ValueError(
            f"gradients can only be released by one backward pass in one process, not by {' and '.join(many)}: take "
            "micro-batches as large as the step, or keep gradients (release = false)"
        )


class Update:
    """What one step of a job does with its batches. scale: 1 / (all that counts in the step)."""

    def __init__(self, job: Job, batches: Sequence[Any], scale: float, lr: float) -> None:
        self.job, self.batches, self.scale, self.lr = job, batches, scale, lr
        self._random: dict[str, Tensor] = {}

    def gradients(self) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients in the parameters; values summed over the micro-batches, and the norm of the whole gradient.

        Where gradients are released none is left, and weights have moved already unless clipping is exact.
        """
        job, release = self.job, self.job.optimizer.release
        job.optimizer.zero_grad()
        if release is None:
            values = self._backward()
            job.world.sum_gradients(job.optimizer.parameters)
            gradients = [p.grad for p in job.optimizer.parameters if p.grad is not None]
            return values, whole(torch.nn.utils.get_total_norm(gradients))
        if release.exact:
            self._random = _random_state(job.world.device)
            release.measuring()
        else:
            release.updating(self.lr)
        return self._backward(), release.norm()

    def apply(self, norm: float) -> None:
        """Clip, update the weights, and move their average."""
        job, release = self.job, self.job.optimizer.release
        factor = job.clip / norm if job.clip and norm > job.clip else 1.0
        if release is None:
            if factor != 1.0:
                torch._foreach_mul_([p.grad for p in job.optimizer.parameters if p.grad is not None], factor)
            job.optimizer.step(self.lr)
        elif release.exact:
            release.updating(self.lr, factor)
            _set_random_state(self._random, job.world.device)
            self._backward()
        if job.average is not None:
            job.average.update()

    def _backward(self) -> dict[str, Tensor]:
        """Forward and backward pass of every micro-batch; their values, summed."""
        job = self.job
        forward = job.model if job.forward is None else job.forward
        values: dict[str, Tensor] = {}
        for i, batch in enumerate(self.batches):
            if job.no_sync:
                exchange_gradients(job.model, i == len(self.batches) - 1)
            found = job.lanes.backward(job.objective, forward, batch, self.scale, job.optimizer.parameters)
            values = summed([values, found])
        return values


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)

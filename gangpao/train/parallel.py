"""Training over several processes that torchrun started: whole replicas, or FSDP2's sharded parameters.

Replicas sum their gradients once a step. Sharding (`fully_shard` on every layer) keeps a part of weights, gradients and
optimizer state on each rank. The loss of a step is a sum over all ranks divided by all labels, so gradients are summed, not
averaged, and one rank or ten give the same step up to the order of additions.

What it gives up: tensor and pipeline parallelism; a checkpoint gathers whole tensors on rank 0 instead of going through
torch's distributed checkpoint, whose metadata is a pickle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

TIMEOUT = timedelta(seconds=45)  # a lost rank ends the others within a minute; torchrun then starts all anew
BUCKET_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run and this one's place among them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks; every rank gets the same bits."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(v) for v in total.tolist()]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of replicas, some tens of MB at a time. Sharded ones are summed already."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for p in parameters:
            if p.grad is None:  # a rank without work for it must not leave the others waiting
                p.grad = torch.zeros_like(p)
            if isinstance(p.grad, DTensor):
                continue
            if bucket and (bucket[0].dtype != p.grad.dtype or sum(g.nbytes for g in bucket) > BUCKET_BYTES):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(p.grad)
        if bucket:
            _sum_bucket(bucket)

    def close(self) -> None:
        """Leave the process group."""
        if self.size > 1:
            dist.destroy_process_group()


def _sum_bucket(bucket: list[Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in bucket])
    dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in bucket])
    for g, part in zip(bucket, parts, strict=True):
        g.copy_(part.view_as(g))


def start(device: str = "auto") -> World:
    """Join the other processes as torchrun's environment says, or be alone. device: auto, cpu or cuda."""
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here; install a build of torch with CUDA, or set device=cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(local)
    if size == 1:
        return World(device=local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), size, local)


def shard(model: nn.Module, layers: Iterable[nn.Module], world: World) -> None:
    """Split every parameter over the ranks (FSDP2): layer by layer, and the rest as the root."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for module in (*layers, model):
        fully_shard(module, mesh=mesh)
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)  # sums: the loss is divided by all labels already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece. Every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, placed as `pattern` is."""
    if isinstance(pattern, DTensor) and tensor.ndim:
        return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements)
    return tensor.to(pattern.device)

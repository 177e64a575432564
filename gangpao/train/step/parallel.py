"""Training over several processes that torchrun started: whole replicas, FSDP2's sharded parameters, or groups of both.

Replicas sum their gradients once a step. Sharding (`fully_shard` on every layer) keeps a part of weights, gradients and
optimizer state on each rank; with fewer ranks to a copy than there are (HSDP), copies are sharded inside a machine and
summed between machines. Offloaded, the parts lie in the memory of the machine and layers visit the GPU, so one GPU alone
can hold a model whose optimizer is larger than it. The loss of a step is a sum over all ranks divided by all labels, so
gradients are summed, not averaged, and one rank or ten give the same step up to the order of additions.

torch's modules for it are imported when a model is sharded: they take a third of the import of this package, and a process
that trains alone, as the small trials of a sandbox do, never needs them.

What it gives up: tensor and pipeline parallelism, which 4 B parameters do not need.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

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
            if is_sharded(p.grad):
                continue
            if bucket and (bucket[0].dtype != p.grad.dtype or sum(g.nbytes for g in bucket) > BUCKET_BYTES):
                _sum_bucket(bucket)
                bucket = []
            bucket.append(p.grad)
        if bucket:
            _sum_bucket(bucket)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _sum_bucket(bucket: list[Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in bucket])
    dist.all_reduce(flat)
    parts = torch.split(flat, [g.numel() for g in bucket])
    for g, part in zip(bucket, parts, strict=True):
        g.copy_(part.view_as(g))


def start(device: str = "auto", *, group: bool = False) -> World:
    """Join the other processes as torchrun's environment says, or be alone. device: auto, cpu or cuda.

    group: have a process group even alone, which sharding needs.
    """
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here; install a build of torch with CUDA, or --set device=cpu")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # gloo beside nccl: offloaded parts lie in the machine's memory
    if size == 1:
        if group:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        return World(device=local)
    dist.init_process_group(backend, timeout=TIMEOUT)
    return World(dist.get_rank(), size, local)


def shard(
    model: nn.Module, layers: Iterable[nn.Module], world: World, *, ranks: int | None = None, offload: bool = False
) -> None:
    """Split every parameter over the ranks (FSDP2): layer by layer, and the rest as the root.

    ranks: that share one copy (None: all); with fewer, every such group has a copy (HSDP). offload: parts and optimizer in the
    memory of the machine. Raises ValueError when `ranks` does not divide the number of processes.
    """
    ranks = ranks or world.size
    if world.size % ranks:
        raise ValueError(f"shard_ranks = {ranks} does not divide {world.size} processes: choose a divisor of it")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard

    copies = world.size // ranks
    names, sizes = (("replicate", "shard"), (copies, ranks)) if copies > 1 else (("shard",), (ranks,))
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
    # Pinned memory is for copies to a GPU.
    policy = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if offload else OffloadPolicy()
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, offload_policy=policy)
        sharded = cast(FSDPModule, module)
        sharded.set_gradient_divide_factor(1.0)  # sums: the loss is divided by all labels already
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other


def exchange_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass of a sharded model ends with an exchange; without one, whole gradients add up locally."""
    if _is_fsdp(model):
        model.set_requires_gradient_sync(now)


def reshard(model: nn.Module) -> None:
    """Let go of whole parameters that a forward pass without a backward one left in a sharded model."""
    if _is_fsdp(model):
        model.reshard()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor has parts on several ranks. Where torch's module was not imported, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _is_fsdp(model: nn.Module) -> TypeGuard[FSDPModule]:
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(model, module.FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece. Every rank must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, which every rank has, placed as `pattern` is; one that is placed already stays."""
    if is_sharded(pattern) and tensor.ndim and not is_sharded(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh = pattern.device_mesh
        return distribute_tensor(tensor.to(pattern.device), mesh, pattern.placements, src_data_rank=None)
    return tensor.to(pattern.device)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank has."""
    return tensor.to_local() if is_sharded(tensor) else tensor

"""Is there memory for a run? Before it begins by an estimate, and in words when it ran out all the same.

The ways out are options as one types them, with values that this run can have. What it gives up: the estimate is of the
largest step, not of what torch keeps for itself.
"""

from __future__ import annotations

import os

import torch

from gangpao import machine
from gangpao.model.config import ModelConfig
from gangpao.model.count import GRADIENT_STATES, activation_bytes, parameters
from gangpao.train.config import TrainConfig
from gangpao.train.step.lanes import lane_count
from gangpao.train.step.loss import logits_bytes
from gangpao.train.step.parallel import World
from gangpao.units import show_bytes


def training_bytes(
    shape: ModelConfig, tokens: int, *, optimizer: str, recompute: bool, bf16: bool = False, ema: bool = False
) -> tuple[int, int]:
    """Estimate of (weights, gradients and optimizer; what a forward and backward pass over `tokens` tokens keeps)."""
    states = GRADIENT_STATES - (4 if optimizer in ("muon", "muonh") else 0) + (4 if ema else 0)
    activations = (1 if bf16 else 2) * activation_bytes(shape, tokens, recompute=recompute)
    return states * parameters(shape).total, activations + logits_bytes(shape.vocab_size)


def admit(shape: ModelConfig, config: TrainConfig, world: World) -> None:
    """Raises ValueError when memory will not do, with need, have and the ways out."""
    tokens, kind = config.micro_batch_size * config.seq_len, config.optimizer.kind
    options = {"recompute": config.recompute, "bf16": config.precision == "bf16", "ema": bool(config.ema)}
    fixed, working = training_bytes(shape, tokens, optimizer=kind, **options)
    fixed //= (config.shard_ranks or world.size) if config.parallel == "shard" else 1
    if config.no_sync:
        working += 4 * parameters(shape).total  # whole gradients
    gradients = 4 * parameters(shape).total
    if rows_are_separable(config, shape, world):
        lanes = lane_count(config.threads or 1, config.micro_batch_size, gradients)
        working += gradients * lanes if lanes > 1 else 0
    ways, host = ways_out(config, world.size), machine.available_memory()
    if world.device.type != "cuda":
        _fits(fixed + working, host, fixed, "", ways)
        return
    free = torch.cuda.mem_get_info(world.device)[0]
    if config.offload:  # on the GPU: the layer at work, the next one, and the embedding
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        _fits(fixed * ranks, host, fixed * ranks, " of the machine", ways)
        fixed = 4 * (parameters(shape).embedding + 2 * parameters(shape).non_embedding // shape.num_hidden_layers)
    _fits(fixed + working, free, fixed, " of the GPU", ways)


def rows_are_separable(config: TrainConfig, shape: ModelConfig, world: World) -> bool:
    """Whether threads may take rows of their own. Experts count what all rows choose, sharded parameters are gathered by one
    thread, and a GPU has threads of its own."""
    plain = config.parallel == "replicate" and not config.compile and not config.offload
    return world.device.type == "cpu" and plain and shape.moe is None


def _fits(need: int, have: int, fixed: int, where: str, ways: str) -> None:
    if need > have:
        raise ValueError(
            f"training needs about {show_bytes(need)} ({show_bytes(fixed)} of it weights and optimizer) and "
            f"{show_bytes(have)}{where} are free. Ways out: {ways}"
        )


def ways_out(config: TrainConfig, ranks: int = 1) -> str:
    """What takes less memory, as options of the command line."""
    share = config.rows // ranks
    fewer = next((n for n in range(config.micro_batch_size // 2, 0, -1) if share % n == 0), None)
    ways = [
        *([] if config.recompute else ["--set recompute=true"]),
        *([f"--set micro_batch_size={fewer}"] if fewer else []),
        *(["--set optimizer.kind=muon"] if config.optimizer.kind == "adamw" and config.recompute else []),
        *_smaller(config),
        *([] if fewer else [f"shorter rows (--set seq_len={config.seq_len // 2})"]),
    ]
    return ", ".join(ways)


def _smaller(config: TrainConfig) -> list[str]:
    """A smaller model, where the run has the choice."""
    if config.init_from or config.branch_from:
        return []
    layers = config.model.change.get("num_hidden_layers")
    if isinstance(layers, int) and layers > 1:
        return [f"a smaller model (--set model.change.num_hidden_layers={layers // 2})"]
    return ["a smaller model (--set model.preset=NAME, `gangpao model show` lists them)"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, or Python, says that memory ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )

"""A tuning over several ranks of torchrun, each with a part of the base, of what is trained and of the optimizer's state (FSDP2).

A layer is whole on a rank only while it is computed. Blocks of a GGUF file are no parameters: they stay a memory map, which the
ranks of one machine share, and only what is trained is in parts.

What it gives up: every rank reads the whole base before it is parted, and embedding and head are whole from the first pass on.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from gangpao.model.config import ModelConfig
from gangpao.model.count import parameters
from gangpao.train.step import parallel
from gangpao.train.step.parallel import World
from gangpao.tune.base.load import Base
from gangpao.tune.config import TuneConfig
from gangpao.tune.memory import Plan, Row
from gangpao.tune.methods import Applied

_PARTS = {"adapter", "optimizer", "gradients"}


def shares(config: TuneConfig, world: World) -> bool:
    """Whether ranks have parts of one copy."""
    return config.parallel == "shard" and world.size > 1


def part(config: TuneConfig, base: Base, applied: Applied, world: World) -> Applied:
    """The same method when base and method are in parts, where the run asks for that. Raises ValueError for a base that sees, and
    for shard_ranks that do not divide the ranks."""
    if not shares(config, world):
        return applied
    if base.tower is not None:
        raise ValueError(f'{base.path}: a model that sees is tuned on whole copies: leave out parallel = "shard"')
    parallel.shard(base.model, base.model.model.layers, world, ranks=config.shard_ranks)
    return replace(applied, trainable={name: p for name, p in base.model.named_parameters() if p.requires_grad})


def gather(model: nn.Module) -> None:
    """Make what is trained whole on every rank, when training is over: the model can be read and written then, and not called.
    Every rank must ask."""
    parallel.reshard(model)
    known: dict[int, nn.Parameter] = {}  # a tied head is the embedding again
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad and parallel.is_sharded(p):
                if id(p) not in known:
                    known[id(p)] = nn.Parameter(parallel.whole(p.detach()))
                setattr(module, name, known[id(p)])


def in_parts(found: Plan, shape: ModelConfig, storage: str | int, ranks: int) -> Plan:
    """A plan of one rank of `ranks` that share a copy, with the table and one layer whole. storage: bytes of blocks, which are
    never parted, or how floats lie."""
    rows = []
    for row in found.rows:
        size = row.bytes
        if row.name == "weights" and isinstance(storage, str):
            count = parameters(shape)
            whole = size * (count.embedding + count.head) // count.total
            layers = size - whole
            size = whole + layers // ranks + layers // shape.num_hidden_layers
        elif row.name in _PARTS:
            size //= ranks
        rows.append(Row(row.name, size, row.note))
    return Plan(tuple(rows), found.moment)

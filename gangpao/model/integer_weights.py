"""A folder with integer weights (GPTQ, AWQ, compressed-tensors) as the floats it stands for, one matrix after the other.

The packed tensors of a matrix are collected as they come from the files and become `NAME.weight` in float32 when all are there.
Other tensors go through as they are. What it gives up: the matrices are in memory as floats where they are used (4 bytes a weight);
`gangpao quantize` makes a small file of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from gangpao.formats.integers.layouts import SUFFIXES, integers_of, is_whole
from gangpao.formats.integers.scheme import Scheme


def dequantized(
    stored: Iterable[tuple[str, Tensor]], scheme: Scheme, shapes: Mapping[str, tuple[int, ...]], where: str
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) with the packed ones replaced. shapes: of the model's tensors, by the names in the file without a prefix of
    their own. Raises ValueError naming the matrix for packed tensors that are incomplete, damaged or of no matrix of the model."""
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored:
        module, _, suffix = name.rpartition(".")
        if suffix not in SUFFIXES[scheme.layout] or (suffix == "weight" and tensor.is_floating_point()):
            yield name, tensor
            continue
        packed.setdefault(module, {})[suffix] = tensor
    for module in list(packed):
        parts = packed.pop(module)
        yield f"{module}.weight", _dense(module, parts, scheme, shapes, where)


def _dense(
    module: str, parts: Mapping[str, Tensor], scheme: Scheme, shapes: Mapping[str, tuple[int, ...]], where: str
) -> Tensor:
    shape = shapes.get(f"{module}.weight")
    if shape is None or len(shape) != 2:
        raise ValueError(f"{where}: {module} has packed weights and is no matrix of this model")
    arrays = {name: (t.float() if t.is_floating_point() else t).cpu().numpy() for name, t in parts.items()}
    if not is_whole(arrays, scheme.layout):
        raise ValueError(
            f"{where}: {module} has {', '.join(sorted(arrays))} and misses a part of what {scheme.words} needs; get the whole "
            "checkpoint"
        )
    try:
        return torch.from_numpy(integers_of(arrays, scheme, (shape[0], shape[1])).dense())
    except ValueError as error:
        raise ValueError(f"{where}: {module} ({scheme.words}): {error}; the checkpoint is damaged") from error

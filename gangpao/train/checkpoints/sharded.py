"""Tensors that all ranks write at once, each its own part, and that any number of ranks reads again.

torch's distributed checkpoint does the planning; its files are safetensors, whose headers say which part of a tensor each holds.
So nothing is gathered on one rank, and nothing on the disk is a pickle (torch's other format has one).

What it gives up: folders that not every rank sees; the ranks of a run share a file system.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor


def write(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write sharded tensors into a folder that exists. Every rank calls this; when one fails, all raise OSError."""
    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        rank, (first, *_) = next(iter(error.failures.items()))
        raise OSError(f"{folder.name}: rank {rank} could not write its part ({first})") from error


def shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """What is in a folder: name -> whole shape and dtype."""
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: (m.size, m.properties.dtype) for n, m in found.items() if isinstance(m, TensorStorageMetadata)}


def read(folder: Path, patterns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, placed as the pattern of their name is placed, whole where there is none or it is not sharded.

    With sharded patterns every rank calls this, and each reads its own part.
    """
    out: dict[str, Tensor] = {}
    for name, (shape, dtype) in shapes(folder).items():
        pattern = patterns.get(name)
        if isinstance(pattern, DTensor) and pattern.shape == shape:
            out[name] = torch.empty_like(pattern, dtype=dtype)
        else:
            out[name] = torch.empty(shape, dtype=dtype)
    together = any(isinstance(t, DTensor) for t in out.values())
    with warnings.catch_warnings():
        # Whole tensors are read by each rank for itself, and torch wonders whether that is meant.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        load(out, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not together)
    return out

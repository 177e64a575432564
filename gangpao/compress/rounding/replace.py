"""A quantized file with the same header, types and bytes, and better numbers in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao.atomic import new_file
from gangpao.compress.rounding.run import Rounded
from gangpao.formats.gguf import GGUF, TensorInfo

Bytes = npt.NDArray[np.uint8]


def types_of(path: Path) -> dict[str, str]:
    """The type of every tensor of a file."""
    with GGUF.open(path) as file:
        return {name: info.type for name, info in file.tensors.items()}


def replaced(reference: Path, target: Path, encode: Rounded) -> int:
    """Write the file `reference` again with the matrices and vectors of a rounding in place of its own; how many they are.

    All other bytes are those of the reference. Raises ValueError for a reference in parts, and for one with other tensors, types
    or shapes than were rounded.
    """
    with GGUF.open(reference) as file:
        if len(file.paths) > 1:
            raise ValueError(f"{reference}: a model in {len(file.paths)} parts; give one whole file")
        tensors = dict(file.tensors)
    new = {name: _checked(reference, tensors.get(name), name, rows) for name, rows in _bytes(encode).items()}
    with new_file(target) as temporary:
        shutil.copyfile(reference, temporary)
        with temporary.open("r+b") as out:
            for name, rows in new.items():
                out.seek(tensors[name].offset)
                out.write(np.ascontiguousarray(rows).data)
    return len(new)


def _bytes(encode: Rounded) -> dict[str, Bytes]:
    vectors = {name: np.ascontiguousarray(v, np.float32).view(np.uint8) for name, v in encode.vectors.items()}
    return {**encode.tensors, **vectors}


def _checked(reference: Path, info: TensorInfo | None, name: str, rows: Bytes) -> Bytes:
    if info is None or info.nbytes != rows.nbytes:
        there = "is not there" if info is None else f"has {info.nbytes:,} bytes of {info.type}"
        raise ValueError(
            f"{reference}: {name} was rounded to {rows.nbytes:,} bytes and {there}; round for this file's types"
        )
    return rows

"""The container of PEFT's weights: eight bytes of length, a JSON header, then the data. A bounded reader and a writer, in numpy.

The engine reads adapters on devices without the lab, so the safetensors package is not asked for. Every size and offset is
checked against the file before anything is read.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from gangpao.formats.blocks import dequantize

Floats = npt.NDArray[np.float32]

MAX_HEADER = 16 << 20
MAX_TENSORS = 1 << 16
MAX_NAME = 512
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def read(path: str | os.PathLike[str]) -> dict[str, Floats]:
    """All tensors of a file as float32, in the order of the file. Raises ValueError for what is damaged or no float."""
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(path, f"its header would have {length} bytes, and the file has {size}")
        entries = _entries(path, file.read(length), size - 8 - length)
        out = {}
        for name, kind, shape, begin, end in entries:
            file.seek(8 + length + begin)
            raw = file.read(end - begin)
            if len(raw) != end - begin:
                raise _damaged(path, f"{name} is cut short")
            out[name] = _floats(path, name, kind, shape, raw)
    return out


def write(path: str | os.PathLike[str], tensors: Mapping[str, Floats]) -> None:
    """Tensors as a file of F32, sorted by name."""
    ordered = dict(sorted(tensors.items()))
    with Path(path).open("wb") as file:
        file.write(header({name: ("F32", values.shape, values.nbytes) for name, values in ordered.items()}))
        for values in ordered.values():
            file.write(np.ascontiguousarray(values, dtype="<f4").tobytes())


def header(entries: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """Everything before the data of tensors that follow each other in this order; name -> type, shape, bytes."""
    out: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (kind, shape, nbytes) in entries.items():
        out[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(out, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}; the file is damaged or not safetensors, get it again")


def _entries(path: Path, raw: bytes, room: int) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """(name, type, shape, begin, end) of every tensor, by their place in the data; `room` bytes of data there are."""
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error!s:.80})") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise _damaged(path, f"its header is no object of at most {MAX_TENSORS} tensors")
    header.pop("__metadata__", None)
    out = []
    for name, entry in header.items():
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise _damaged(path, f"{name!r:.80} is no name of a tensor")
        out.append((name, *_entry(path, name, entry, room)))
    out.sort(key=lambda one: one[3:])
    for before, after in itertools.pairwise(out):
        if before[4] > after[3]:
            raise _damaged(path, f"{before[0]} and {after[0]} overlap")
    return out


def _entry(path: Path, name: str, entry: object, room: int) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict):
        raise _damaged(path, f"{name} is described by a {type(entry).__name__}")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _WIDTHS:
        raise ValueError(f"{path}: {name} holds {kind!r:.20}, and an adapter's tensors are {', '.join(_WIDTHS)}")
    if not _naturals(shape) or len(shape) > 4 or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name} has the shape {shape!r:.60} at {offsets!r:.60}")
    begin, end = offsets
    if not begin <= end <= room or end - begin != math.prod(shape) * _WIDTHS[kind]:
        raise _damaged(path, f"{name} {kind} {shape!r:.60} lies at {offsets!r:.60} of {room} bytes")
    return kind, tuple(shape), begin, end


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= 1 << 40 for n in value)


def _floats(path: Path, name: str, kind: str, shape: tuple[int, ...], raw: bytes) -> Floats:
    flat = np.frombuffer(raw, dtype=np.uint8)
    if kind == "F64":
        values = flat.view("<f8").astype(np.float32)
    else:
        values = dequantize(flat.reshape(1, -1), kind) if raw else np.zeros(0, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} holds a value that is no finite number: its training diverged")
    return values.reshape(shape)

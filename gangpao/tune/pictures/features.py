"""What a frozen encoder says of each picture, computed once and kept in a file: a first stage then trains the merger alone, at
the price of the language model.

The file is an array [patches of all pictures, hidden] of float16 beside a record of what it is of: the encoder's weights and the
pictures. It is written row by row with a count of pictures that are done, so a run that was stopped goes on behind them.
What it gives up: 11 bits of 24, which is below what bf16 or int8 weights change.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.atomic import read_json, write_json
from gangpao.tune.pictures.table import PictureTable

_BLOCK = 64  # pictures between two marks of how far it is


class Features:
    """The file of a run, filled and open."""

    def __init__(self, values: np.memmap, starts: np.ndarray) -> None:
        self._values, self._starts = values, starts

    def of(self, numbers: Sequence[int]) -> Tensor:
        """Of these pictures, one after another: float32 [patches, hidden]."""
        parts = [np.asarray(self._values[self._starts[n] : self._starts[n + 1]], np.float32) for n in numbers]
        return torch.from_numpy(np.concatenate(parts))


def patches_of(table: PictureTable) -> np.ndarray:
    """Where the patches of each picture begin, [pictures + 1]."""
    counts = [sum(rows * columns for rows, columns in entry.plan.grids) for entry in table.entries]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def identity(encoder: nn.Module, table: PictureTable) -> str:
    """Changes with any weight of the encoder, and with the pictures."""
    digest = hashlib.sha256(table.fingerprint.encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def features(
    folder: Path,
    encoder: nn.Module,
    table: PictureTable,
    hidden: int,
    encode: Callable[[int], np.ndarray],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Features:
    """Compute what is not there yet. folder: features.bin and features.json of this run. encode: the encoder on a picture.

    Raises ValueError where the disk has no room.
    """
    starts, path, record = patches_of(table), folder / "features.bin", folder / "features.json"
    patches = int(starts[-1])
    told = {"identity": identity(encoder, table), "patches": patches, "hidden": hidden}
    folder.mkdir(parents=True, exist_ok=True)
    known = read_json(record) if record.is_file() else {}
    fits = path.is_file() and path.stat().st_size == 2 * patches * hidden
    begin = int(known.get("done", 0)) if fits and {k: known.get(k) for k in told} == told else 0
    if not begin:
        _room(path, 2 * patches * hidden)
    values = np.memmap(path, np.float16, "r+" if begin else "w+", shape=(patches, hidden))
    for number in range(begin, len(table.entries)):
        values[starts[number] : starts[number + 1]] = encode(number)
        if (number + 1) % _BLOCK == 0 or number + 1 == len(table.entries):
            values.flush()
            write_json(record, told | {"done": number + 1})
            progress(number + 1, len(table.entries))
    return Features(np.memmap(path, np.float16, "r", shape=values.shape), starts)


def _room(path: Path, need: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise ValueError(
            f"{path}: what the encoder says of all pictures takes {need:,} bytes, and {free:,} are free: make room, or set "
            "vision.features = false and compute it anew each time"
        )

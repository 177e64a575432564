"""The folder of a rounding: what is done, so that a run that was killed goes on and ends with the same bytes.

identity.json    of what, into which types, how, on which ids; another identity is refused
state.json       how many layers are done
tensors/         NAME.npy: rows of a matrix as the file will have them, uint8 [R, row bytes]
streams-N.npy    hidden states before layer N
learned/         the same rows after training, vectors.npz, and its own checkpoints
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gangpao import atomic
from gangpao.compress.rounding.layers import Streams

Bytes = npt.NDArray[np.uint8]


def digest(*arrays: npt.NDArray[Any]) -> str:
    """What tells these numbers from others."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


class Store:
    """One folder. Raises ValueError where it holds the work of another rounding."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        (folder / "tensors").mkdir(parents=True, exist_ok=True)
        path = folder / "identity.json"
        if path.exists():
            there = atomic.read_json(path)
            if there != identity:
                names = there.keys() | identity.keys() if isinstance(there, dict) else identity.keys()
                differing = [n for n in sorted(names) if not isinstance(there, dict) or there.get(n) != identity.get(n)]
                raise ValueError(
                    f"{folder}: holds another rounding (other {', '.join(differing)}); take another folder, or delete this one"
                )
        else:
            atomic.write_json(path, dict(identity))

    @property
    def layers(self) -> int:
        """Layers that are done."""
        path = self.folder / "state.json"
        return int(atomic.read_json(path)["layers"]) if path.exists() else 0

    def save(self, name: str, rows: Bytes) -> None:
        """Keep the bytes of a matrix."""
        save_array(self.folder / "tensors" / f"{name}.npy", rows)

    def load(self, name: str) -> Bytes:
        """The bytes of a matrix, seen through a memory map."""
        return load_array(self.folder / "tensors" / f"{name}.npy", mapped=True)

    def layer_done(self, number: int, streams: Streams) -> None:
        """So many layers are done; these are the hidden states behind them."""
        both = torch.stack([streams.exact, streams.rounded]).numpy()
        save_array(self.folder / f"streams-{number}.npy", both)
        atomic.write_json(self.folder / "state.json", {"layers": number})
        self._forget(number)

    def streams(self) -> Streams:
        """The hidden states behind the layers that are done."""
        both = torch.from_numpy(load_array(self.folder / f"streams-{self.layers}.npy"))
        return Streams(both[0].clone(), both[1].clone())

    def _forget(self, number: int) -> None:
        for path in self.folder.glob("streams-*.npy"):
            if path.name != f"streams-{number}.npy":
                path.unlink()


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """A .npy file, there whole or not at all."""
    with atomic.new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """What a .npy file holds. Raises ValueError naming a file that is missing or damaged."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete the folder and begin anew") from error
    return found

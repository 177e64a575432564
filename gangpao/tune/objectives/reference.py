"""What the model said before it was tuned, without a second model.

`Switched` turns the adapter off and asks the same weights: a forward pass more a step, no memory. `Counted` asks once for every
answer before the first step and remembers one number each: no pass more, and the only way where all weights are tuned. An answer
is known by its ids and labels, so the order and the packing of rows may be another one when it is looked up.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.atomic import new_file
from gangpao.tune.objectives.logps import NONE, Answers, Settings, answers_in, label_logps

KEY_BYTES = 16


class Reference(Protocol):
    """Log-probabilities of whole answers before tuning."""

    def sums(self, model: nn.Module, batch: Answers) -> Tensor:
        """Of every answer, float32 [S], without a gradient."""


class Switched:
    """The same model with its adapter off. off: gangpao.tune.methods.Applied.off."""

    def __init__(self, off: Callable[[], AbstractContextManager[object]], settings: Settings) -> None:
        self.off, self.settings = off, settings

    @torch.no_grad()
    def tokens(self, model: nn.Module, batch: Answers) -> Tensor:
        """Log-probabilities of every label, float32 [R]."""
        with self.off():
            return label_logps(model, batch, self.settings).logps

    @torch.no_grad()
    def sums(self, model: nn.Module, batch: Answers) -> Tensor:
        """Of every answer, float32 [S]."""
        with self.off():
            return label_logps(model, batch, self.settings).sums()


class Counted:
    """Remembered numbers. base: which model said them (gangpao.tune.base.Base.sha256)."""

    def __init__(self, base: str = "") -> None:
        self.base = base
        self.known: dict[bytes, float] = {}

    @torch.no_grad()
    def count(self, model: nn.Module, batches: Iterable[Answers], settings: Settings) -> None:
        """Ask a model that was not tuned yet about every answer that is not known."""
        for batch in batches:
            keys = keys_of(batch)
            if all(key in self.known for key in keys):
                continue
            sums = label_logps(model, batch, settings).sums()
            self.known.update(zip(keys, sums.tolist(), strict=True))

    def sums(self, model: nn.Module, batch: Answers) -> Tensor:
        """Of every answer, float32 [S]. Raises ValueError for one that was not counted."""
        keys = keys_of(batch)
        missing = [i for i, key in enumerate(keys) if key not in self.known]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(keys)} answers have no reference log-probability: the data changed after it was counted; "
                "count it anew"
            )
        device = next(model.parameters()).device
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float32, device=device)

    def save(self, path: Path) -> None:
        """Write what is known to an .npz file, which appears whole."""
        keys = np.frombuffer(b"".join(self.known), dtype=np.uint8).reshape(-1, KEY_BYTES)
        values = np.array(list(self.known.values()), dtype=np.float32)
        with new_file(path) as partial, partial.open("wb") as file:
            np.savez(file, base=np.array(self.base), keys=keys, values=values)

    @classmethod
    def load(cls, path: Path, base: str = "") -> Counted:
        """Read what `save` wrote. Raises ValueError when the file is damaged or another base said it."""
        try:
            with np.load(path, allow_pickle=False) as file:
                said, keys, values = str(file["base"]), file["keys"], file["values"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path}: no file of reference log-probabilities ({error}); remove it to count anew"
            ) from error
        if keys.shape != (len(values), KEY_BYTES):
            raise ValueError(f"{path}: {len(values)} numbers for keys {keys.shape}; remove it to count anew")
        if said != base:
            raise ValueError(
                f"{path}: these log-probabilities are of base {said[:12] or '(unknown)'}, this run tunes "
                f"{base[:12] or '(unknown)'}; remove the file to count anew"
            )
        out = cls(base)
        out.known = {key.tobytes(): float(value) for key, value in zip(keys, values, strict=True)}
        return out


def spans_of(batch: Answers) -> list[tuple[int, int, int, int, int]]:
    """Where each answer lies: row, begin and end of its document, first and last place that has a label of it.

    Raises ValueError where an answer has labels in two documents, or a document those of two answers.
    """
    found: dict[int, tuple[int, int, int, int, int]] = {}
    for row, (documents, sequences) in enumerate(zip(batch.documents, batch.sequences, strict=True)):
        edges = [0, *(np.flatnonzero(np.diff(documents)) + 1).tolist(), len(documents)]
        for begin, end in itertools.pairwise(edges):
            inside = sequences[begin:end]
            places = np.flatnonzero(inside != NONE)
            if not len(places):
                continue
            number = int(inside[places[0]])
            if number in found or (inside[places] != number).any():
                raise ValueError(
                    f"answer {number} of a batch shares a document, or lies in two; pack each in one of its own"
                )
            found[number] = (row, begin, end, begin + int(places[0]), begin + int(places[-1]))
    return [found[i] for i in range(answers_in(batch))]


def keys_of(batch: Answers) -> list[bytes]:
    """What every answer is known by: a digest of its document up to the last label."""
    out = []
    for row, begin, _, _, last in spans_of(batch):
        digest = hashlib.sha256(np.ascontiguousarray(batch.ids[row, begin : last + 1], dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(batch.labels[row, begin : last + 1], dtype="<i8").tobytes())
        out.append(digest.digest()[:KEY_BYTES])
    return out

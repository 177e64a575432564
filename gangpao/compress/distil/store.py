"""What a teacher said, on the disk: of every labelled token the K likeliest tokens, and what all others have together.

    store/about.json          which teacher said it of which data, at which temperature; another one is refused
    store/part-00000.safetensors, .json    some rows: keys, offsets, ids, log-probabilities; size and sha256 of the file

A part is complete when its .json is there, so filling goes on where it was stopped. A row is found by what it is (a digest of its
ids, labels and borders), so the order of rows, the size of a batch and the number of lanes may be others than they were.

The K + 1 probabilities are the teacher's own, not scaled up: the last one is the exact mass of all tokens that are left out
(log-sum-exp of their logits), so with K = V nothing is lost, and with less the divergence is that of the merged distributions
(divergence.py). In float16 a log-probability of -10 is off by 0.004; they are normed again when they are read.

Bytes: a token takes K * (4 + 2) + 2 in float16 (2 for an id where the vocabulary has at most 65,536 tokens).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from gangpao.atomic import new_file, write_json
from gangpao.compress.distil.inner import Inner
from gangpao.compress.distil.logits import Answers, Said
from gangpao.compress.distil.teacher import Teacher
from gangpao.train.checkpoints.checkpoint import write_tensors
from gangpao.train.step.loss import IGNORE, Rows, rows_at_once

KEY_BYTES = 16
PART_ROWS = 64  # rows of a part: of 512 tokens and 64 likeliest ones some 12 MB
FORMAT = 1
ABOUT = "about.json"

Precision = Literal["float16", "float32"]
_FLOATS = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class About:
    """What a store is of. teacher, data: sha256 and fingerprint; words: the size of the vocabulary."""

    teacher: str
    data: str
    k: int
    words: int
    temperature: float
    precision: Precision

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **{name: getattr(self, name) for name in self.__slots__}}


def row_keys(batch: Rows) -> list[bytes]:
    """What every row of a batch is known by."""
    out = []
    for ids, labels, documents in zip(batch.ids, batch.labels, batch.documents, strict=True):
        digest = hashlib.sha256(np.ascontiguousarray(ids, dtype="<i8").tobytes())
        digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
        borders = np.flatnonzero(np.diff(documents)).astype("<i8")
        digest.update(borders.tobytes())
        out.append(digest.digest()[:KEY_BYTES])
    return out


class Store:
    """A folder of answers. Raises ValueError where it holds those of another teacher, other data or another form, or is damaged."""

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about
        self._at: dict[bytes, tuple[int, int]] = {}  # key -> part and row in it
        self._parts: list[Any] = []
        self._offsets: list[npt.NDArray[np.int64]] = []
        self._same()
        for path in sorted(folder.glob("part-*.json")):
            self._verify(path)
            self._open(path.with_suffix(".safetensors"))

    def _same(self) -> None:
        path, now = self.folder / ABOUT, self.about.as_json()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}): delete {self.folder} and let the teacher work again"
            ) from error
        differ = [
            f"{key} {str(before.get(key))[:16]}, now {str(now[key])[:16]}" for key in now if before.get(key) != now[key]
        ]
        if differ:
            raise ValueError(
                f"{self.folder} holds what a teacher said of something else ({'; '.join(differ)}): take the change back, or "
                "delete the folder and let the teacher work again"
            )

    def _verify(self, record: Path) -> None:
        """Raises ValueError where a part is not what was written."""
        path = record.with_suffix(".safetensors")
        try:
            expected, digest = json.loads(record.read_text(encoding="utf-8")), hashlib.sha256()
            with path.open("rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
            if digest.hexdigest() != expected["sha256"]:
                raise ValueError("its bytes are not those that were written")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete {self.folder} and let the teacher work again"
            ) from error

    def _open(self, path: Path) -> None:
        file: Any = safe_open(path, framework="pt")
        for i, key in enumerate(file.get_tensor("keys").numpy()):
            self._at.setdefault(key.tobytes(), (len(self._parts), i))
        self._offsets.append(file.get_tensor("offsets").numpy())
        self._parts.append(file)

    def __contains__(self, key: bytes) -> bool:
        return key in self._at

    def __len__(self) -> int:
        return len(self._at)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob("part-*"))

    def has(self, batch: Rows) -> bool:
        """Whether all rows of a batch are known."""
        return all(key in self._at for key in row_keys(batch))

    # --- filling

    def fill(self, batches: Iterable[Any], teacher: Teacher, progress: Callable[[int], None] | None = None) -> int:
        """Ask the teacher about every row that is not known yet; how many are known then. progress: called with that number as it
        grows."""
        waiting: list[tuple[bytes, Tensor, Tensor]] = []
        known: set[bytes] = set()
        for batch in batches:
            keys = row_keys(batch)
            new = [i for i, key in enumerate(keys) if key not in self._at and key not in known]
            if new:
                rows = type(batch)(ids=batch.ids[new], labels=batch.labels[new], documents=batch.documents[new])
                for i, (ids, logp) in zip(new, self._asked(rows, teacher), strict=True):
                    if keys[i] not in known:
                        known.add(keys[i])
                        waiting.append((keys[i], ids, logp))
            while len(waiting) >= PART_ROWS:
                self._write(waiting[:PART_ROWS])
                del waiting[:PART_ROWS]
            if progress is not None:
                progress(len(self) + len(waiting))
        if waiting:
            self._write(waiting)
        return len(self)

    @torch.no_grad()
    def _asked(self, batch: Rows, teacher: Teacher) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids [n, K] and log-probabilities [n, K + 1] of the labelled tokens of every row."""
        answers = teacher.lesson(batch, self.about.temperature).answers
        counts = (batch.labels != IGNORE).sum(axis=1)
        total, size = int(counts.sum()), rows_at_once(self.about.words)
        like = torch.zeros((), dtype=torch.float32)
        found = [
            likeliest(answers.rows(at, min(at + size, total), like).logp, self.about.k) for at in range(0, total, size)
        ]
        ids = torch.cat([ids for ids, _ in found]) if found else torch.zeros(0, self.about.k, dtype=torch.int64)
        logp = torch.cat([logp for _, logp in found]) if found else torch.zeros(0, self._width)
        edges = np.concatenate([[0], np.cumsum(counts)]).tolist()
        for begin, end in itertools.pairwise(edges):
            yield ids[begin:end], logp[begin:end]

    @property
    def _width(self) -> int:
        return self.about.k + (self.about.k < self.about.words)

    def _write(self, rows: list[tuple[bytes, Tensor, Tensor]]) -> None:
        path = self.folder / f"part-{len(self._parts):05d}.safetensors"
        offsets = np.concatenate([[0], np.cumsum([len(ids) for _, ids, _ in rows])]).astype(np.int64)
        ids = torch.cat([ids for _, ids, _ in rows])
        tensors = {
            "keys": torch.from_numpy(np.frombuffer(b"".join(key for key, _, _ in rows), np.uint8).reshape(-1, KEY_BYTES).copy()),
            "offsets": torch.from_numpy(offsets),
            "ids": (ids - 32768).to(torch.int16) if self.about.words <= 65536 else ids.to(torch.int32),
            "logp": torch.cat([logp for _, _, logp in rows]).to(_FLOATS[self.about.precision]),
        }  # fmt: skip
        with new_file(path) as partial:
            record = write_tensors(partial, tensors)
        write_json(path.with_suffix(".json"), record)
        self._open(path)

    # --- asking

    def lesson(self, batch: Rows, temperature: float) -> _Kept:
        """What was said of the labelled tokens of a batch. Raises ValueError for rows that are not here."""
        if temperature != self.about.temperature:
            raise ValueError(
                f"{self.folder}: answers are kept at temperature {self.about.temperature:g}, not {temperature:g}"
            )
        spans = []
        for i, key in enumerate(row_keys(batch)):
            if key not in self._at:
                raise ValueError(
                    f"{self.folder}: row {i} of a batch is not among the {len(self):,} that are kept; fill it first"
                )
            part, row = self._at[key]
            begin, end = self._offsets[part][row : row + 2]
            spans.append((part, int(begin), int(end)))
        ids = torch.cat([self._parts[part].get_slice("ids")[a:b] for part, a, b in spans])
        ids = ids.to(torch.int64) + (32768 if ids.dtype == torch.int16 else 0)
        logp = torch.cat([self._parts[part].get_slice("logp")[a:b] for part, a, b in spans])
        return _Kept(ids, logp)


class _Kept:
    """Answers of a batch that were read."""

    inner: Inner | None = None

    def __init__(self, ids: Tensor, logp: Tensor) -> None:
        self.ids, self.logp = ids, logp

    @property
    def answers(self) -> Answers:
        return self

    def rows(self, begin: int, end: int, like: Tensor) -> Said:
        logp = self.logp[begin:end].to(like.device, like.dtype)
        return Said(torch.log_softmax(logp, dim=-1), self.ids[begin:end].to(like.device))


def likeliest(logp_RV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens, int64 [R, k], and log-probabilities [R, k + 1], the last one of all others together; [R, V] where k
    is V."""
    top, ids = logp_RV.topk(k, dim=-1)
    if k == logp_RV.shape[1]:
        return ids, top
    rest = torch.logsumexp(logp_RV.scatter(1, ids, -torch.inf), dim=-1, keepdim=True)
    return ids, torch.cat([top, rest], dim=1)

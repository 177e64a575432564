"""The pictures of a run. Every row of the language model that comes from a picture has an id of its own, behind the vocabulary.

The idea: id = vocab_size + row, with the rows of all pictures counted on. So packing, batches, lanes, resumption and preferences
work on ids as they do for text and know nothing of pictures, and from an id follow its picture, piece and row. Pictures of the same
bytes are one. A picture is looked at, decoded and measured when its row of data is read, so that a bad file is said by that row;
its pixels are read again when it is needed, and kept where all of them together are small.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao.data.sources.picture_files import bytes_of, name_of, read
from gangpao.data.sources.pictures import Reference
from gangpao.formats.vision import Marks, VisionModel
from gangpao.images.decode import decode
from gangpao.images.look import look
from gangpao.images.marks import layout
from gangpao.images.slices import Pieces, Plan, pieces, sizes
from gangpao.units import show_bytes

KEPT_BYTES = 1 << 29  # of patches as floats: where all pictures of a run are less, they stay in memory
_MOST_ROWS = (1 << 31) - (1 << 24)  # ids are 32 bits


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture: where its bytes are, their hash, how it is cut, its first row."""

    source: Path | bytes
    digest: bytes
    plan: Plan
    first: int

    @property
    def rows(self) -> int:
        return sum(self.plan.tokens)


class PictureTable:
    """Grows while data is read; then it is only looked at, from any thread. vocab_size: ids below it are text."""

    def __init__(self, vision: VisionModel, vocab_size: int) -> None:
        self.vision, self.vocab_size = vision, vocab_size
        self.entries: list[Entry] = []
        self.rows = 0
        self._by_digest: dict[bytes, int] = {}
        self._firsts: npt.NDArray[np.int64] | None = None
        self._kept: dict[int, Pieces] = {}
        self.nbytes = 0  # of the patches of all pictures, as floats
        self._lock = threading.Lock()

    def add(self, reference: Reference, folder: Path) -> int:
        """The number of a picture. folder: where relative paths begin. Raises ValueError for what is no picture."""
        picture, source = read(reference, folder)
        digest = hashlib.sha256(picture.data).digest()
        known = self._by_digest.get(digest)
        if known is not None:
            return known
        try:
            pixels = decode(picture)
            plan = sizes(pixels.shape[1], pixels.shape[0], self.vision)
        except ValueError as error:
            raise ValueError(f"{name_of(reference)}: {error}") from error
        entry = Entry(source, digest, plan, self.rows)
        if self.rows + entry.rows > _MOST_ROWS:
            raise ValueError(f"more than {_MOST_ROWS:,} rows of pictures; tune on fewer pictures")
        self.entries.append(entry)
        self.rows += entry.rows
        patches = sum(rows * columns for rows, columns in plan.grids)
        self.nbytes += patches * 4 * 3 * self.vision.encoder.patch_size**2
        self._firsts = None
        self._by_digest[digest] = len(self.entries) - 1
        return len(self.entries) - 1

    def layout(self, number: int, place: int, marks: Marks | None = None) -> list[str | list[int]]:
        """What stands for a picture in a prompt: texts of marks (the model's, if not given), and ids of its rows. place: which of
        its conversation it is."""
        entry = self.entries[number]
        starts = np.cumsum([entry.first, *entry.plan.tokens]) + self.vocab_size
        return [
            part if isinstance(part, str) else list(range(int(starts[part]), int(starts[part + 1])))
            for part in layout(entry.plan, marks or self.vision.marks, place)
        ]

    def numbers(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The picture of each row."""
        if self._firsts is None:
            self._firsts = np.array([entry.first for entry in self.entries], np.int64)
        return np.searchsorted(self._firsts, rows, side="right") - 1

    def pieces(self, number: int) -> Pieces:
        """A picture as patches. Raises ValueError where its file has changed since it was measured."""
        found = self._kept.get(number)
        if found is not None:
            return found
        entry = self.entries[number]
        data = entry.source if isinstance(entry.source, bytes) else bytes_of(entry.source)
        if hashlib.sha256(data).digest() != entry.digest:
            raise ValueError(f"{entry.source!s:.200}: the picture has changed since the run began")
        found = pieces(decode(look(data)), self.vision)
        if self.nbytes <= KEPT_BYTES:
            with self._lock:
                self._kept[number] = found
        return found

    @property
    def fingerprint(self) -> str:
        """Changes when any picture, or how it is cut, does."""
        text = repr((self.vision.slicing, self.vision.pixels, [(e.digest, e.plan) for e in self.entries]))
        return hashlib.sha256(text.encode()).hexdigest()

    def words(self) -> str:
        """For people: how many pictures there are."""
        return f"{len(self.entries):,} pictures, {self.rows:,} rows of the language model, {show_bytes(self.nbytes)} of patches"


def in_batch(
    ids: npt.NDArray[np.int64], table: PictureTable
) -> tuple[npt.NDArray[np.int64], Sequence[int], npt.NDArray[np.int64]]:
    """Of ids [N]: where rows of pictures stand [K]; the pictures, each once; and for each place which of their rows, counted on
    over these pictures, stands there [K]."""
    places = np.flatnonzero(ids >= table.vocab_size)
    rows = ids[places] - table.vocab_size
    numbers, which = np.unique(table.numbers(rows), return_inverse=True)
    entries = [table.entries[number] for number in numbers]
    starts = np.cumsum([0, *(entry.rows for entry in entries)])
    firsts = np.array([entry.first for entry in entries], np.int64)
    return places, [int(n) for n in numbers], rows - firsts[which] + starts[which] if len(places) else rows

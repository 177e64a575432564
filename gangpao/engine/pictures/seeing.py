"""From pictures to ids of a prompt: decoded, cut, encoded once, and found again by their content.

    Seeing.look     picture -> Looked: what stands in its place, texts of marks and rows as ids; nothing is decoded or encoded
    Seeing.see      pictures -> their rows are in the table, and a Hold keeps them there

A picture is known by a hash of its file, so a follow-up question decodes, cuts and encodes nothing (of a video, frames are chosen
before this, in images/clips.py). One picture is encoded at a time, piece by piece, and between two layers of a piece the answers
of others go on (the encoder takes and leaves the lock of the kernels' threads). `check` is called between layers, and whatever it
raises ends the work.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gangpao.engine.pictures.rows import MAX_ROWS, Hold, RowTable
from gangpao.formats.vision import Marks, VisionModel
from gangpao.images import decode, marks, slices
from gangpao.images.canvas import Crop, MarkIds, Positions, canvas
from gangpao.images.look import Picture
from gangpao.images.slices import Piece

Check = Callable[[], None]


class Sight(Protocol):
    """An encoder with its merger: pieces -> rows of the language model."""

    @property
    def vision(self) -> VisionModel:
        """Its row, with the numbers of its file."""

    @property
    def text_size(self) -> int:
        """Width of a row: hidden_size of the language model that it belongs to."""

    @property
    def nbytes(self) -> int:
        """Bytes of its weights in memory."""

    def encode(self, piece: Piece, check: Check = ...) -> npt.NDArray[np.float32]:
        """Rows [tokens, text_size] of a piece. check: called between layers; what it raises ends the work."""


@dataclass(slots=True)
class SightCounters:
    """Totals of pictures: asked for, pieces that were encoded, and the seconds that took; pieces that were there already."""

    pictures: int = 0
    pieces: int = 0
    pieces_cached: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture on its way into a prompt. plans: how it is cut, or each frame of a clip is; rows: first id -> count, in the order
    of the pieces; clip: whether it is one."""

    plans: tuple[slices.Plan, ...]
    rows: dict[int, int]
    clip: bool = False

    def layout(self, around: Marks, number: int) -> list[str | range]:
        """What stands in its place: texts of marks, and ids. number: of the picture in its conversation, from 0."""
        ids = [range(first, first + count) for first, count in self.rows.items()]
        if not self.clip:
            return [
                part if isinstance(part, str) else ids[part] for part in marks.layout(self.plans[0], around, number)
            ]
        starts = list(itertools.accumulate((len(plan.grids) for plan in self.plans), initial=0))
        parts = marks.video(self.plans, around, number)
        return [part if isinstance(part, str) else ids[starts[part[0]] + part[1]] for part in parts]

    @property
    def tokens(self) -> int:
        """Rows in the prompt, without marks."""
        return sum(self.rows.values())

    def grids(self) -> dict[int, tuple[int, int]]:
        """(rows, columns) of the tokens of each piece, by its first id, where a token is a square of patches."""
        out = {}
        grids = [grid for plan in self.plans for grid in plan.grids]
        for (first, count), (rows, columns) in zip(self.rows.items(), grids, strict=True):
            side = math.isqrt(rows * columns // count)
            out[first] = rows // side, columns // side
        return out


# Numbers of the first piece of a picture that is not cut, whose overview is another one, and of a video.
_WHOLE, _CLIP = 1 << 16, 1 << 17


def _most(picture: Picture) -> int | None:
    """Slices at most; None: as many as the model has."""
    return 1 if picture.whole else None


class PictureError(ValueError):
    """What is wrong with one of several pictures; index: with which."""

    def __init__(self, index: int, error: ValueError) -> None:
        super().__init__(str(error))
        self.index = index


class Seeing:
    """What an engine sees with. table: where the rows of its pictures are; limit: bytes of them in memory."""

    def __init__(self, sight: Sight, vocab_size: int, limit: int) -> None:
        self.sight = sight
        self.table = RowTable(vocab_size, sight.text_size, limit)
        self.counters = SightCounters()
        self._one = threading.Lock()  # one picture is decoded and encoded at a time

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder and of all rows that may be kept."""
        return self.sight.nbytes + self.table.limit

    def look(self, picture: Picture) -> Looked:
        """What stands in a picture's place, from its header alone. Raises ValueError for one that cannot be cut."""
        shown = picture.clip or (picture,)
        plans = tuple(slices.sizes(*decode.size(one), self.sight.vision, max_slices=_most(one)) for one in shown)
        counts = [count for plan in plans for count in plan.tokens]
        if max(counts) > MAX_ROWS:
            raise ValueError(f"a piece of the image has {max(counts)} rows, and at most {MAX_ROWS} are allowed")
        digest, begin = self.table.digest(picture.data), _CLIP if picture.clip else _WHOLE if picture.whole else 0
        rows = {self.table.first_id(digest, begin + i): count for i, count in enumerate(counts)}
        return Looked(plans, rows, bool(picture.clip))

    def look_all(self, pictures: Iterable[Picture]) -> list[Looked]:
        """The same of several. Raises PictureError, which says which one cannot be cut."""
        out = []
        for index, picture in enumerate(pictures):
            try:
                out.append(self.look(picture))
            except ValueError as error:
                raise PictureError(index, error) from None
        return out

    def see(self, pictures: Sequence[Picture], check: Check = lambda: None) -> Hold:
        """Have the rows of these pictures in the table for as long as the Hold exists.

        check: called between layers. Raises PictureError (a ValueError) for a picture that cannot be decoded, ValueError for more
        rows than there is memory for, and RowsFull where others use it now.
        """
        looked = self.look_all(pictures)
        hold = self._hold(looked)
        self.counters.pictures += len(pictures)
        for index, (picture, one) in enumerate(zip(pictures, looked, strict=True)):
            check()
            with self._one:
                try:
                    self._encode(picture, one, check)
                except ValueError as error:
                    raise PictureError(index, error) from None
        return hold

    def remembered(self, pictures: Sequence[Picture]) -> Hold | None:
        """What keeps their rows, where all of them are there already. Raises as `see` does."""
        looked = self.look_all(pictures)
        if not all(self.table.has(first) for one in looked for first in one.rows):
            return None
        hold = self._hold(looked)
        if not all(self.table.has(first) for first in hold.rows):  # went in between
            return None
        self.counters.pictures += len(pictures)
        self.counters.pieces_cached += sum(len(one.rows) for one in looked)
        return hold

    def axes(self, ids: Sequence[int], pictures: Sequence[Picture], marks: MarkIds) -> Positions | None:
        """Positions int64 [3, T] (time, row, column) of a prompt with these pictures, for a model that has all pieces of a picture
        on one canvas; None for one whose positions follow each other."""
        if not self.sight.vision.canvas or not pictures:
            return None
        grids = {first: grid for picture in pictures for first, grid in self.look(picture).grids().items()}
        return canvas(ids, [Crop(at, *grids[i]) for at, i in enumerate(ids) if i in grids], marks)

    def _hold(self, looked: Sequence[Looked]) -> Hold:
        return self.table.hold({first: count for one in looked for first, count in one.rows.items()})

    def _encode(self, picture: Picture, looked: Looked, check: Check) -> None:
        """A picture, or the frames of a clip one after the other."""
        left = iter(looked.rows.items())
        for one, plan in zip(picture.clip or (picture,), looked.plans, strict=True):
            self._encode_pieces(one, list(itertools.islice(left, len(plan.tokens))), check)

    def _encode_pieces(self, picture: Picture, rows: Sequence[tuple[int, int]], check: Check) -> None:
        """rows: first id and count of each piece."""
        wanted = [i for i, (first, _) in enumerate(rows) if not self.table.has(first)]
        self.counters.pieces_cached += len(rows) - len(wanted)
        if not wanted:
            return
        pieces = slices.pieces(decode.decode(picture), self.sight.vision, max_slices=_most(picture))
        for i in wanted:
            first, count = rows[i]
            check()
            start = time.perf_counter()
            found = self.sight.encode(pieces.pieces[i], check)
            self.counters.pieces += 1
            self.counters.seconds += time.perf_counter() - start
            if found.shape != (count, self.table.width) or not np.isfinite(found).all():
                raise ValueError(
                    f"the encoder gave {found.shape} rows for a piece of {count}, or values that are not finite: the mmproj file "
                    "is damaged or belongs to another model"
                )
            self.table.put(first, found)

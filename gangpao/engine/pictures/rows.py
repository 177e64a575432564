"""Rows of pictures under ids behind the vocabulary: what the encoder made, for as long as there is memory for it.

    id = vocab_size + piece * 4096 + row        piece: 40 bits of a hash of the picture and the number of its slice

Such an id stands in a prompt where a token's does, so a prefix with a picture is found, shared, given up and computed again by
the same code as text. The hash has a secret of this process: nobody can make a picture that is taken for another one.

A Hold says which pieces somebody needs; they stay for as long as it exists. What nobody holds goes when memory is wanted, the
longest unused first, and is encoded again when it is needed again.
"""

import hashlib
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

MAX_ROWS = 4096  # of one piece: 12 bits of an id
_PIECE_BYTES = 5


class RowsFull(Exception):
    """All memory for rows of pictures is in use by requests that are being answered."""


class Hold:
    """Pieces that somebody needs (first id -> rows). They stay in their table until this object is gone."""

    __slots__ = ("__weakref__", "rows")

    def __init__(self, rows: Mapping[int, int]) -> None:
        self.rows = dict(rows)


class RowTable:
    """Rows [n, width] of pieces by their first id. limit: bytes of all of them, those that are still to come included."""

    def __init__(self, vocab_size: int, width: int, limit: int) -> None:
        self.vocab_size = vocab_size
        self.width = width
        self.limit = limit
        self._secret = secrets.token_bytes(32)
        self._pieces: OrderedDict[int, Floats] = OrderedDict()  # by first id, the longest unused first
        self._holds: weakref.WeakSet[Hold] = weakref.WeakSet()
        self._lock = threading.Lock()

    def digest(self, data: bytes) -> bytes:
        """What a picture is known by: a keyed hash of its file."""
        return hashlib.blake2b(data, key=self._secret, digest_size=32).digest()

    def first_id(self, digest: bytes, piece: int) -> int:
        """The id of a piece's first row; the others follow it."""
        found = hashlib.blake2b(
            digest + piece.to_bytes(4, "little"), key=self._secret, digest_size=_PIECE_BYTES
        ).digest()
        return self.vocab_size + int.from_bytes(found, "little") * MAX_ROWS

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are there."""
        with self._lock:
            return sum(values.nbytes for values in self._pieces.values())

    def have_room(self, rows: int) -> None:
        """Let at least so many rows be held at once."""
        self.limit = max(self.limit, 4 * self.width * rows)

    def hold(self, rows: Mapping[int, int]) -> Hold:
        """Keep these pieces (first id -> count of rows), whether they are there already or come later.

        Raises RowsFull where the pieces that are held leave no room for them, and ValueError where nothing would.
        """
        size = self._bytes(rows)
        if size > self.limit:
            raise ValueError(
                f"{sum(rows.values())} rows of pictures do not fit into the {self.limit // (4 * self.width)} that this model "
                "has room for: send fewer or smaller pictures"
            )
        with self._lock:
            if self._bytes(self._held() | dict(rows)) > self.limit:
                raise RowsFull
            hold = Hold(rows)
            self._holds.add(hold)
            return hold

    def _bytes(self, rows: Mapping[int, int]) -> int:
        return 4 * self.width * sum(rows.values())

    def _held(self) -> dict[int, int]:
        return {first: count for hold in self._holds for first, count in hold.rows.items()}

    def put(self, first: int, values: Floats) -> None:
        """Add rows [n, width] of a piece that is held; what nobody holds makes room for them."""
        assert values.ndim == 2, values.shape
        assert values.shape[1] == self.width, values.shape
        assert len(values) <= MAX_ROWS, values.shape
        values = np.ascontiguousarray(values, np.float32)
        with self._lock:
            self._pieces.pop(first, None)
            free = self.limit - sum(v.nbytes for v in self._pieces.values()) - values.nbytes
            if free < 0:
                held = self._held()
                for other in [key for key in self._pieces if key not in held]:
                    free += self._pieces.pop(other).nbytes
                    if free >= 0:
                        break
            self._pieces[first] = values

    def has(self, first: int) -> bool:
        """Whether that piece is there; it counts as used."""
        with self._lock:
            found = first in self._pieces
            if found:
                self._pieces.move_to_end(first)
            return found

    def missing(self, ids: npt.NDArray[np.int64]) -> int | None:
        """The first of these ids behind the vocabulary that no row is there for; None where all are."""
        firsts, rows = self._split(ids)
        with self._lock:
            for first, row in zip(firsts.tolist(), rows.tolist(), strict=True):
                values = self._pieces.get(first)
                if values is None or row >= len(values):
                    return int(first + row)
        return None

    def take(self, ids: npt.NDArray[np.int64]) -> Floats:
        """Rows [len(ids), width] of ids behind the vocabulary. Raises ValueError for one that is not there."""
        out = np.empty((len(ids), self.width), np.float32)
        firsts, rows = self._split(ids)
        ends = [*(np.flatnonzero(np.diff(firsts)) + 1).tolist(), len(ids)]
        begin = 0
        with self._lock:
            for end in ends:
                values = self._pieces.get(int(firsts[begin]))
                if values is None or int(rows[begin:end].max()) >= len(values):
                    raise ValueError(f"token id {int(ids[begin])}: the row of a picture is not there any more")
                out[begin:end] = values[rows[begin:end]]
                begin = end
        return out

    def _split(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First ids of the pieces, and places in them."""
        rows = (ids - self.vocab_size) % MAX_ROWS
        return ids - rows, rows

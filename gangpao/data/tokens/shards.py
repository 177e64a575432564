"""Token shards: the documents of one source as one long array on the disk, with their borders.

A folder holds `tokens.bin` (uint16 where the vocabulary fits, else uint32), `offsets.bin` (uint64, one more than there are
documents), for supervised material `mask.bin` (uint8, 1 where the model is to learn the token), and `meta.json`. All are
little-endian and mapped, never read whole, so a corpus may be larger than memory. The fingerprint is a hash of the
content: the same documents through the same tokenizer have the same one, wherever and whenever they were written.

What it gives up: adding to a finished shard, and one file may not be spread over several disks.
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from gangpao.atomic import publish, read_json, write_json

FORMAT = "gangpao-shards"
VERSION = 1
BUFFER_TOKENS = 1 << 18
_CHECK = 1 << 20  # offsets looked at together when a folder is opened

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The open documents of one source. `mask` is None where every token is learned.

    num_bytes: UTF-8 bytes of the text; of supervised material, of the answers alone, so that loss divided by bytes means
    the same for both. about: what the writer wanted to remember.
    """

    path: Path
    tokens: Array
    offsets: Array
    mask: Array | None
    num_bytes: int
    vocab_size: int
    fingerprint: str
    about: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "Shards":
        """Map a folder that ShardWriter made. Raises ValueError naming what is missing or does not fit together."""
        folder = Path(path)
        meta = _meta(folder)
        dtype, count, documents = np.dtype(meta["dtype"]), meta["num_tokens"], meta["num_documents"]
        tokens = _map(folder / "tokens.bin", dtype, count)
        offsets = _map(folder / "offsets.bin", np.dtype("<u8"), documents + 1)
        mask = _map(folder / "mask.bin", np.dtype("u1"), count) if meta["supervised"] else None
        good = offsets[0] == 0 and offsets[-1] == count
        for start in range(0, documents, _CHECK):
            part = offsets[start : start + _CHECK + 1]
            good = good and bool((part[1:] > part[:-1]).all())
        if not good:
            raise ValueError(
                f"{folder / 'offsets.bin'}: damaged, the borders do not rise to {count}; build the data again"
            )
        about = meta["about"]
        return cls(folder, tokens, offsets, mask, meta["num_bytes"], meta["vocab_size"], meta["fingerprint"], about)

    @classmethod
    def in_memory(
        cls, name: str, tokens: Array, offsets: Array, mask: Array | None, *, num_bytes: int, vocab_size: int
    ) -> "Shards":
        """Documents that no folder holds, with the fingerprint that a folder of them would have.

        tokens: ids [N]; offsets [documents + 1], rising from 0 to N; mask [N]: not 0 where a token is learned, None: all are.
        """
        dtype = _dtype_of(vocab_size)
        assert len(tokens) == offsets[-1]
        assert mask is None or len(mask) == len(tokens)
        tokens, offsets = np.ascontiguousarray(tokens, dtype), np.ascontiguousarray(offsets, "<u8")
        mask = None if mask is None else np.ascontiguousarray(np.asarray(mask) != 0, np.uint8)
        hashes = [hashlib.sha256(b"" if array is None else array.tobytes()) for array in (tokens, offsets, mask)]
        fingerprint = _fingerprint(dtype, vocab_size, num_bytes, hashes)
        return cls(Path(name), tokens, offsets, mask, num_bytes, vocab_size, fingerprint, {})

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    @property
    def supervised(self) -> bool:
        return self.mask is not None

    def document(self, i: int) -> Array:
        """The ids of document i as a view of the file. Raises IndexError outside 0 .. num_documents - 1."""
        start, stop = self.span(i)
        return self.tokens[start:stop]

    def document_mask(self, i: int) -> Array:
        """1 for each token of document i that is to be learned."""
        start, stop = self.span(i)
        return np.ones(stop - start, np.uint8) if self.mask is None else self.mask[start:stop]

    def span(self, i: int) -> tuple[int, int]:
        """Where document i lies in `tokens`."""
        if not 0 <= i < self.num_documents:
            raise IndexError(f"document {i}: {self.path} has {self.num_documents}")
        return int(self.offsets[i]), int(self.offsets[i + 1])

    def verify(self) -> None:
        """Read everything and compare with the fingerprint; ValueError when a bit has changed."""
        hashes = [hashlib.sha256(), hashlib.sha256(), hashlib.sha256()]
        for array, found in zip((self.tokens, self.offsets, self.mask), hashes, strict=True):
            for start in range(0, 0 if array is None else len(array), 1 << 22):
                assert array is not None
                found.update(array[start : start + (1 << 22)].tobytes())
        if _fingerprint(self.tokens.dtype, self.vocab_size, self.num_bytes, hashes) != self.fingerprint:
            raise ValueError(f"{self.path}: the content does not match its fingerprint; build the data again")


class ShardWriter:
    """Write documents one by one: `with ShardWriter(path, vocab_size) as writer: writer.add(ids, num_bytes)`.

    The folder appears, complete and on the disk, when the block ends; after an exception there is nothing. Memory is a
    fixed buffer. supervised: every document brings a mask.
    """

    def __init__(
        self, path: Path | str, vocab_size: int, *, supervised: bool = False, about: Mapping[str, Any] | None = None
    ) -> None:
        if not 1 <= vocab_size <= 1 << 32:
            raise ValueError(f"vocab_size {vocab_size} is outside 1 .. 2^32")
        self.path = Path(path)
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self._vocab_size, self._supervised, self._about = vocab_size, supervised, dict(about or {})
        self._dtype = _dtype_of(vocab_size)
        self._temporary = self.path.with_name(f".{self.path.name}.partial")
        self._hashes = [hashlib.sha256(), hashlib.sha256(), hashlib.sha256()]
        self._waiting: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
        self._buffered = 0

    def __enter__(self) -> "ShardWriter":
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir(parents=True)
        names = ("tokens.bin", "offsets.bin", "mask.bin")[: 3 if self._supervised else 2]
        self._files = [(self._temporary / name).open("wb") for name in names]
        self._waiting[1].append(np.zeros(1, "<u8"))
        return self

    def add(self, ids: Sequence[int] | Array, num_bytes: int, mask: Sequence[int] | Array | None = None) -> None:
        """One document. Raises ValueError when it is empty, has ids outside the vocabulary, or a mask that does not fit."""
        array = np.asarray(ids)
        if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
            raise ValueError(f"{self.path}: document {self.num_documents} must be a list of ids that is not empty")
        if int(array.min()) < 0 or int(array.max()) >= self._vocab_size:
            raise ValueError(
                f"{self.path}: document {self.num_documents} has an id outside the vocabulary of {self._vocab_size}"
            )
        if (mask is None) == self._supervised or (mask is not None and len(mask) != len(array)):
            raise ValueError(f"{self.path}: supervised documents, and only they, bring a mask with one entry a token")
        self.num_tokens += len(array)
        self.num_documents += 1
        self.num_bytes += num_bytes
        self._waiting[0].append(array.astype(self._dtype))
        self._waiting[1].append(np.array([self.num_tokens], "<u8"))
        if mask is not None:
            self._waiting[2].append((np.asarray(mask) != 0).astype(np.uint8))
        self._buffered += len(array) + 8
        if self._buffered >= BUFFER_TOKENS:
            self._flush()

    def _flush(self) -> None:
        for file, parts, found in zip(self._files, self._waiting, self._hashes, strict=False):
            data = np.concatenate(parts).tobytes() if parts else b""
            file.write(data)
            found.update(data)
            parts.clear()
        self._buffered = 0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            for file in self._files:
                file.close()
            if kind is None:
                write_json(self._temporary / "meta.json", self._meta())
                publish(self._temporary, self.path)
        finally:
            for file in self._files:
                file.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _meta(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self._dtype.str,
            "vocab_size": self._vocab_size,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
            "supervised": self._supervised,
            "fingerprint": _fingerprint(self._dtype, self._vocab_size, self.num_bytes, self._hashes),
            "about": self._about,
        }


def _dtype_of(vocab_size: int) -> "np.dtype[Any]":
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _fingerprint(dtype: Any, vocab_size: int, num_bytes: int, hashes: Sequence[Any]) -> str:
    whole = hashlib.sha256(f"{FORMAT} {VERSION} {np.dtype(dtype).itemsize} {vocab_size} {num_bytes}".encode())
    for part in hashes:
        whole.update(part.digest())
    return whole.hexdigest()


_FIELDS: dict[str, type] = {
    "vocab_size": int, "num_tokens": int, "num_documents": int, "num_bytes": int, "supervised": bool, "fingerprint": str,
    "about": dict, "dtype": str,
}  # fmt: skip


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no token shards here (meta.json is missing); make them with: gangpao data build")
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT or str(meta.get("version")) != str(VERSION):
        raise ValueError(f"{path}: not version {VERSION} of {FORMAT}; build the data again")
    for name, kind in _FIELDS.items():
        value = meta.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 62):
            raise ValueError(f"{path}: {name} is missing or damaged; build the data again")
    if meta["dtype"] not in ("<u2", "<u4"):
        raise ValueError(f"{path}: dtype {meta['dtype']!r:.20} is neither <u2 nor <u4; build the data again")
    return meta


def _map(path: Path, dtype: "np.dtype[Any]", count: int) -> Array:
    assert sys.byteorder == "little" or dtype.itemsize == 1
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if size != count * dtype.itemsize:
        raise ValueError(f"{path}: {size} bytes where {count * dtype.itemsize} belong; build the data again")
    if not count:  # nothing can be mapped
        return np.empty(0, dtype)
    # A plain array over the map: slices of np.memmap itself cost several times as much.
    return np.memmap(path, dtype, mode="r", shape=(count,)).view(np.ndarray)

"""A bounded reader of GGUF files.

A model file comes from a stranger, so every count, length and offset is checked against the bytes that are really there
before anything is allocated or looped over; the first lie ends the reading with a `ModelFileError` that says what and where.
Tensor data is never copied: it is seen through a memory map. The header becomes Python objects, and those are paid for
from a budget of twice the file and some change: no file makes its reader larger than that. Versions 2 and 3,
little-endian. A model that was split into NAME-00001-of-0000N.gguf and so on is one model here: opening any part opens
all, and the first one's metadata count.

What it gives up: big-endian files, and tensor types without a row in blocks.py. Each is refused by name. A file that somebody
shortens while it is open ends the process (SIGBUS), as with every memory map.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gangpao.formats.blocks import BY_ID, BY_NAME, UNSUPPORTED, dequantize
from gangpao.formats.split_names import parts_of

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAX_ENTRIES = 1 << 16  # metadata keys, and tensors; real models have tens and thousands
MAX_KEY = (1 << 16) - 1  # as the specification has it
MAX_TENSOR_NAME = 256
MAX_DEPTH = 2  # arrays of arrays; no known file nests them at all
MAX_OBJECTS = 1 << 21  # strings of a file, for the time they take; a large vocabulary with its merges has 800,000
NESTED_PRICE = 32  # an inner array takes about as long as this many strings
ROOM = 48 << 20  # bytes of memory that a header may become, besides twice the file
MAX_ALIGNMENT = 1 << 20
MAX_DIMS = 4

# Types of values by their number; of numbers the code of struct and of numpy.
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: ("B", "u1"), 1: ("b", "i1"), 2: ("H", "<u2"), 3: ("h", "<i2"), 4: ("I", "<u4"), 5: ("i", "<i4"), 6: ("f", "<f4"),
    7: ("B", "u1"), 10: ("Q", "<u8"), 11: ("q", "<i8"), 12: ("d", "<f8"),
}  # fmt: skip
_NUMBERS = {code: struct.Struct("<" + code) for code in "BbHhIiQqfd"}
_ENTRIES = [struct.Struct(f"<{dims}QIQ") for dims in range(MAX_DIMS + 1)]  # a tensor's shape, type and offset


class ModelFileError(ValueError):
    """A model file that is damaged, hostile or not supported; the message says what, where and what to do."""


class TensorInfo(NamedTuple):
    """One tensor: shape in numpy order (the last axis is contiguous), type name, byte offset in its file and size; of a
    split model, the number of the part it lies in, from 0."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    part: int = 0


class _Cursor:
    """Reads forward through the header; never past its end."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0
        self.objects = MAX_OBJECTS  # how many more may be made
        self.room = 2 * len(data) + ROOM  # and how many bytes of memory

    def fail(self, what: str, at: int | None = None) -> ModelFileError:
        where = self.at if at is None else at
        return ModelFileError(
            f"{self.path}: {what} (at byte {where}); the file is damaged or not a GGUF model, pull it again"
        )

    def need(self, count: int, what: str) -> int:
        """Where `count` bytes begin; moves past them."""
        if count > len(self.data) - self.at:
            raise self.fail(f"{what} needs {count} bytes, {len(self.data) - self.at} are left")
        at = self.at
        self.at += count
        return at

    def number(self, code: str, what: str) -> Any:
        form = _NUMBERS[code]
        return form.unpack_from(self.data, self.need(form.size, what))[0]

    def count(self, what: str, limit: int) -> int:
        n: int = self.number("Q", what)
        if n > limit:
            raise self.fail(f"{what} is {n}, at most {limit} is possible", self.at - 8)
        return n

    def objects_count(self, what: str, smallest: int, price: int = 1) -> int:
        """A count of things of at least `smallest` bytes that become Python objects; taken off the budget."""
        n = self.count(what, min(self.objects // price, max(0, len(self.data) - self.at - 8) // smallest))
        self.objects -= n * price
        return n

    def spend(self, nbytes: int, what: str) -> None:
        """Pays for memory that `what` is about to take."""
        if nbytes > self.room:
            raise self.fail(f"{what} needs more memory than a header of this file may take")
        self.room -= nbytes

    def text(self, what: str, limit: int) -> str:
        n = self.count(f"length of {what}", limit)
        at = self.need(n, what)
        self.spend(5 * n + 96, what)  # UTF-8 and, for a moment, four bytes a character
        try:
            out = str(self.data[at : at + n], "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8", at) from None
        self.room += 5 * n + 80 - out.__sizeof__()
        return out

    def name(self, what: str, limit: int) -> str:
        """A key or a tensor's name: these are shown to people and to terminals."""
        at = self.at
        out = self.text(what, limit)
        if not out or not out.isprintable():
            raise self.fail(f"{what} is {'not printable' if out else 'empty'}", at + 8)
        return out


def _value(c: _Cursor, kind: int, key: str) -> Any:
    if kind in SCALARS:
        value = c.number(SCALARS[kind][0], f"value of {key}")
        if kind == BOOL:
            if value > 1:
                raise c.fail(f"{key} is a truth value of {value}", c.at - 1)
            return bool(value)
        return value
    if kind == STRING:
        return c.text(f"value of {key}", len(c.data))
    if kind == ARRAY:
        return _array(c, key, 0)
    raise c.fail(f"{key} has the unknown value type {kind}", c.at - 4)


def _array(c: _Cursor, key: str, depth: int) -> Any:
    kind = c.number("I", f"element type of {key}")
    if kind in SCALARS:
        dtype = np.dtype(SCALARS[kind][1])
        n = c.count(f"length of {key}", max(0, len(c.data) - c.at - 8) // dtype.itemsize)
        at = c.need(n * dtype.itemsize, key)
        c.spend(n * dtype.itemsize + 160, key)
        values = np.frombuffer(c.data, dtype=dtype, count=n, offset=at).copy()
        if kind == BOOL and n and values.max() > 1:
            raise c.fail(f"{key} holds truth values other than 0 and 1", at)
        return values.view(bool) if kind == BOOL else values
    if kind == STRING:
        return _strings(c, key, c.objects_count(f"length of {key}", 8))
    if kind == ARRAY and depth < MAX_DEPTH:
        return [_array(c, key, depth + 1) for _ in range(c.objects_count(f"length of {key}", 12, NESTED_PRICE))]
    raise c.fail(f"{key} is an array of the unknown or too deeply nested type {kind}", c.at - 4)


def _strings(c: _Cursor, key: str, n: int) -> list[str]:
    """A vocabulary has 150,000 of these: the loop is kept tight. Bytes that are not UTF-8 become U+FFFD."""
    data, at, end, room = c.data, c.at, len(c.data), c.room
    unpack, sizeof = struct.Struct("<Q").unpack_from, str.__sizeof__  # a tenth of sys.getsizeof
    out: list[str] = []
    append, last = out.append, end - 8
    for _ in range(n):
        if at > last:
            raise c.fail(f"{key} ends early", at)
        size = unpack(data, at)[0]
        at += 8
        if size > end - at:
            raise c.fail(f"a string of {key} needs {size} bytes, {end - at} are left", at)
        if 5 * size > room:  # also where the strings before this one have left less than nothing
            raise c.fail(f"{key} needs more memory than a header of this file may take", at)
        next_at = at + size
        text = str(data[at:next_at], "utf-8", "replace")
        at = next_at
        room -= sizeof(text) + 16
        append(text)
    c.at, c.room = at, max(0, room)
    return out


def _metadata(c: _Cursor, n: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for _ in range(n):
        at = c.at
        key = c.name("a metadata key", MAX_KEY)
        shown = key if len(key) <= 80 else key[:77] + "..."
        if key in out:
            raise c.fail(f"the metadata key {shown!r} appears twice", at)
        c.spend(160, shown)
        out[key] = _value(c, c.number("I", f"type of {shown}"), shown)
    return out


def _tensor(c: _Cursor) -> TensorInfo:
    """One entry of the tensor table; the offset is still relative to the data section."""
    name = c.name("a tensor name", MAX_TENSOR_NAME)
    c.spend(800, name)
    at = c.at
    dims = c.number("I", "a number of dimensions")
    if not 1 <= dims <= MAX_DIMS:
        raise c.fail(f"tensor {name} has {dims} dimensions, 1 to {MAX_DIMS} are possible", at)
    entry = _ENTRIES[dims]
    *sizes, number, offset = entry.unpack_from(c.data, c.need(entry.size, "a tensor's entry"))
    shape, elements = tuple(sizes[::-1]), math.prod(sizes)
    if max(sizes) > 1 << 40 or not 0 < elements <= 1 << 44:
        raise c.fail(f"tensor {name} has the impossible shape {shape}", at)
    kind = BY_ID.get(number)
    if kind is None:
        raise ModelFileError(
            f"{c.path}: tensor {name} is of type {UNSUPPORTED.get(number, number)}, which is not supported (at byte {c.at - 12}); "
            f"take a file in one of {', '.join(BY_NAME)}, for example Q4_K_M or Q8_0"
        )
    if shape[-1] % kind.block_size:
        raise c.fail(f"tensor {name} has rows of {shape[-1]}, not whole {kind.name} blocks of {kind.block_size}", at)
    return TensorInfo(name, shape, kind.name, offset, elements // kind.block_size * kind.type_size)


def _tensors(c: _Cursor, n: int, alignment: Any) -> dict[str, TensorInfo]:
    found = [_tensor(c) for _ in range(n)]
    if not isinstance(alignment, int) or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        shown = repr(alignment)[:40] if isinstance(alignment, int | float | str) else type(alignment).__name__
        raise c.fail(f"general.alignment is {shown}, it must be a power of two up to {MAX_ALIGNMENT}")
    start = -(-c.at // alignment) * alignment
    out: dict[str, TensorInfo] = {}
    end = 0
    for t in sorted(found, key=lambda t: t.offset):
        if t.name in out:
            raise c.fail(f"the tensor {t.name} appears twice")
        if t.offset % alignment:
            raise c.fail(f"tensor {t.name} begins at {t.offset}, not a multiple of {alignment}")
        if t.offset < end:
            raise c.fail(f"tensor {t.name} overlaps the one before it")
        end = t.offset + t.nbytes
        if start + end > len(c.data):
            raise c.fail(f"tensor {t.name} ends at byte {start + end}, the file at {len(c.data)}: it is cut short")
        out[t.name] = TensorInfo(t.name, t.shape, t.type, start + t.offset, t.nbytes)
    return out


@dataclass(slots=True)
class _Part:
    """One file, read: the map closes with `close`."""

    path: Path
    version: int
    metadata: dict[str, Any]
    metadata_end: int
    tensors: dict[str, TensorInfo]
    data: mmap.mmap
    stamp: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> _Part:
        with path.open("rb") as f:
            stamp = _stamp(os.fstat(f.fileno()))
            if os.fstat(f.fileno()).st_size < 24:
                raise ModelFileError(f"{path}: too short for a GGUF header of 24 bytes; pull the model again")
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        view = memoryview(data)
        try:
            return cls(path, *_parse(_Cursor(path, view)), data, stamp)
        except ModelFileError:
            view.release()
            data.close()
            raise

    @property
    def count(self) -> int:
        """How many parts the model has by this file's word."""
        count = self.metadata.get("split.count", 1)
        return count if isinstance(count, int) and count > 1 else 1

    def sibling(self, number: int) -> Path:
        """Where part `number` (from 0) lies. Raises ModelFileError where the name or the folder does not say."""
        names = parts_of(self.path.name)
        if len(names) != self.count:
            raise ModelFileError(
                f"{self.path}: this is one of {self.count} parts of a split model, and its name does not say which: the parts "
                f"lie in one folder and are called NAME-00001-of-{self.count:05d}.gguf, NAME-00002-of-{self.count:05d}.gguf ..."
            )
        path = self.path.with_name(names[number])
        if not path.is_file():
            raise ModelFileError(
                f"{self.path}: this is one of {self.count} parts of a split model and {path.name} is not beside it; get that, too"
            )
        return path


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What differs when a file is another one."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _open_parts(path: Path) -> list[_Part]:
    """The file and, of a split model, all its parts in their order. Raises ModelFileError."""
    parts: list[_Part] = []
    try:
        parts.append(_Part.open(path))
        count = parts[0].count
        if count > 1 and parts[0].metadata.get("split.no") != 0:
            first = parts[0].sibling(0)
            parts.pop().data.close()
            parts.append(_Part.open(first))
        for number in range(1, count):
            parts.append(_Part.open(parts[0].sibling(number)))
        for number, part in enumerate(parts if count > 1 else ()):
            if part.count != count or part.metadata.get("split.no") != number:
                raise ModelFileError(f"{part.path}: says it is another part than its name does; pull the model again")
    except (ModelFileError, OSError):
        for part in parts:
            part.data.close()
        raise
    return parts


def _joined(parts: Sequence[_Part]) -> dict[str, TensorInfo]:
    """The tensors of all parts. Raises ModelFileError where one comes twice, or some are missing."""
    if len(parts) == 1:
        return parts[0].tensors
    out: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts):
        for name, t in part.tensors.items():
            if name in out:
                raise ModelFileError(f"{part.path}: tensor {name} is in an earlier part, too; pull the model again")
            out[name] = TensorInfo(name, t.shape, t.type, t.offset, t.nbytes, number)
    wanted = parts[0].metadata.get("split.tensors.count", len(out))
    if wanted != len(out):
        raise ModelFileError(
            f"{parts[0].path}: the parts hold {len(out)} tensors together, {wanted} belong to the model"
        )
    return out


class GGUF:
    """An open GGUF file: `metadata` (numbers, strings, lists of strings, numpy arrays), which ends at byte `metadata_end`,
    and `tensors` by name. paths: the file, or the parts of a split model."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        first = parts[0]
        tensors = _joined(parts)
        self.path, self.version, self.metadata_end = first.path, first.version, first.metadata_end
        self.paths = tuple(part.path for part in parts)
        self.metadata: Mapping[str, Any] = MappingProxyType(first.metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self.nbytes = sum(len(part.data) for part in parts)
        self._maps = [part.data for part in parts]
        self._stamps = [part.stamp for part in parts]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GGUF:
        """Maps the file (of a split model: all parts) and reads its header. Raises ModelFileError, or OSError when it
        cannot be opened."""
        parts = _open_parts(Path(path))
        try:
            return cls(parts)
        except ModelFileError:
            for part in parts:
                part.data.close()
            raise

    def __enter__(self) -> GGUF:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def unchanged(self) -> bool:
        """Whether the files under these names are still those that were opened. Raises OSError where one is gone."""
        return all(_stamp(path.stat()) == stamp for path, stamp in zip(self.paths, self._stamps, strict=True))

    def close(self) -> None:
        """Unmaps the file. Arrays that raw() gave out keep the map alive until they are gone."""
        for data in self._maps:
            with suppress(BufferError):  # somebody still looks at tensor data; the map goes with the last view
                data.close()

    def _get(self, key: str, kinds: tuple[type, ...], name: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is _MISSING:
            raise ModelFileError(
                f"{self.path}: the metadata key {key} is missing; the file is incomplete, convert it again"
            )
        if key in self.metadata and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ModelFileError(
                f"{self.path}: {key} is a {type(value).__name__}, expected {name}; convert the file again"
            )
        return value

    def get_int(self, key: str, default: Any = ...) -> int:
        """An integer of the metadata; without a default it must be there."""
        return int(self._get(key, (int,), "an integer", _MISSING if default is ... else default))

    def get_float(self, key: str, default: Any = ...) -> float:
        """A number of the metadata as float."""
        return float(self._get(key, (float, int), "a number", _MISSING if default is ... else default))

    def get_str(self, key: str, default: Any = ...) -> str:
        """A string of the metadata."""
        return str(self._get(key, (str,), "a string", _MISSING if default is ... else default))

    def get_bool(self, key: str, default: Any = ...) -> bool:
        """A truth value of the metadata."""
        return bool(self._get(key, (bool,), "a truth value", _MISSING if default is ... else default))

    def info(self, name: str) -> TensorInfo:
        """The entry of one tensor."""
        if name not in self.tensors:
            raise ModelFileError(f"{self.path}: tensor {name} is missing; the file is incomplete, pull it again")
        return self.tensors[name]

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor, a read-only view [rows, row_bytes] of the map; rows = all axes but the last."""
        t = self.info(name)
        flat = np.frombuffer(self._maps[t.part], dtype=np.uint8, count=t.nbytes, offset=t.offset)
        return flat.reshape(-1, BY_NAME[t.type].row_bytes(t.shape[-1]))

    def array(self, name: str) -> Floats:
        """A tensor as float32 in its shape."""
        t = self.info(name)
        return dequantize(self.raw(name), t.type).reshape(t.shape)

    def rows(self, name: str, begin: int, end: int) -> Floats:
        """Some rows of a tensor as float32 [end - begin, columns]; rows = all axes but the last."""
        return dequantize(self.raw(name)[begin:end], self.info(name).type)

    def release(self, name: str) -> None:
        """Tells the system that these bytes are not needed in memory for now; they can still be read again."""
        t = self.info(name)
        page = mmap.PAGESIZE
        begin, end = -(-t.offset // page) * page, (t.offset + t.nbytes) // page * page
        if end > begin and hasattr(mmap, "MADV_DONTNEED"):
            self._maps[t.part].madvise(mmap.MADV_DONTNEED, begin, end - begin)


_MISSING = object()


def _parse(c: _Cursor) -> tuple[int, dict[str, Any], int, dict[str, TensorInfo]]:
    magic = bytes(c.data[c.need(4, "the magic number") : 4])
    if magic != b"GGUF":
        raise c.fail(f"it begins with {magic!r}, not with b'GGUF'", 0)
    version = c.number("I", "the version")
    if version not in (2, 3):
        why = "big-endian" if version in (2 << 24, 3 << 24) else f"GGUF version {version}"
        raise ModelFileError(f"{c.path}: {why} is not supported (at byte 4); convert it to version 3, little-endian")
    num_tensors = c.count("the number of tensors", min(MAX_ENTRIES, len(c.data) // 24))
    num_keys = c.count("the number of metadata keys", min(MAX_ENTRIES, len(c.data) // 13))
    metadata, end = _metadata(c, num_keys), c.at
    return version, metadata, end, _tensors(c, num_tensors, metadata.get("general.alignment", 32))

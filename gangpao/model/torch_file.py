"""Read the tensors of a torch .bin or .pt file without unpickling it: nothing in the file is ever called.

Such a file is a zip archive: one pickle that describes a dictionary of tensors, and one member with the bytes of each
storage. A pickle is a program for a small stack machine; the opcodes that build dictionaries, tuples, numbers and texts are
harmless, those that import and call are not. Here a machine of our own runs the harmless ones, and the few names that
torch.save writes (a table below) become plain records. Every other name and every other opcode ends the reading.

What it gives up: files older than torch 1.6 (not zip archives), tensors that are sparse, quantized or of a subclass, and
optimizer states.
"""

from __future__ import annotations

import io
import math
import pickletools
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_PROGRAM = 64 << 20  # bytes of pickle; MiniCPM-2B has 60 kB
MAX_OPCODES = 1 << 22

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that a pickle would import; never imported."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class _TensorRecord:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_KNOWN = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    *(f"torch.{name}" for name in _STORAGES),
}
_MARK = object()


class TorchFileError(ValueError):
    """A .bin file that is damaged, hostile or of a kind we do not read; the message says what, where and what to do."""


def load(path: Path) -> dict[str, Tensor]:
    """Tensors by name. Raises TorchFileError; nothing is executed in any case."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(path, archive).tensors()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise TorchFileError(
            f"{path}: not a torch file of version 1.6 or later ({error}); ask for the safetensors version of this model"
        ) from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        programs = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(programs) != 1:
            raise self.fail("it holds no data.pkl, so it was not written by torch.save")
        self.root = programs[0].removesuffix("data.pkl")
        self.storages: dict[str, Tensor] = {}

    def fail(self, what: str) -> TorchFileError:
        return TorchFileError(f"{self.path}: {what}; take the safetensors version of this model instead")

    def tensors(self) -> dict[str, Tensor]:
        info = self.archive.getinfo(f"{self.root}data.pkl")
        if info.file_size > MAX_PROGRAM:
            raise self.fail(f"its description has {info.file_size:,} bytes, more than any model needs")
        found = _Machine(self.archive.read(info), self.fail).run()
        if not isinstance(found, dict):
            raise self.fail("its content is not a dictionary of tensors")
        nested = found.get("state_dict")
        found = nested if isinstance(nested, dict) else found
        out = {}
        for name, record in found.items():
            if not isinstance(name, str) or not isinstance(record, _TensorRecord):
                raise self.fail(f"the entry {name!r:.60} is not a tensor")
            out[name] = self.tensor(name, record)
        return out

    def tensor(self, name: str, record: _TensorRecord) -> Tensor:
        s = record.storage
        if s.key not in self.storages:
            member = f"{self.root}data/{s.key}"
            size = s.count * s.dtype.itemsize
            if member not in self.archive.NameToInfo or self.archive.getinfo(member).file_size != size:
                raise self.fail(f"the bytes of {name!r:.60} are missing or not {size:,}")
            raw = bytearray(self.archive.read(member))
            self.storages[s.key] = torch.frombuffer(raw, dtype=s.dtype) if raw else torch.empty(0, dtype=s.dtype)
        last = record.offset + sum((n - 1) * step for n, step in zip(record.shape, record.stride, strict=True))
        if math.prod(record.shape) and last >= s.count:
            raise self.fail(f"{name!r:.60} reaches past its {s.count:,} stored values")
        return self.storages[s.key].as_strided(record.shape, record.stride, record.offset)


class _Machine:
    """The stack machine: builds plain values, knows the names of `_KNOWN`, and calls nothing."""

    def __init__(self, program: bytes, fail: Callable[[str], TorchFileError]) -> None:
        self.program, self.fail = program, fail
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in texts of a damaged program; it is refused anyway
            return self._run()

    def _run(self) -> Any:
        try:
            for count, (opcode, argument, at) in enumerate(pickletools.genops(io.BytesIO(self.program))):
                if count > MAX_OPCODES:
                    raise self.fail(f"its description has more than {MAX_OPCODES:,} steps")
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument, at)
        except TorchFileError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
            raise self.fail(f"its description is damaged ({error})") from error
        raise self.fail("its description has no end")

    def step(self, name: str, argument: Any, at: int | None) -> None:
        if name in _PUSHED:
            self.stack.append(argument if _PUSHED[name] is _ARGUMENT else _PUSHED[name])
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif (action := getattr(self, f"op_{name.lower()}", None)) is not None:
            action(argument)
        elif name not in ("PROTO", "FRAME"):
            raise self.fail(
                f"step {at} is {name}, which no file of tensors needs; it may be an attack, so nothing was run"
            )

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def op_mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.since_mark()))

    def _tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(values)

    def op_tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def op_tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def op_tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    op_long_binput = op_put = op_binput

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_long_binget = op_get = op_binget

    def op_global(self, argument: str) -> None:
        self.name(argument.replace(" ", ".", 1))

    def op_stack_global(self, _: Any) -> None:
        leaf, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module}.{leaf}")

    def name(self, text: str) -> None:
        if text not in _KNOWN:
            raise self.fail(
                f"it asks for {text!r:.80}, which no file of tensors needs; it may be an attack, so nothing was run"
            )
        self.stack.append(_Name(text))

    def op_binpersid(self, _: Any) -> None:
        kind, storage, key, _device, count = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Name) or not isinstance(key, str) or not key.isdigit():
            raise ValueError("a storage that torch.save does not write")
        self.stack.append(_Storage(key, _STORAGES[storage.text.removeprefix("torch.")], _whole(count)))

    def op_reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if name == _Name("collections.OrderedDict") and arguments == ():
            self.stack.append({})
        elif name == _Name("torch._utils._rebuild_tensor_v2"):
            storage, offset, shape, stride = arguments[:4]
            if not isinstance(storage, _Storage) or len(shape) != len(stride):
                raise ValueError("a tensor without a storage")
            sizes, steps = tuple(map(_whole, shape)), tuple(map(_whole, stride))
            self.stack.append(_TensorRecord(storage, _whole(offset), sizes, steps))
        elif name == _Name("torch._utils._rebuild_parameter") and isinstance(arguments[0], _TensorRecord):
            self.stack.append(arguments[0])
        else:
            raise self.fail("it calls something that no file of tensors needs; it may be an attack, so nothing was run")

    def op_build(self, _: Any) -> None:
        self.stack.pop()  # _metadata of a state dict: versions of its modules
        if not isinstance(self.stack[-1], dict):
            raise ValueError("state for something that has none")

    def op_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][key] = value

    def op_setitems(self, _: Any) -> None:
        values = self.since_mark()
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def op_append(self, _: Any) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def op_appends(self, _: Any) -> None:
        values = self.since_mark()
        self.stack[-1].extend(values)


_ARGUMENT = object()
_PUSHED = dict.fromkeys(
    ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "INT"),
    _ARGUMENT,
) | {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MADE: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError(f"{value!r:.40} is not a size")
    return value

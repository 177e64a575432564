"""The header of a GGUF file as bytes, version 3, little-endian: the one place that knows how it is written.

    metadata(fields)           keys with their values
    header(tensors, ...)       everything before the data: those keys, and the table of the tensors
    padding(nbytes)            zero bytes behind a tensor, so that the next one begins aligned

Tensors lie one behind the other in the order of the table. What it gives up: nested arrays, which no reader of ours needs.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from gangpao.formats.blocks import BY_NAME
from gangpao.formats.gguf import ARRAY, BOOL, SCALARS, STRING

ALIGNMENT = 32  # what a file without general.alignment has
_VERSION = 3
_FLOAT32, _INT32, _UINT32 = 6, 5, 4
_NUMBERS = {np.dtype(form): number for number, (_, form) in SCALARS.items() if number != BOOL} | {np.dtype(bool): BOOL}


class Tensor(Protocol):
    """What the table says of a tensor: numpy shape, name of the type, bytes of the data without padding."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


def padding(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """Bytes from `nbytes` to the next multiple of `alignment`."""
    return -nbytes % alignment


def metadata(fields: Mapping[str, object]) -> bytes:
    """Keys and values. A Python int becomes a u32, a float an f32, a list an array of i32, f32 or strings; a numpy scalar or
    one-dimensional array keeps its type, as the reader gives arrays. Raises ValueError for a value that has no place."""
    return b"".join(_string(key) + _value(key, value) for key, value in fields.items())


def header(tensors: Iterable[Tensor], metadata: bytes, keys: int, alignment: int = ALIGNMENT) -> bytes:
    """Everything before the data, padded. metadata: `keys` keys, as `metadata` wrote them or another file has them."""
    rows = list(tensors)
    out = [b"GGUF", struct.pack("<IQQ", _VERSION, len(rows), keys), metadata]
    offset = 0
    for tensor in rows:
        shape = tensor.shape[::-1]
        out.append(_string(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        out.append(struct.pack("<IQ", BY_NAME[tensor.type].id, offset))
        offset += tensor.nbytes + padding(tensor.nbytes, alignment)
    whole = b"".join(out)
    return whole + bytes(padding(len(whole), alignment))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: object) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
        value = np.array(value, dtype=np.float32 if value and isinstance(value[0], float) else np.int32)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return struct.pack("<IIQ", ARRAY, _number(key, value.dtype), len(value)) + value.tobytes()
    if isinstance(value, bool | int | float) and not isinstance(value, np.generic):
        kind = np.bool_ if isinstance(value, bool) else np.float32 if isinstance(value, float) else np.uint32
        try:
            value = kind(value)
        except OverflowError:
            raise ValueError(f"{key}: {value} has no place in 32 bits; give it as a numpy number of 64") from None
    if not isinstance(value, np.generic):
        raise ValueError(f"{key}: {type(value).__name__} has no place in the header of a GGUF file")
    return struct.pack("<I", _number(key, value.dtype)) + value.tobytes()


def _number(key: str, dtype: np.dtype[np.generic]) -> int:
    if dtype not in _NUMBERS:
        raise ValueError(f"{key}: numbers of type {dtype} have no place in the header of a GGUF file")
    return _NUMBERS[dtype]

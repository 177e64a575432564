"""The keys of a GGUF header as bytes, so that another file can have them to the letter: numbers keep their width, texts theirs."""

from __future__ import annotations

import struct

from gangpao.formats.gguf import ARRAY, GGUF, SCALARS, STRING

_START = 24  # where the keys of a file begin
_WIDTHS = {kind: struct.calcsize(code) for kind, (code, _) in SCALARS.items()}


def raw_fields(gguf: GGUF) -> dict[str, bytes]:
    """The bytes of every key with its value, in the order of the (first) file. Its header was checked when it was opened."""
    with gguf.path.open("rb") as file:
        file.seek(_START)
        raw = file.read(gguf.metadata_end - _START)
    out, at = {}, 0
    for _ in gguf.metadata:
        begin, at = at, _text_end(raw, at)
        key = raw[begin + 8 : at].decode()
        at = _value_end(raw, at + 4, _number(raw, at))
        out[key] = raw[begin:at]
    return out


def _number(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")


def _text_end(raw: bytes, at: int) -> int:
    return at + 8 + int.from_bytes(raw[at : at + 8], "little")


def _value_end(raw: bytes, at: int, kind: int) -> int:
    if kind in _WIDTHS:
        return at + _WIDTHS[kind]
    if kind == STRING:
        return _text_end(raw, at)
    assert kind == ARRAY
    inner, count = _number(raw, at), int.from_bytes(raw[at + 4 : at + 12], "little")
    at += 12
    if inner in _WIDTHS:
        return at + count * _WIDTHS[inner]
    for _ in range(count):
        at = _value_end(raw, at, inner)
    return at

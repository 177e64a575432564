"""A row of formats/vision.py as text and back: what an mmproj file says of a model beyond the keys that everybody writes.

The text is JSON, one object a record. It comes from a stranger, so every field is checked against its type, and
what is not a field is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gangpao.formats.vision import VisionModel

MAX_CHARACTERS = 20_000
Record = TypeVar("Record")


def to_text(row: VisionModel) -> str:
    """The row as JSON."""
    return json.dumps(asdict(row), ensure_ascii=False)


def from_text(text: str) -> VisionModel:
    """The row that `to_text` wrote. Raises ValueError saying which field is wrong."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"the description of the vision model has {len(text)} characters, at most {MAX_CHARACTERS} are read"
        )
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("the description of the vision model is not JSON") from None
    return _record(VisionModel, data, "vision model")


def _record(kind: type[Record], data: Any, where: str) -> Record:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(data, dict) or not set(data) <= known:
        raise ValueError(f"{where} is not an object with the fields {', '.join(sorted(known))}")
    types = get_type_hints(kind)
    values = {name: _value(types[name], value, f"{where}: {name}") for name, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def _value(kind: Any, data: Any, where: str) -> Any:
    """A value of this type. Raises ValueError."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if data is None and NoneType in inner:
            return None
        (only,) = (part for part in inner if part is not NoneType)
        return _value(only, data, where)
    if origin is Literal:
        fits = isinstance(data, str) and data in inner
    elif origin is tuple:
        return _tuple(inner, data, where)
    elif isinstance(kind, type) and is_dataclass(kind):
        return _record(kind, data, where)
    elif kind is float:
        fits = isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data)
    else:
        fits = type(data) is kind
    if not fits:
        raise ValueError(f"{where} is {data!r:.40}, expected {kind if origin is Literal else kind.__name__}")
    return float(data) if kind is float else data


def _tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ValueError(f"{where} is not a list")
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(data)
    if len(kinds) != len(data):
        raise ValueError(f"{where} has {len(data)} entries, expected {len(kinds)}")
    return tuple(_value(kind, value, where) for kind, value in zip(kinds, data, strict=True))

"""Arguments that stand between tags: which values a parameter may have, and text -> value."""

import json
from collections.abc import Mapping
from typing import Any

_MOST_STEPS = 64  # references and alternatives that are followed
_KINDS = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_PYTHON = {"True": True, "False": False, "None": None}  # as templates write values that they do not write as JSON


def kinds_of(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """JSON types that a parameter's schema allows; all of them where it does not say. root: what "#/..." refers to."""
    found: set[str] = set()
    left = [schema]
    for _ in range(_MOST_STEPS):
        if not left:
            return frozenset(found) or _KINDS
        one = left.pop()
        if not isinstance(one, Mapping):
            return _KINDS
        kind, reference = one.get("type"), one.get("$ref")
        parts = next((one[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(one.get(key), list)), None)
        if isinstance(kind, str | list):
            found.update([kind] if isinstance(kind, str) else (k for k in kind if isinstance(k, str)))
        elif isinstance(reference, str):
            left.append(_referred(reference, root))
        elif parts:
            left += parts
        elif isinstance(one.get("enum"), list) or "const" in one:
            found.update(kind_of(value) for value in (one["enum"] if "enum" in one else [one["const"]]))
        else:
            return _KINDS
    return _KINDS


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    value: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        value = value.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(value, Mapping) else None
    return value


def kind_of(value: object) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return names.get(type(value), "string")


def is_text(kinds: frozenset[str]) -> bool:
    """Whether a parameter of these types is always a text."""
    return kinds == {"string"}


def value_of(text: str, kinds: frozenset[str]) -> Any:
    """The value that a parameter's text stands for: of one of these types where it can be, else the text itself."""
    if is_text(kinds):
        return text
    plain = text.strip()
    try:
        value = _PYTHON[plain] if plain in _PYTHON else json.loads(plain)
    except (ValueError, RecursionError):
        return text
    kind = kind_of(value)
    fits = kind in kinds or (kind == "integer" and "number" in kinds)
    return value if fits and kind != "string" else text

"""JSON schemas from strangers: bounded before anything is built from them, and in the form the grammar wants.

A grammar's cost is not its text's: {"multipleOf": 1000003} takes twelve seconds and (a{1000}){1000} a million states. So a
schema is walked once, by a loop, and refused as soon as it is too deep, too large, or holds a number or a pattern that is;
what passes compiles in milliseconds.

What it gives up: references to other documents, and schemas beyond the bounds below, which are several times those of
OpenAI's own structured outputs.
"""

import re
from decimal import Decimal
from typing import Any

MAX_DEPTH = 64  # levels of JSON; a level of objects takes two
MAX_VALUES = 10_000
MAX_CHARS = 120_000
MAX_PROPERTIES = 500  # of one object
MAX_PATTERN = 1_000
MAX_STATES = 10_000  # of all patterns together, their counted repeats written out
MAX_MULTIPLE = 10_000  # of multipleOf, without its decimal point

_DATA = ("const", "enum", "default", "examples")  # what lies under these is a value, not a schema
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # names -> schemas
# Any other format is an annotation, as JSON Schema has it.
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
# The text's form: one line, spaces as people write JSON. Free white space would let a small model say nothing for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def checked(schema: object, where: str, *, exact: bool) -> dict[str, Any]:
    """A schema within the bounds, ready for llguidance. exact: refuse keywords that cannot be held, instead of ignoring them.

    Raises ValueError, beginning with `where`.
    """
    if not isinstance(schema, dict):
        raise ValueError(f"{where} must be a JSON schema (an object), not {type(schema).__name__}")
    _bound(schema, where)
    ready: dict[str, Any] = _without_notes(schema)
    ready["x-guidance"] = {**_SPACING, "lenient": not exact, "coerce_one_of": not exact}
    return ready


def with_free_spacing(ready: dict[str, Any]) -> dict[str, Any]:
    """A checked schema for JSON that a model writes in its own way: with up to 40 spaces and line ends between its parts."""
    free = {
        "whitespace_pattern": r"[ \n]{0,40}",
        "item_separator": ",",
        "key_separator": ":",
        "whitespace_flexible": True,
    }
    return {**ready, "x-guidance": {**ready["x-guidance"], **free}}


def _bound(schema: dict[str, Any], where: str) -> None:
    def limit(what: str, found: int, most: int) -> None:
        if found > most:
            raise ValueError(f"{where}: the schema has more than {most} {what}; make it smaller")

    stack: list[tuple[Any, int]] = [(schema, 1)]
    values = chars = states = 0
    while stack:
        value, depth = stack.pop()
        values += 1
        limit("levels", depth, MAX_DEPTH)
        if isinstance(value, dict | list):
            limit("values", values + len(stack) + len(value), MAX_VALUES)
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, list):
            stack += [(v, depth + 1) for v in value]
        elif isinstance(value, dict):
            chars += sum(map(len, value))
            stack += [(v, depth + 1) for v in value.values()]
            states += _cost(value, where)
        limit("characters", chars, MAX_CHARS)
        limit("characters in patterns with their repeats written out", states, MAX_STATES)


def _cost(value: dict[str, Any], where: str) -> int:
    """Positions of the patterns of one schema, whose other keywords are checked."""
    reference, multiple, properties = value.get("$ref"), value.get("multipleOf"), value.get("properties")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ValueError(f"{where}: $ref {reference!r:.80} leads elsewhere; put it under $defs and write #/$defs/NAME")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise ValueError(f"{where}: an object of the schema has more than {MAX_PROPERTIES} properties")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool):
        digits = "".join(map(str, Decimal(str(multiple)).as_tuple().digits)).rstrip("0")
        if not 0 < multiple <= MAX_MULTIPLE or int(digits) > MAX_MULTIPLE:
            raise ValueError(f"{where}: multipleOf must be above 0, at most {MAX_MULTIPLE}, and of few digits")
    named = value.get("patternProperties")
    patterns = [p for p in (value.get("pattern"), *(named if isinstance(named, dict) else ())) if isinstance(p, str)]
    if any(len(p) > MAX_PATTERN for p in patterns):
        raise ValueError(f"{where}: a pattern of the schema has more than {MAX_PATTERN} characters")
    return sum(map(_written_out, patterns))


# An escape (with what it escapes), a class, a count, or one character.
_TOKEN = re.compile(r"\\(?:[pPuxk]\{[^}]*\}|u[0-9a-fA-F]{4}|.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(,?)(\d*)\}|.", re.S)


def _written_out(pattern: str) -> int:
    """Characters of a pattern whose counted repeats are written out."""
    groups = [[0, 0]]  # of each open group: characters before its last item, and that item's
    for token in _TOKEN.finditer(pattern):
        text = token.group()
        if text == "(":
            groups.append([0, 0])
        elif text == ")" and len(groups) > 1:
            inner = sum(groups.pop())
            groups[-1] = [sum(groups[-1]), inner]
        elif token.group(1) is not None and (token.group(1) or token.group(3)):
            times = max(int(n[:9]) for n in (token.group(1), token.group(3)) if n)
            groups[-1][1] *= max(1, times)
        else:
            groups[-1] = [sum(groups[-1]), 1]
    return sum(map(sum, groups))


def _without_notes(schema: Any, *, names: bool = False) -> Any:
    """A copy without formats that say nothing here; its depth is bounded. names: the keys are names, not keywords."""
    if isinstance(schema, list):
        return [_without_notes(v) for v in schema]
    if not isinstance(schema, dict):
        return schema
    if names:
        return {name: _without_notes(v) for name, v in schema.items()}
    return {
        key: value if key in _DATA else _without_notes(value, names=key in _NAMES)
        for key, value in schema.items()
        if not (key == "format" and isinstance(value, str) and value not in _FORMATS)
    }

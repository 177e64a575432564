"""Arguments of a call while they come: text -> pieces of a JSON object.

ObjectReader    they are a JSON object: it goes out as it is
TagReader       each stands between tags (call_format.Tags): the object is written from them, texts while they come
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from gangpao.text.pieces import held_back
from gangpao.text.templates.call_format import CallFormat, may_become, pattern_of

_MOST_STEPS = 64  # references and alternatives that are followed
_KINDS = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_PYTHON = {"True": True, "False": False, "None": None}  # as templates write values that they do not write as JSON


class ObjectReader:
    """Finds the end of a JSON object that comes in pieces: braces count, except in strings."""

    def __init__(self) -> None:
        self.complete = False
        self._depth = 0
        self._in_string = self._escaped = False

    def read(self, text: str) -> tuple[str, str]:
        """The part of `text` that belongs to the object, and the rest."""
        for i, c in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or c != '"'
                self._escaped = c == "\\" and not self._escaped
            elif c == '"':
                self._in_string = True
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return text[: i + 1], text[i + 1 :]
        return text, ""


class TagReader:
    """Writes an object from arguments between tags. parameters: the function's schema, which says what a text stands for."""

    def __init__(self, form: CallFormat, parameters: object) -> None:
        assert form.tags is not None
        self.complete = False
        self._tags = form.tags
        self._root: Mapping[str, Any] = parameters if isinstance(parameters, Mapping) else {}
        self._close = form.argument_end
        self._value_begin = re.compile(pattern_of(form.tags.value_begin.strip(), loose=True))
        self._between = re.compile(pattern_of(f" {form.tags.between[len(self._close) :]}", loose=True))
        self._end = re.compile(pattern_of(form.tags.end[len(self._close) :], loose=True))
        self._state: Literal["key", "value", "text", "behind"] = "key"
        self._count = 0
        self._kinds: frozenset[str] = frozenset()
        self._until = ""  # what ends the text that is going out
        self._none = False

    def without_arguments(self) -> "TagReader":
        """A reader of the call that has none."""
        self._none = True
        return self

    def read(self, text: str) -> tuple[str, str]:
        """What `text` adds to the object, and what of it is to be given again, with more behind it."""
        if self._none:
            self.complete = True
            return "{}", text
        out = ""
        while not self.complete:
            step = {"key": self._key, "value": self._value, "text": self._text, "behind": self._behind}[self._state]
            found = step(text)
            if found is None:
                break
            piece, text, more = found
            out += piece
            if not more:
                break
        return out, text

    def _key(self, text: str) -> tuple[str, str, bool] | None:
        found = self._value_begin.search(text)
        if found is None:
            return None
        key = text[: found.start()].strip()
        properties = self._root.get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        self._kinds = kinds_of(schema, self._root)
        self._count += 1
        self._state = "value"
        begin = ", " if self._count > 1 else "{"
        return f"{begin}{json.dumps(key, ensure_ascii=False)}: ", text[found.end() :], True

    def _value(self, text: str) -> tuple[str, str, bool] | None:
        """The beginning of a value, or all of one that is no text."""
        newline = "\n" if self._tags.value_begin.endswith("\n") else ""
        if newline and not text:
            return None
        text = text.removeprefix(newline)
        before, behind = self._tags.wrap or ("", "")
        wrapped = bool(before) and text.startswith(before)
        if before and not wrapped and before.startswith(text):
            return None if not newline else ("", newline + text, False)
        if is_text(self._kinds) and self._tags.raw:
            self._state, self._until = "text", behind + self._close if wrapped else self._close
            return '"', text[len(before) :] if wrapped else text, True
        body, found, rest = text.partition(behind + self._close if wrapped else self._core)
        if not found:
            return "", newline + text, False
        body = body[len(before) :] if wrapped else body
        if not wrapped and self._close.startswith("\n"):
            body = body.removesuffix("\n")
        value = value_of(body, self._kinds) if self._tags.raw else _json_value(body)
        self._state = "behind"
        return json.dumps(value, ensure_ascii=False), rest, True

    @property
    def _core(self) -> str:
        """The tag behind a value, without the white space that a model may leave out."""
        return self._close.strip()

    def _text(self, text: str) -> tuple[str, str, bool] | None:
        """A text while it comes."""
        core = self._until.lstrip("\n")
        body, found, rest = text.partition(core)
        if found:
            body = body.removesuffix("\n") if self._until.startswith("\n") else body
            self._state = "behind"
            return _inside(body) + '"', rest, True
        keep = max(held_back(body, core), held_back(body, self._until))
        keep = max(keep, 1) if self._until.startswith("\n") and body.endswith("\n") else keep
        return _inside(body[: len(body) - keep]), body[len(body) - keep :], False

    def _behind(self, text: str) -> tuple[str, str, bool] | None:
        """Another argument, or the end of them."""
        if found := self._between.match(text):
            self._state = "key"
            return "", text[found.end() :], True
        if may_become(text, self._tags.between[len(self._close) :]):
            return None
        if found := self._end.match(text):
            self.complete = True
            return "}", text[found.end() :], True
        return None


def _inside(text: str) -> str:
    """Text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


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

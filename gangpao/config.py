"""TOML files into frozen pydantic models; unknown keys stop the run and the nearest known one is named.

The idea: every option exists once, as a typed field with a default. A file of ours ships with the package, a file of
the user is merged over it key by key, and `a.b=c` overrides from a command line are merged last. What comes out cannot
be changed and can be saved with a run.

What it gives up: no includes, no interpolation, no environment variables inside files.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Frozen(BaseModel):
    """Base of every model read from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=BaseModel)
_MOST_ERRORS = 5
_TYPES = ("int", "float", "str", "bool")
_WORDS = (
    ("^Value error, ", ""), ("^Input should be", "must be"), ("a valid dictionary", "a table"),
    (r" or instance of \w+|, unable to parse string as an? \w+", ""),
)  # fmt: skip


def config_dir() -> Path:
    """Where the user's own files lie: $XDG_CONFIG_HOME/gangpao, else ~/.config/gangpao. Not created."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "gangpao"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises ValueError naming the file, and the line where it is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top: tables are merged, every other value is replaced. Neither is changed."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as nested tables. The value is TOML where it parses (1, true, [1, 2], "x"), else a plain string.

    Keys with dots in them are quoted as in TOML: `models."qwen2.5-coder-1.5b".note=mine`.
    """
    key, found, value = text.partition("=")
    if not found or not key.strip() or "\n" in key:
        raise ValueError(f"override {text!r}: write it as key=value, for example prices.electricity=0.6")
    quoted = '"' + value.strip().replace("\\", "\\\\").replace('"', '\\"') + '"'
    for candidate in (value, quoted):
        if "\n" in candidate:
            continue
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(f"override {text!r}: {key.strip()!r} is not a TOML key; quote parts with dots or other signs")


def load_toml(path: Path, model_cls: type[T], overrides: Iterable[str] = (), *, user_files: Sequence[Path] = ()) -> T:
    """A model from a file, with those of `user_files` that exist merged over it, then the `a.b=c` overrides.

    Raises ValueError naming the file, the key and what is wrong with it; for an unknown key also the nearest valid one.
    """
    layers = [(str(path), read_toml(path))]
    layers += [(str(user), read_toml(user)) for user in user_files if user.is_file()]
    layers += [(f"override {text!r}", parse_override(text)) for text in overrides]
    data: dict[str, Any] = {}
    for _, layer in layers:
        data = merge(data, layer)
    try:
        return model_cls.model_validate(data)
    except ValidationError as error:
        # By place and value: a field that may be of two types has an error for each.
        told: dict[tuple[str, str], list[str]] = {}
        for e in error.errors()[:_MOST_ERRORS]:
            place, what, value = _explain(e, model_cls, layers)
            before = told.setdefault((place, value), [])
            before.append(what.removeprefix("must be ") if before else what)
        lines = [f"{place}: {' or '.join(what)}{value}" for (place, value), what in told.items()]
        raise ValueError("; ".join(lines)) from error


def shown(value: Any) -> str:
    """A value of a configuration in a few words, for a message: what is long is named by its kind and its keys."""
    if isinstance(value, dict):
        keys = [str(key)[:20] for key in value]
        return f"a table with {', '.join(keys[:5])}{' ...' * (len(keys) > 5)}" if keys else "an empty table"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else f"{text[:56]}...{text[0] if isinstance(value, str) else ''}"


def _explain(
    error: ErrorDetails, model_cls: type[BaseModel], layers: Sequence[tuple[str, dict[str, Any]]]
) -> tuple[str, str, str]:
    """One pydantic error in our words: the last layer that holds the key it is about with that key, what is wrong, the value."""
    loc = _without_tags(error["loc"], layers)
    where = next((name for name, data in reversed(layers) if _holds(data, loc)), layers[0][0])
    key = ".".join(str(part) for part in loc)
    if error["type"] != "extra_forbidden":
        said = error["msg"]
        for theirs, ours in _WORDS:
            said = re.sub(theirs, ours, said)
        value = "" if error["type"] in ("missing", "value_error") else f", not {shown(error['input'])}"
        return f"{where}: {key or 'the file'}", said, value
    known = _fields_at(model_cls, error["loc"][:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]}? (known: {', '.join(known)})" if near else ""
    return f"{where}: {key}", f"unknown key{hint}", ""


def _without_tags(loc: tuple[int | str, ...], layers: Sequence[tuple[str, dict[str, Any]]]) -> tuple[int | str, ...]:
    """The location as the file spells it: pydantic puts the tag of a tagged union between its parts."""
    if len(loc) > 1 and loc[-1] in _TYPES:  # a value of none of the types that it might have had
        loc = loc[:-1]
    for _, data in reversed(layers):
        node: Any = data
        out: list[int | str] = []
        for part in loc:
            child = _child(node, part)
            if child is not _NOTHING:
                node = child
                out.append(part)
            elif not (isinstance(node, dict) and part in node.values()):
                break
        else:
            return tuple(out)
    return loc


_NOTHING = object()


def _child(node: Any, part: int | str) -> Any:
    """What lies one step down in parsed TOML, or _NOTHING."""
    if isinstance(node, list):
        return node[part] if isinstance(part, int) and part < len(node) else _NOTHING
    return node.get(part, _NOTHING) if isinstance(node, dict) else _NOTHING


def _holds(data: Any, loc: Sequence[int | str]) -> bool:
    for part in loc:
        data = _child(data, part)
    return data is not _NOTHING


def _fields_at(annotation: Any, loc: Sequence[int | str]) -> list[str]:
    """Names of the fields that a table at this location may have; empty where that is not a model."""
    for part in loc:
        annotation = _step(annotation, part)
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _step(annotation: Any, part: int | str) -> Any:
    """The type one step down: a field, a value of a dict, an item of a list, or a member of a tagged union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return field.annotation if field else None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _step(args[0], part)
    if origin is dict:
        return args[1]
    if origin in (list, tuple):
        return args[0]
    if origin in (typing.Union, types.UnionType):
        return next((arg for arg in args if _is_tagged(arg, part)), None)
    return None


def _is_tagged(model: Any, tag: int | str) -> bool:
    fields = getattr(model, "model_fields", {})
    return any(tag in typing.get_args(field.annotation) for field in fields.values())

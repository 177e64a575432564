"""TOML files into frozen pydantic models; unknown keys stop the run and the nearest known one is named.

The idea: every option exists once, as a typed field with a default. A file of ours ships with the package, a file of
the user is merged over it key by key, and `a.b=c` overrides from a command line are merged last. What comes out cannot
be changed and can be saved with a run.

What it gives up: no includes, no interpolation, no environment variables inside files.
"""

import bisect
import difflib
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from gangpao.validation import BaseModel, ConfigDict, ErrorDetails, ValidationError


class Frozen(BaseModel):
    """Base of every model read from a file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=BaseModel)


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
    """`base` with `over` on top: tables are merged, every other value is replaced. A table of numbers over a list
    (`stages.0.steps=5`) changes the items of these numbers. Neither is changed in place."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, list) and isinstance(value, dict) and _are_places(value, old):
            items = merge({str(i): item for i, item in enumerate(old)}, value)
            out[key] = [items[str(i)] for i in range(len(old))]
        else:
            out[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return out


def _are_places(table: dict[str, Any], items: list[Any]) -> bool:
    return bool(table) and all(key in map(str, range(len(items))) for key in table)


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as nested tables. The value is TOML where it parses (1, true, [1, 2], "x"), else a plain string.

    Keys with dots in them are quoted as in TOML: `models."qwen2.5-coder-1.5b".note=mine`.
    """
    key, found, value = text.partition("=")
    if not found or not key.strip() or "\n" in key:
        raise ValueError(f"--set {_short(text)}: write it as KEY=VALUE, for example --set optimizer.lr=0.005")
    quoted = '"' + value.strip().replace("\\", "\\\\").replace('"', '\\"') + '"'
    for candidate in (value, quoted):
        if "\n" in candidate:
            continue
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise ValueError(
        f"--set {_short(text)}: {_short(key.strip())} is not a TOML key; quote parts with dots or other signs"
    )


# --- paths


class _IsPath:
    """Marks a field of text as a path: see PathText."""


# A path in a configuration. Wherever it stands, one rule: in a file it is relative to the file's folder, in --set to the folder
# where the command is typed; `~` is the home folder. What load_toml returns is absolute, or empty.
PathText = Annotated[str, _IsPath()]


def _anchored(data: dict[str, Any], model_cls: type[BaseModel], base: Path) -> dict[str, Any]:
    """`data` with the paths that model_cls marks (PathText) made absolute from the folder `base`; nothing is changed in place."""
    out = dict(data)
    for name, field in model_cls.model_fields.items():
        value = out.get(name)
        if isinstance(value, str) and value and _is_path(field.annotation, field.metadata):
            out[name] = os.path.normpath((base / Path(value).expanduser()).absolute())
        elif isinstance(value, dict) and (inner := _model_in(field.annotation)):
            out[name] = _anchored(value, inner, base)
        elif inner := _model_of_items(field.annotation):
            if isinstance(value, dict):
                out[name] = {key: _item(one, inner, base) for key, one in value.items()}
            elif isinstance(value, list):
                out[name] = [_item(one, inner, base) for one in value]
    return out


def _item(value: Any, model_cls: type[BaseModel], base: Path) -> Any:
    return _anchored(value, model_cls, base) if isinstance(value, dict) else value


def _anchored_override(text: str, model_cls: type[BaseModel], base: Path) -> str:
    """An `a.b=c` override as it is, or with its path made absolute from `base` where it sets one."""
    before = parse_override(text)
    value: Any = _anchored(before, model_cls, base)
    if value == before:
        return text
    while isinstance(value, dict):
        (value,) = value.values()
    return f"{text.partition('=')[0].strip()}={json.dumps(value, ensure_ascii=False)}"


def anchored_overrides(
    texts: Sequence[str], model_cls: type[BaseModel], path: Path, field: str, overrides: Iterable[str]
) -> tuple[str, ...]:
    """Overrides of another configuration that a file lists in `field`: their paths are relative to that file, or to where the
    command is typed when a --set replaced the list."""
    typed = any(field in parse_override(text) for text in overrides)
    return tuple(_anchored_override(text, model_cls, Path() if typed else path.parent) for text in texts)


def _is_path(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    """Whether a field's type is PathText, or that or none."""
    marked = [*metadata, *getattr(annotation, "__metadata__", ())]
    return any(isinstance(mark, _IsPath) for mark in marked) or any(
        _is_path(arg) for arg in typing.get_args(annotation) if typing.get_origin(arg) is Annotated
    )


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds one of, or one of or none."""
    options = (annotation, *typing.get_args(annotation)) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _model_of_items(annotation: Any) -> type[BaseModel] | None:
    """The model that the tables of a list, or of a table by name, are."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    item = {dict: args[-1:], list: args[:1], tuple: args[:1]}.get(origin, ())
    return next((one for one in item if isinstance(one, type) and issubclass(one, BaseModel)), None)


_UNIONS = (typing.Union, types.UnionType)


# --- files


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one file or one --set says. text: of a file."""

    name: str
    data: dict[str, Any]
    text: str = ""


def load_toml(path: Path, model_cls: type[T], overrides: Iterable[str] = (), *, user_files: Sequence[Path] = ()) -> T:
    """A model from a file, with those of `user_files` that exist merged over it, then the `a.b=c` overrides.

    Raises ValueError naming the file, the line, the key and what is wrong with it; for an unknown key also the nearest valid one.
    """
    files = (path, *(user for user in user_files if user.is_file()))
    layers = [_Layer(str(file), _anchored(read_toml(file), model_cls, file.parent), _text(file)) for file in files]
    return _validated(model_cls, [*layers, *_typed(model_cls, overrides)])


def from_overrides(model_cls: type[T], overrides: Iterable[str]) -> T:
    """A model from `a.b=c` overrides alone, for what needs no file. Raises ValueError as load_toml does."""
    return _validated(model_cls, _typed(model_cls, overrides))


def _typed(model_cls: type[BaseModel], overrides: Iterable[str]) -> list[_Layer]:
    return [_Layer(f"--set {_short(o)}", _anchored(parse_override(o), model_cls, Path())) for o in overrides]


def _validated(model_cls: type[T], layers: Sequence[_Layer]) -> T:
    data: dict[str, Any] = {}
    for layer in layers:
        data = merge(data, layer.data)
    try:
        return model_cls.model_validate(data)
    except ValidationError as error:
        raise ValueError(_explained(error, model_cls, layers)) from error


_MOST_ERRORS = 5
_FEW = 12


def explained(error: ValidationError, model_cls: type[BaseModel], data: dict[str, Any], name: str) -> str:
    """What pydantic found wrong with `data`, in our words; `name` is where that is from."""
    return _explained(error, model_cls, [_Layer(name, data)])


def _explained(error: ValidationError, model_cls: type[BaseModel], layers: Sequence[_Layer]) -> str:
    # What is wrong inside of a thing explains what is wrong with it, and a typo explains what is missing.
    places = [e["loc"] for e in error.errors()]
    inner = [e for e in error.errors() if not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)]
    found = sorted(inner, key=lambda e: e["type"] != "extra_forbidden")
    more = [f"and {len(found) - _MOST_ERRORS} more"] if len(found) > _MOST_ERRORS else []
    return "; ".join([*(_explain(e, model_cls, layers) for e in found[:_MOST_ERRORS]), *more])


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _explain(error: ErrorDetails, model_cls: type[BaseModel], layers: Sequence[_Layer]) -> str:
    """One pydantic error in our words, with the last layer that holds the key it is about."""
    loc = _without_tags(error["loc"], layers)
    missing = error["type"] == "missing"
    wanted = loc[:-1] if missing else loc
    layer = next((layer for layer in reversed(layers) if _holds(layer.data, wanted)), layers[0])
    line = line_of(layer.text, wanted) if layer.text else None
    where = f"{layer.name}, line {line}" if line else layer.name
    key = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key{_known(model_cls, error['loc'])}"
    if missing:
        return f"{where}: {key} is required and missing"
    value, words = error.get("ctx", {}).get("tag", error["input"]), said(error)
    if words.startswith("must"):
        words += f", not {_shown(value)}"
    near = difflib.get_close_matches(str(value), re.findall(r'"([^"]*)"', _allowed(error)), n=1)
    words += f"; did you mean {near[0]}?" if near else ""
    if layer.name.startswith("--set") and isinstance(value, str) and error["type"] in _WANTS_STRUCTURE:
        words += " (it is not TOML as it stands, so it was taken as text)"
    return ": ".join(filter(None, (where, key, words)))


_WANTS_STRUCTURE = ("list_type", "tuple_type", "dict_type", "model_type", "model_attributes_type")
_WORDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table"),
    "string_type": "must be text in quotes",
}  # fmt: skip


def said(error: ErrorDetails) -> str:
    """What is wrong with a value, as one says it to the person who wrote it: no types of Python, allowed values by name."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_not_found":
        return f"it needs the key {context['discriminator'].strip(chr(39))}"
    if allowed := _allowed(error):
        return f"must be {allowed}"
    if error["type"] in _WORDS:
        return _WORDS[error["type"]]
    if error["type"] == "value_error":
        return str(context["error"])
    words = re.sub(r"^\w+ should (be )?", lambda m: "must be " if m[1] else "must ", error["msg"])
    return words.replace(" after validation", "").partition(", not ")[0]


def _allowed(error: ErrorDetails) -> str:
    """The values that there are, as `"a", "b" or "c"`; empty where it is not a choice."""
    context = error.get("ctx", {})
    return str(context.get("expected") or context.get("expected_tags") or "").replace("'", '"')


def _known(model_cls: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """A hint at the key that was meant: the same name in another table, else the nearest one here."""
    name, known = str(loc[-1]), _fields_at(model_cls, loc[:-1])
    inside = list(_fields_named(model_cls, name)) if len(loc) == 1 else []
    near = inside or difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} (known: {', '.join(known)})" if known and (not near or len(known) <= _FEW) else hint


def _fields_named(model_cls: type[BaseModel], name: str) -> Iterator[str]:
    """Dotted paths of the fields of this name in the tables of a model."""
    for outer, field in model_cls.model_fields.items():
        inner = _model_in(field.annotation)
        if inner and name in inner.model_fields:
            yield f"{outer}.{name}"


def _shown(value: Any) -> str:
    """A value as TOML spells it, shortened; of a table its keys, of a list how long it is."""
    if isinstance(value, dict):
        return _short(f"a table with {', '.join(map(str, value)) or 'nothing'}")
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return _short(str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False, default=str))


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def line_of(text: str, loc: Sequence[int | str]) -> int | None:
    """The line (from 1) on which the statement begins that sets the key at `loc` in a TOML text; None for the whole file.

    tomllib keeps no places. But the beginning of a TOML text is TOML up to every end of a statement, so the first beginning
    that has the key ends with its statement.
    """
    lines = text.splitlines()

    def whole(end: int) -> tuple[int, dict[str, Any]]:
        """The longest part of the first `end` lines that is TOML."""
        while end:
            try:
                return end, tomllib.loads("\n".join(lines[:end]) + "\n")
            except tomllib.TOMLDecodeError:
                end -= 1
        return 0, {}

    if not loc:
        return None
    end = bisect.bisect_left(range(len(lines) + 1), True, key=lambda n: _holds(whole(n)[1], loc))
    return whole(end - 1)[0] + 1 if 0 < end <= len(lines) else None


def _without_tags(loc: tuple[int | str, ...], layers: Sequence[_Layer]) -> tuple[int | str, ...]:
    """The location as the file spells it: pydantic puts the tag of a tagged union between its parts."""
    for layer in reversed(layers):
        node: Any = layer.data
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
    return (
        node.get(part, node.get(str(part), _NOTHING)) if isinstance(node, dict) else _NOTHING
    )  # "0": of stages.0.steps


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
    if origin in _UNIONS:
        return next((arg for arg in args if _is_tagged(arg, part)), None)
    return None


def _is_tagged(model: Any, tag: int | str) -> bool:
    fields = getattr(model, "model_fields", {})
    return any(tag in typing.get_args(field.annotation) for field in fields.values())


# --- TOML out of values: Python reads TOML and does not write it


def to_toml(values: dict[str, Any], name: str = "") -> str:
    """TOML of plain data: values, then tables and lists of tables; name: the table that `values` is."""
    out = "".join(f"{_key(k)} = {_value(v)}\n" for k, v in values.items() if not _is_table(v))
    for key, inner in values.items():
        full = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(inner, dict):
            out += f"\n[{full}]\n" + to_toml(inner, full)
        elif _is_table(inner):
            out += "".join(f"\n[[{full}]]\n" + to_toml(item, full) for item in inner)
    return out


def _is_table(value: Any) -> bool:
    """Whether a value has lines of its own: a table, or a list of nothing but tables."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    )


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    # JSON's numbers, strings and booleans are TOML's.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

"""Types as checks: a function of a value and its place, which gives the value or raises Wrong with pydantic's errors.

Only of a text that is no date it says less.
"""

import datetime
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from gangpao.validation.fields import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    FailFast,
    FieldInfo,
    Json,
    Loc,
    PlainValidator,
    Tag,
    Wrong,
    guarded,
    wrong,
)

_UNIONS = (typing.Union, types.UnionType)
_YES = (1, "1", "on", "t", "true", "y", "yes")
_NO = (0, "0", "off", "f", "false", "n", "no")


@dataclass(frozen=True, slots=True)
class Check:
    """run: (value, place) -> the value, or Wrong. label: its name inside a union; noun: what has a length."""

    run: Callable[[Any, Loc], Any]
    label: str
    noun: str = "Value"


# --- values


def _text(value: Any, loc: Loc, *, strict: bool, finite: bool) -> Any:
    if isinstance(value, str):
        return value
    raise wrong("string_type", loc, value, "Input should be a valid string")


def _whole(value: Any, loc: Loc, *, strict: bool, finite: bool) -> Any:
    if type(value) is int or (isinstance(value, bool) and not strict):
        return int(value)
    if not strict and isinstance(value, float):
        if not math.isfinite(value):
            raise wrong("finite_number", loc, value, "Input should be a finite number")
        if value.is_integer():
            return int(value)
        raise wrong(
            "int_from_float", loc, value, "Input should be a valid integer, got a number with a fractional part"
        )
    if not strict and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise wrong(
                "int_parsing", loc, value, "Input should be a valid integer, unable to parse string as an integer"
            ) from None
    raise wrong("int_type", loc, value, "Input should be a valid integer")


def _real(value: Any, loc: Loc, *, strict: bool, finite: bool) -> Any:
    given = value
    if isinstance(value, str) and not strict:
        try:
            value = float(value)
        except ValueError:
            raise wrong(
                "float_parsing", loc, value, "Input should be a valid number, unable to parse string as a number"
            ) from None
    if not isinstance(value, int | float) or (strict and isinstance(value, bool)):
        raise wrong("float_type", loc, given, "Input should be a valid number")
    if finite and not math.isfinite(value):
        raise wrong("finite_number", loc, given, "Input should be a finite number")
    return float(value)


def _truth(value: Any, loc: Loc, *, strict: bool, finite: bool) -> Any:
    if isinstance(value, bool):
        return value
    if not strict and (isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())):
        said = value.lower() if isinstance(value, str) else value
        for known, meant in ((_YES, True), (_NO, False)):
            if said in known:
                return meant
        raise wrong("bool_parsing", loc, value, "Input should be a valid boolean, unable to interpret input")
    raise wrong("bool_type", loc, value, "Input should be a valid boolean")


def _day(value: Any, loc: Loc, *, strict: bool, finite: bool) -> Any:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        raise wrong("date_type", loc, value, "Input should be a valid date") from None


_SCALARS: dict[Any, Callable[..., Any]] = {
    str: _text,
    int: _whole,
    float: _real,
    bool: _truth,
    datetime.date: _day,
}


def _scalar(kind: type, config: ConfigDict) -> Check:
    strict, finite = config.get("strict", False), not config.get("allow_inf_nan", True)
    run = partial(_SCALARS[kind], strict=strict, finite=finite)
    return Check(run, kind.__name__, "String" if kind is str else "Value")


def _anything(value: Any, loc: Loc) -> Any:
    return value


def _choice(options: tuple[Any, ...]) -> Check:
    names = [repr(option) for option in options]
    expected = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

    def run(value: Any, loc: Loc) -> Any:
        if any(type(value) is type(option) and value == option for option in options):
            return value
        raise wrong("literal_error", loc, value, f"Input should be {expected}", expected=expected)

    return Check(run, f"literal[{','.join(names)}]")


def _many(item: Check, kind: type, strict: bool, *, first: bool) -> Check:
    """A list, or a tuple of any length. first: its first wrong entry is enough."""
    taken: Any = (kind,) if strict else (list, tuple)
    noun = kind.__name__

    def run(value: Any, loc: Loc) -> Any:
        if not isinstance(value, taken):
            raise wrong(f"{noun}_type", loc, value, f"Input should be a valid {noun}")
        out: list[Any] = []
        errors: list[Json] = []
        for i, one in enumerate(value):
            try:
                out.append(item.run(one, (*loc, i)))
            except Wrong as bad:
                errors += bad.errors
                if first:
                    break
        if errors:
            raise Wrong(errors)
        return kind(out)

    return Check(run, f"{noun}[{item.label}]" if kind is list else f"tuple[{item.label}, ...]", noun.capitalize())


def _mapping(key: Check, item: Check) -> Check:
    def run(value: Any, loc: Loc) -> Any:
        if not isinstance(value, dict):
            raise wrong("dict_type", loc, value, "Input should be a valid dictionary")
        out, errors = {}, []
        for name, one in value.items():
            at = name if isinstance(name, str | int) else str(name)
            found = []
            for check, part, where in ((key, name, (*loc, at, "[key]")), (item, one, (*loc, at))):
                try:
                    found.append(check.run(part, where))
                except Wrong as bad:
                    errors += bad.errors
            if len(found) == 2:
                out[found[0]] = found[1]
        if errors:
            raise Wrong(errors)
        return out

    return Check(run, f"dict[{key.label},{item.label}]", "Dictionary")


def _model(kind: Any) -> Check:
    return Check(lambda value, loc: kind._checked(value, loc), kind.__name__)


def _or_none(inner: Check) -> Check:
    return Check(
        lambda value, loc: None if value is None else inner.run(value, loc), f"nullable[{inner.label}]", inner.noun
    )


def _one_of(lax: list[Check], strict: list[Check]) -> Check:
    """The first member that takes a value as it is, else the first that takes it at all."""

    def run(value: Any, loc: Loc) -> Any:
        for checks in (strict, lax):
            errors: list[Json] = []
            for check in checks:
                try:
                    return check.run(value, (*loc, check.label))
                except Wrong as bad:
                    errors += bad.errors
        raise Wrong(errors)

    return Check(run, f"union[{','.join(c.label for c in lax)}]")


def _by_tag(members: Mapping[str, Check], how: str | Discriminator) -> Check:
    """The member whose tag a value has: in a field of it, or by a function."""

    def run(value: Any, loc: Loc) -> Any:
        if isinstance(how, Discriminator):
            tag = how.discriminator(value)
            if tag is None or tag not in members:
                raise wrong(how.custom_error_type, loc, value, how.custom_error_message)
        else:
            if not isinstance(value, dict):
                what = "Input should be a valid dictionary or object to extract fields from"
                raise wrong("model_attributes_type", loc, value, what)
            if how not in value:
                what = f"Unable to extract tag using discriminator {how!r}"
                raise wrong("union_tag_not_found", loc, value, what, discriminator=repr(how))
            tag, known = value[how], ", ".join(map(repr, members))
            if not isinstance(tag, str) or tag not in members:
                what = f"Input tag '{tag}' found using {how!r} does not match any of the expected tags: {known}"
                raise wrong(
                    "union_tag_invalid", loc, value, what, discriminator=repr(how), tag=str(tag), expected_tags=known
                )
        return members[tag].run(value, (*loc, tag))

    return Check(run, f"tagged-union[{','.join(member.label for member in members.values())}]")


_COMPARED: dict[str, tuple[str, str, Callable[[Any, Any], bool]]] = {
    "ge": ("greater_than_equal", "greater than or equal to", lambda value, bound: value >= bound),
    "gt": ("greater_than", "greater than", lambda value, bound: value > bound),
    "le": ("less_than_equal", "less than or equal to", lambda value, bound: value <= bound),
    "lt": ("less_than", "less than", lambda value, bound: value < bound),
}  # fmt: skip


def _bounded(check: Check, bounds: Mapping[str, Any]) -> Check:
    """The check, then bounds of the value or of its length."""

    def run(value: Any, loc: Loc) -> Any:
        known = check.noun in ("List", "Tuple") and isinstance(value, list | tuple)
        if known and "max_length" in bounds and len(value) > bounds["max_length"]:
            check.run(value[: bounds["max_length"]], loc)
            raise _too(check.noun, loc, value, len(value), bounds["max_length"], most=True)
        out = check.run(value, loc)
        for name, bound in bounds.items():
            if name in _COMPARED:
                kind, words, holds = _COMPARED[name]
                if not holds(out, bound):
                    shown = int(bound) if isinstance(bound, float) and bound.is_integer() else bound
                    raise wrong(kind, loc, value, f"Input should be {words} {shown}", **{name: bound})
            elif (len(out) > bound) if name == "max_length" else (len(out) < bound):
                raise _too(check.noun, loc, value, len(out), bound, most=name == "max_length")
        return out

    return Check(run, check.label, check.noun)


def _too(noun: str, loc: Loc, value: Any, length: int, bound: int, *, most: bool) -> Wrong:
    what, kind = ("most", "too_long") if most else ("least", "too_short")
    many = "s" * (bound != 1)
    context: Json = {"max_length" if most else "min_length": bound}
    if noun == "String":
        return wrong(f"string_{kind}", loc, value, f"String should have at {what} {bound} character{many}", **context)
    context |= {"field_type": noun, "actual_length": length}
    return wrong(
        kind, loc, value, f"{noun} should have at {what} {bound} item{many} after validation, not {length}", **context
    )


# --- types -> checks


def check_of(hint: Any, config: ConfigDict, more: Iterable[Any] = ()) -> Check:
    """The check of a type. more: what stands behind it as if in Annotated."""
    marks = list(more)
    while typing.get_origin(hint) is Annotated:
        hint, *inner = typing.get_args(hint)
        marks = [*inner, *marks]
    how = next((m for m in marks if isinstance(m, Discriminator) or getattr(m, "discriminator", None)), None)
    fast = any(isinstance(m, FailFast) for m in marks)
    args = typing.get_args(hint)
    optional = typing.get_origin(hint) in _UNIONS and type(None) in args
    if how is not None and not optional:
        check = _tagged(args, how, config)
    elif optional:
        union: Any = typing.Union
        rest = union[tuple(arg for arg in args if arg is not type(None))]
        inside = [m for m in marks if isinstance(m, FieldInfo | FailFast | Discriminator)]
        check = _or_none(check_of(rest, config, inside))
        marks = [m for m in marks if m not in inside]
    else:
        check = _plain_check(hint, config, first=fast)
    for mark in marks:
        check = _marked(check, mark)
    return check


def _plain_check(hint: Any, config: ConfigDict, *, first: bool) -> Check:
    origin, args, strict = typing.get_origin(hint), typing.get_args(hint), config.get("strict", False)
    if hint in (str, int, float, bool, datetime.date):
        return _scalar(hint, config)
    if hint is Any:
        return Check(_anything, "any")
    if hasattr(hint, "_checked"):  # a model (models.py)
        return _model(hint)
    if origin is Literal:
        return _choice(args)
    if origin is list:
        return _many(check_of(args[0], config), list, strict, first=first)
    if origin is tuple and args[1:] == (...,):
        return _many(check_of(args[0], config), tuple, strict, first=first)
    if origin is dict:
        return _mapping(check_of(args[0], config), check_of(args[1], config))
    if origin in _UNIONS:
        exact: ConfigDict = {**config, "strict": True}
        return _one_of([check_of(arg, config) for arg in args], [check_of(arg, exact) for arg in args])
    raise TypeError(f"{hint!r}: not a type that models are checked for without pydantic")


def _tagged(members: tuple[Any, ...], how: Any, config: ConfigDict) -> Check:
    if isinstance(how, Discriminator):
        tags = {
            mark.tag: check_of(member, config)
            for member in members
            for mark in typing.get_args(member)[1:]
            if isinstance(mark, Tag)
        }
        return _by_tag(tags, how)
    named = {}
    for member in members:
        for tag in typing.get_args(member.model_fields[how.discriminator].annotation):
            named[tag] = _model(member)
    return _by_tag(named, how.discriminator)


def _marked(check: Check, mark: Any) -> Check:
    if isinstance(mark, FieldInfo):
        return _bounded(check, mark.bounds) if mark.bounds else check
    if isinstance(mark, BeforeValidator):
        label = f"function-before[{getattr(mark.func, '__name__', '')}(), {check.label}]"
        return Check(lambda value, loc: check.run(guarded(mark.func, value, loc), loc), label)
    if isinstance(mark, AfterValidator):
        label = f"function-after[{getattr(mark.func, '__name__', '')}(), {check.label}]"

        return Check(lambda value, loc: guarded(mark.func, check.run(value, loc), loc, about=value), label)
    if isinstance(mark, PlainValidator):
        return Check(lambda value, loc: guarded(mark.func, value, loc), "function-plain")
    return check  # a mark of ours, which checks nothing

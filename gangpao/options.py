"""Options, each written once: a field of a dataclass that says what it does, within which bounds, and how it is typed.

    option(default, help, ...)   a field; code makes the record, the command line takes texts, bounds and defaults from it
    @command_of()                makes a function of records one of single options, which typer makes a command of

A parameter that is such a record stands for all its options; `Annotated[Record, Fields(...)]` chooses and orders them, and
`Annotated[dict[str, Any], Fields(...)]` gives the values that were given instead of a record.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])


def option(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    *,
    flag: str = "",
    unset: str = "",
    typed: Any = None,
    read: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of a dataclass that is an option of commands, too.

    flag: its name there, if not the field's. unset: what it is where it is not given, for an option whose default the record does
    not know. typed, read: what is typed and how that becomes the value, where it is not the value itself (other units).
    """
    described = {"help": help, "low": low, "high": high, "flag": flag, "unset": unset, "typed": typed, "read": read}
    return field(default=default, metadata=described)


@dataclass(frozen=True, slots=True)
class Fields:
    """Which options of a record a parameter stands for, in this order; without names all of them."""

    record: type
    names: tuple[str, ...] = ()

    def chosen(self) -> dict[str, Field[Any]]:
        """The fields by name."""
        known = {f.name: f for f in fields(self.record) if "help" in f.metadata}
        return {name: known[name] for name in self.names or known}


def command_of(after: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """A decorator that makes a function one for the command line: records among its parameters are taken apart into options.

    after: option -> the one that it follows, where the order of the records is not that of the help.
    """
    return lambda function: _command(function, after or {})


def _command(function: F, after: Mapping[str, str]) -> F:
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Fields] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        group = _group(hints[name])
        if group is None:
            parameters[name] = parameter.replace(annotation=hints[name])
            continue
        groups[name] = group
        types = get_type_hints(group.record, include_extras=True)
        parameters |= {one: _parameter(f, types[one]) for one, f in group.chosen().items()}
    order = _ordered(list(parameters), after)

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        made = {name: _made(group, hints[name], given) for name, group in groups.items()}
        return function(**given, **made)

    del command.__wrapped__  # typer is to see the options
    # Keyword-only: an option with a default may then stand before one without.
    signature = [parameters[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in order]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameters[name].annotation for name in order}
    return command  # type: ignore[return-value]


def flag_of(record: type, name: str) -> str:
    """An option as it is typed."""
    return _flag(Fields(record).chosen()[name])


def _flag(f: Field[Any]) -> str:
    return f.metadata["flag"] or f"--{f.name.replace('_', '-')}"


def _group(hint: Any) -> Fields | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, Fields)), None)
    described = isinstance(hint, type) and is_dataclass(hint) and any("help" in f.metadata for f in fields(hint))
    return Fields(hint) if described else None


def _parameter(f: Field[Any], hint: Any) -> inspect.Parameter:
    """A field as typer has it: a tuple is a repeatable option."""
    import typer

    said = f.metadata
    default = None if said["unset"] or f.default in (MISSING, ()) else f.default
    kind: Any = said["typed"] or (list[str] if get_origin(hint) is tuple else hint)
    kind = kind | None if default is None else kind
    shown: Any = {"show_default": said["unset"]} if said["unset"] else {}
    info = typer.Option(_flag(f), help=said["help"], min=said["low"], max=said["high"], **shown)
    annotation: Any = Annotated[kind, info]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _made(group: Fields, hint: Any, given: dict[str, Any]) -> Any:
    """The record, or the mapping, of the options that belong to it; they are taken out of `given`."""
    values: dict[str, Any] = {}
    for name, f in group.chosen().items():
        value, read = given.pop(name), f.metadata["read"]
        if value is None:
            continue
        values[name] = read(value) if read else tuple(value) if isinstance(value, list) else value
    as_mapping = get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is dict
    return values if as_mapping else group.record(**values)


def _ordered(names: list[str], after: Mapping[str, str]) -> list[str]:
    for name, before in after.items():
        names.remove(name)
        names.insert(names.index(before) + 1, name)
    return names

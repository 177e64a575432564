"""What stands in a model, and what is said when a value is none: the words of pydantic that our models use."""

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Loc = tuple[int | str, ...]
Json = dict[str, Any]
MISSING: Any = object()


class ValidationError(ValueError):
    """What is wrong with a value: `errors()`, each with type, loc, msg, input and often ctx."""

    def __init__(self, title: str, errors: list[Json]) -> None:
        self.title, self._errors = title, errors
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} [type={e['type']}]" for e in errors]
        super().__init__(f"{len(errors)} validation error{'s' * (len(errors) > 1)} for {title}\n" + "\n".join(lines))

    def errors(
        self, *, include_url: bool = True, include_context: bool = True, include_input: bool = True
    ) -> list[Json]:
        """One dict an error; the flags leave parts of them out (there are no addresses to leave out)."""
        hidden = {name for name, shown in (("ctx", include_context), ("input", include_input)) if not shown}
        return [{key: value for key, value in error.items() if key not in hidden} for error in self._errors]

    def error_count(self) -> int:
        """How many."""
        return len(self._errors)


class Wrong(Exception):
    """Errors on their way out of nested checks."""

    def __init__(self, errors: list[Json]) -> None:
        self.errors = errors


def wrong(kind: str, loc: Loc, value: Any, message: str, **context: Any) -> Wrong:
    """One error."""
    error: Json = {"type": kind, "loc": loc, "msg": message, "input": value}
    return Wrong([error | ({"ctx": context} if context else {})])


def guarded(func: Callable[[Any], Any], value: Any, loc: Loc, about: Any = MISSING) -> Any:
    """What a function of ours makes of a value; its ValueError as an error of the value, or of what the value was made of."""
    try:
        return func(value)
    except ValueError as error:
        raise wrong(
            "value_error", loc, value if about is MISSING else about, f"Value error, {error}", error=error
        ) from error


class ConfigDict(typing.TypedDict, total=False):
    """How a model checks; protected_namespaces is read by pydantic alone."""

    extra: Literal["ignore", "forbid"]
    strict: bool
    frozen: bool
    allow_inf_nan: bool
    protected_namespaces: tuple[str, ...]


@dataclass(slots=True, eq=False)  # parts of unions need a hash
class FieldInfo:
    """A field: its type without Annotated, what stood in that, and its bounds."""

    default: Any = MISSING
    alias: str | None = None
    description: str | None = None
    discriminator: str | None = None
    bounds: dict[str, Any] = field(default_factory=dict)
    annotation: Any = None
    metadata: list[Any] = field(default_factory=list)

    def is_required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING


def Field(
    default: Any = MISSING,
    *,
    alias: str | None = None,
    description: str | None = None,
    discriminator: str | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
) -> Any:
    """A field with bounds."""
    given = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length, "max_length": max_length}
    bounds = {name: bound for name, bound in given.items() if bound is not None}
    return FieldInfo(MISSING if default is ... else default, alias, description, discriminator, bounds)


@dataclass(frozen=True)
class BeforeValidator:
    """func(value) -> what is checked."""

    func: Callable[[Any], Any]


@dataclass(frozen=True)
class AfterValidator:
    """func(checked value) -> the value."""

    func: Callable[[Any], Any]


@dataclass(frozen=True)
class PlainValidator:
    """func(value) -> the value; nothing else is checked."""

    func: Callable[[Any], Any]
    json_schema_input_type: Any = Any


@dataclass(frozen=True)
class FailFast:
    """A list ends at its first wrong entry."""

    fail_fast: bool = True


@dataclass(frozen=True)
class Tag:
    """The name of a member of a union."""

    tag: str


@dataclass(frozen=True)
class Discriminator:
    """Which member of a union checks a value: a function of it that gives a Tag's name, or None."""

    discriminator: Callable[[Any], str | None]
    custom_error_type: str
    custom_error_message: str


class Hook(NamedTuple):
    mode: str
    func: Callable[..., Any]


def model_validator(*, mode: Literal["before", "after"]) -> Callable[[Any], Any]:
    """A method that sees all of a model: before its fields are checked (a value -> a value), or after (itself -> itself)."""
    return lambda func: Hook(mode, func.__func__ if isinstance(func, staticmethod) else func)

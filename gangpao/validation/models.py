"""Models: classes whose annotations are checked."""

import copy
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from gangpao.validation.checks import Check, check_of
from gangpao.validation.fields import (
    MISSING,
    ConfigDict,
    Field,
    FieldInfo,
    Hook,
    Json,
    Loc,
    ValidationError,
    Wrong,
    guarded,
    wrong,
)


class _Part(NamedTuple):
    """A field, ready: the name under which it is given, and its check."""

    name: str
    given: str
    check: Check
    info: FieldInfo


class _Plan(NamedTuple):
    """How values become a model: its fields, those of the bases first, and what sees all of it before and after."""

    parts: list[_Part]
    before: list[Callable[..., Any]]
    after: list[Callable[..., Any]]
    config: ConfigDict


_NO_FIELDS = ("model_config", "model_fields_set")


class _Models(type):
    """The class of model classes: it takes defaults out of a class, and reads its fields when they are first asked for, as
    types may be named before they are there."""

    def __init__(cls, name: str, bases: tuple[type, ...], space: Json, **options: Any) -> None:
        super().__init__(name, bases, space, **options)
        cls._own: Json = {}
        for key in inspect.get_annotations(cls):
            if key in cls.__dict__ and not key.startswith("_") and key not in _NO_FIELDS:
                cls._own[key] = cls.__dict__[key]
                delattr(cls, key)
        cls._made: _Plan | None = None

    @property
    def model_fields(cls) -> dict[str, FieldInfo]:
        """Fields by name, those of the bases first."""
        return {part.name: part.info for part in cls._plan().parts}

    def _plan(cls) -> _Plan:
        if cls._made is None:
            found: Json = {}
            config: Json = {}
            for base in reversed(cls.__mro__):
                found |= base.__dict__
                config |= base.__dict__.get("model_config", {})
            hooks = [hook for hook in found.values() if isinstance(hook, Hook)]
            hints = typing.get_type_hints(cls, include_extras=True)
            names = [name for name in hints if not name.startswith("_") and name not in _NO_FIELDS]
            cls._made = _Plan(
                [_part_of(cls, name, hints[name], typing.cast(ConfigDict, config)) for name in names],
                [hook.func for hook in hooks if hook.mode == "before"],
                [hook.func for hook in hooks if hook.mode == "after"],
                typing.cast(ConfigDict, config),
            )
        return cls._made


def _part_of(cls: _Models, name: str, hint: Any, config: ConfigDict) -> _Part:
    owner = next(base for base in cls.__mro__ if name in inspect.get_annotations(base))
    default = getattr(owner, "_own", {}).get(name, MISSING)
    info = copy.copy(default) if isinstance(default, FieldInfo) else FieldInfo(default)
    bare: Any = hint
    marks: list[Any] = []
    while typing.get_origin(bare) is Annotated:
        bare, *inner = typing.get_args(bare)
        marks = [*inner, *marks]
    info.annotation, info.metadata = bare, [m for m in marks if not isinstance(m, FieldInfo)]
    return _Part(name, info.alias or name, check_of(hint, config, [info]), info)


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class BaseModel(metaclass=_Models):
    """A checked record: fields by annotation, values by keyword."""

    model_config: ClassVar[ConfigDict] = {}
    model_fields_set: set[str]

    def __init__(self, **values: Any) -> None:
        made = type(self).model_validate(values)
        object.__setattr__(self, "__dict__", made.__dict__)

    @classmethod
    def model_validate(cls, value: Any) -> Any:
        """The model of a mapping. Raises ValidationError."""
        try:
            return cls._checked(value, ())
        except Wrong as bad:
            raise ValidationError(cls.__name__, bad.errors) from None

    @classmethod
    def model_rebuild(cls) -> None:
        """Nothing: names of types are read when a model is first used."""

    @classmethod
    def _checked(cls, value: Any, loc: Loc) -> Any:
        if isinstance(value, cls):
            return value
        plan = cls._plan()
        for hook in plan.before:
            value = guarded(hook, value, loc)
        if not isinstance(value, dict):
            what = f"Input should be a valid dictionary or instance of {cls.__name__}"
            raise wrong("model_type", loc, value, what, class_name=cls.__name__)
        values, given, errors = _filled(plan, value, loc)
        if errors:
            raise Wrong(errors)
        made = object.__new__(cls)
        made.__dict__.update(values, model_fields_set=given)
        for hook in plan.after:
            made = guarded(hook, made, loc, about=value)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self)._plan().config.get("frozen"):
            error = {"type": "frozen_instance", "loc": (name,), "msg": "Instance is frozen", "input": value}
            raise ValidationError(type(self).__name__, [error])
        object.__setattr__(self, name, value)

    def _values(self) -> Json:
        return {name: value for name, value in self.__dict__.items() if name != "model_fields_set"}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, BaseModel) and self._values() == other._values()

    def __hash__(self) -> int:
        if not type(self)._plan().config.get("frozen"):
            raise TypeError(f"unhashable type: {type(self).__name__!r}")
        return hash((type(self), *self._values().values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._values().items())})"

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Any:
        """The same with some values replaced, unchecked."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **(update or {}))
        made.__dict__["model_fields_set"] = self.model_fields_set | set(update or {})
        return made

    def model_dump(
        self, *, include: set[str] | None = None, exclude: set[str] | None = None, exclude_none: bool = False
    ) -> Json:
        """Plain values, models inside as dicts. include, exclude: names of fields of this one."""
        out = {}
        for name, value in self._values().items():
            if (
                name in (exclude or ())
                or (include is not None and name not in include)
                or (exclude_none and value is None)
            ):
                continue
            out[name] = _dumped(value, exclude_none)
        return out


def _dumped(value: Any, exclude_none: bool) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=exclude_none)
    if isinstance(value, list | tuple):
        return type(value)(_dumped(one, exclude_none) for one in value)
    if isinstance(value, dict):
        return {key: _dumped(one, exclude_none) for key, one in value.items() if not (exclude_none and one is None)}
    return value


def _filled(plan: _Plan, value: Json, loc: Loc) -> tuple[Json, set[str], list[Json]]:
    """Values by field, the names of those that were given, and what is wrong."""
    values: Json = {}
    given: set[str] = set()
    errors: list[Json] = []
    for part in plan.parts:
        if part.given in value:
            given.add(part.name)
            try:
                values[part.name] = part.check.run(value[part.given], (*loc, part.given))
            except Wrong as bad:
                errors += bad.errors
        elif part.info.is_required():
            errors.append({"type": "missing", "loc": (*loc, part.given), "msg": "Field required", "input": value})
        else:
            values[part.name] = copy.deepcopy(part.info.default)
    if plan.config.get("extra") == "forbid":
        known = {part.given for part in plan.parts}
        for name in [name for name in value if name not in known]:
            what: Json = {"msg": "Extra inputs are not permitted", "input": value[name]}
            errors.append({"type": "extra_forbidden", "loc": (*loc, name), **what})
    return values, given, errors

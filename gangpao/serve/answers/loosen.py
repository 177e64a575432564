"""The part of a schema that a grammar can hold, and the names of the parts that it cannot.

Programs send fifty functions at a time, and one of them has a pattern with a look-ahead, a bound of 1e308 or `"type": "any"`. Which
part is at fault is found by trying, because a message of the compiler names a place in its own text: the schema is taken apart
down to a node that passes, and parts are put back, halves first, as long as the whole still passes. So the result passes at every
moment, and where tries or time run out, what is left over stays out.

A part that is left out allows more, never less: a property without its pattern is any text, a property without its schema is any
value, and where names of properties are lost, other names are allowed.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TRIES = 400  # of one request
SECONDS = 2.0
_DEEPEST = 140  # more levels than JSON from clients has
_MOST_FAULTS = 20  # of one schema
_PATH_CHARS = 160
_WHY_CHARS = 160
TOO_LONG = "left out, as finding the part at fault took too long"

_NOTHING = "Unsatisfiable schema"  # the compiler's word for one that no value fits

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # name -> schema
_LISTED = ("allOf", "prefixItems")
_UNIONS = ("anyOf", "oneOf")
_SINGLE = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
# A keyword that says what others leave over: without it, they would forbid what it allowed.
_LEFT_OVER = {
    "properties": ("additionalProperties", "unevaluatedProperties"),
    "patternProperties": ("additionalProperties", "unevaluatedProperties"),
    "prefixItems": ("items", "additionalItems", "unevaluatedItems"),
    "items": ("additionalItems", "unevaluatedItems"),
}

Fits = Callable[[dict[str, Any]], str]


class Fault(NamedTuple):
    """A part of a schema that cannot be held. path: e.g. "properties.size.pattern"; empty for the whole schema."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path or 'the whole schema'}: {self.why}"


class Budget:
    """Tries and seconds that one request may spend on finding faults."""

    def __init__(self, tries: int = TRIES, seconds: float = SECONDS) -> None:
        self._tries = tries
        self._until = time.monotonic() + seconds

    @property
    def spent(self) -> bool:
        """Whether no try is left."""
        return self._tries < 0 or time.monotonic() > self._until

    def spend(self) -> None:
        """Take one try."""
        self._tries -= 1

    def end(self) -> None:
        """No more tries: what is to be known is known."""
        self._tries = -1


def loosened(
    schema: object, fits: Fits, budget: Budget, empty: dict[str, Any], *, first: bool = False
) -> tuple[dict[str, Any], list[Fault]]:
    """As much of a schema as fits, and the parts that do not. The schema itself is not changed.

    fits: "" for a schema that can be held, else the reason. empty: the schema to begin with, which is taken to fit. first: end at
    the first part that does not fit.
    """
    search = _Search(fits, budget, empty, first)
    search.restore(search.holder, "root", schema, "", 0)
    found: dict[str, Any] = search.holder["root"]
    return found, search.faults


class _Search:
    """A schema that passes, and what was left out of it. holder["root"]: the schema."""

    def __init__(self, fits: Fits, budget: Budget, empty: dict[str, Any], first: bool) -> None:
        self.holder: dict[str, Any] = {"root": empty}
        self.faults: list[Fault] = []
        self._fits = fits
        self._budget = budget
        self._first = first

    def restore(self, holder: Any, key: Any, part: object, path: str, depth: int) -> None:
        """Put `part` in the place of holder[key], which passes, as far as it does."""
        placeholder = holder[key]
        holder[key] = part
        why = self._why_not()
        if not why:
            return
        holder[key] = placeholder
        if not isinstance(part, dict) or depth > _DEEPEST:
            self._note(path, why)
            return
        node: dict[str, Any] = dict(placeholder) if isinstance(placeholder, dict) else {}
        holder[key] = node
        self._keywords(node, part, path)
        inside = sorted(_inside(node, part, path), key=lambda one: one.last)  # it is stable
        self._halves(
            inside,
            put=lambda one: one.holder.__setitem__(one.key, one.part),
            take=lambda one: one.holder.__setitem__(one.key, {}),
            single=lambda one, _: self.restore(one.holder, one.key, one.part, one.path, depth + 1),
            path=path,
        )
        for key in _UNIONS:
            if key in node and isinstance(part[key], list):
                self._branches(node, key, part[key], f"{path}.{key}" if path else key, depth + 1)

    def _branches(self, node: dict[str, Any], key: str, branches: list[Any], path: str, depth: int) -> None:
        """Put back the branches of a union: each alone, as one that allows everything would hide the fault of another. One that
        matches nothing beside the schema's other keywords is no fault of a union."""
        found = []
        for i, branch in enumerate(branches):
            node[key] = [branch]
            if not self._why_not().startswith(_NOTHING):
                node[key] = [{}]
                self.restore(node[key], 0, branch, f"{path}[{i}]", depth)
            found += node[key]
        node[key] = found
        if why := self._why_not():
            node[key] = [{}]
            self._note(path, why)

    def _keywords(self, node: dict[str, Any], part: dict[str, Any], path: str) -> None:
        """Put back a schema's own keywords, with an empty schema in the place of each schema in it."""
        placeholder = dict(node)

        def put(key: str) -> None:
            node[key] = _skeleton(key, part[key])

        def take(key: str) -> None:
            node.pop(key)
            if key in placeholder:
                node[key] = placeholder[key]

        def drop(key: str, why: str) -> None:
            self._note(f"{path}.{key}" if path else key, why)
            if part[key]:
                lost.extend(_LEFT_OVER.get(key, ()))

        lost: list[str] = []
        self._halves(list(part), put, take, drop, path)
        for key in lost:
            kept = node.pop(key, None)
            if kept is not None and self._why_not():
                node[key] = kept

    def _halves(
        self,
        items: list[Any],
        put: Callable[[Any], None],
        take: Callable[[Any], None],
        single: Callable[[Any, str], None],
        path: str,
    ) -> None:
        """Put all items where they pass together; `single` gets those that do not pass by themselves, and the reason."""
        if not items:
            return
        for item in items:
            put(item)
        why = self._why_not()
        if not why:
            return
        for item in items:
            take(item)
        if self._budget.spent:
            self._note(path, why)
        elif len(items) == 1:
            single(items[0], why)
        else:
            middle = len(items) // 2
            self._halves(items[:middle], put, take, single, path)
            self._halves(items[middle:], put, take, single, path)

    def _why_not(self) -> str:
        self._budget.spend()
        return TOO_LONG if self._budget.spent else self._fits(self.holder["root"])

    def _note(self, path: str, why: str) -> None:
        fault = Fault(path if len(path) <= _PATH_CHARS else f"...{path[-_PATH_CHARS:]}", why[:_WHY_CHARS])
        if len(self.faults) < _MOST_FAULTS and fault not in self.faults:
            self.faults.append(fault)
        if self._first:
            self._budget.end()


class _Place(NamedTuple):
    """A schema in a schema: where it goes, what it is, its path in words. last: its turn comes behind what refers to it."""

    holder: Any
    key: Any
    part: object
    path: str
    last: bool = False


def _skeleton(key: str, value: object) -> object:
    """A keyword's value with {} for each schema in it, and one for all branches of a union."""
    if key in _NAMED and isinstance(value, dict):
        return {name: {} for name in value}
    if (key in _LISTED or key == "items") and isinstance(value, list):
        return [{} for _ in value]
    if key in _UNIONS and isinstance(value, list):
        return [{} for _ in value[:1]]
    return {} if key in _SINGLE and isinstance(value, dict) else value


def _inside(node: dict[str, Any], part: dict[str, Any], path: str) -> Iterator[_Place]:
    """The schemas of `part` whose keywords are in `node`, but not the branches of unions."""
    for key, value in part.items():
        if key not in node:
            continue
        here = f"{path}.{key}" if path else key
        if key in _NAMED and isinstance(value, dict):
            last = key in ("$defs", "definitions")
            yield from (_Place(node[key], name, one, f"{here}.{name}", last) for name, one in value.items())
        elif (key in _LISTED or key == "items") and isinstance(value, list):
            yield from (_Place(node[key], i, one, f"{here}[{i}]") for i, one in enumerate(value))
        elif key in _SINGLE and isinstance(value, dict):
            yield _Place(node, key, value, here)

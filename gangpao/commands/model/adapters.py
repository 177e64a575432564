"""What --adapter says to a server: a name in front of a path and its scale."""

from __future__ import annotations

from collections.abc import Iterable

from gangpao.formats.adapters.typed import split_scale
from gangpao.serve.models import AdapterFile


def served(given: Iterable[str] | None, base: str, taken: Iterable[str]) -> dict[str, AdapterFile]:
    """--adapter NAME=PATH[:SCALE] of a server, for its first model. taken: names that there are. Raises ValueError."""
    found: dict[str, AdapterFile] = {}
    for one in given or ():
        name, equals, rest = one.partition("=")
        if not equals or not name or not rest:
            raise ValueError(f"--adapter {one}: write NAME=PATH, or NAME=PATH:SCALE; clients ask for NAME as a model")
        if name in found or name in taken:
            raise ValueError(f"--adapter {one}: a model is called {name} already; take another name")
        path, scale = split_scale(rest)
        found[name] = AdapterFile(base, path, scale)
    return found

"""What --adapter says: a PEFT folder or a GGUF file, with a scale behind a colon, and for a server a name in front."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gangpao.serve.models import AdapterFile


def split_scale(text: str) -> tuple[Path, float]:
    """PATH[:SCALE]. What exists as it stands is a path, colons and all; so is an ending that is no number."""
    whole = Path(text).expanduser()
    path, colon, scale = text.rpartition(":")
    if whole.exists() or not colon or not path:
        return whole, 1.0
    try:
        return Path(path).expanduser(), float(scale)
    except ValueError:
        return whole, 1.0


def chosen(given: Iterable[str] | None) -> dict[str, tuple[Path, float]]:
    """--adapter PATH[:SCALE] of a command that answers: name -> file and scale. Raises ValueError for one that is given twice."""
    found: dict[str, tuple[Path, float]] = {}
    for one in given or ():
        path, scale = split_scale(one)
        if str(path) in found:
            raise ValueError(f"--adapter {one}: {path} is given twice; give it once with the sum of the scales")
        found[str(path)] = path, scale
    return found


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

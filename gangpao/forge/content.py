"""What a stage depends on, by content: configurations as values, files and folders as hashes.

A comment or an empty line changes nothing; another value does. Where a configuration names a file or a folder, or files by a
pattern, their content counts, and another TOML counts as its own values. Times and names of files do not.

What it gives up: a value written out that equals its default counts as a change.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from gangpao.atomic import read_json, write_json
from gangpao.config import merge, parse_override, read_toml
from gangpao.pull.staging import sha256_of

# None of it changes results beyond what a repeated run may: where, how often, in how many threads.
_FREE = frozenset({"threads", "save", "cost_profile", "tensorboard", "peak_tflops", "workers"})
_MOST_FILES = 10_000


class Hashes:
    """sha256 of files, remembered by name, size and time of change in a file, so that large ones are read once."""

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = read_json(memory) if memory is not None and memory.is_file() else {}

    def of(self, path: Path) -> str:
        """Of a file, or of all files in a folder with their names. Raises ValueError for a folder of too many files."""
        before = dict(self._known)
        found = self._file(path) if path.is_file() else self._folder(path)
        if self._memory is not None and self._known != before:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._memory, self._known)
        return found

    def _folder(self, path: Path) -> str:
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if len(files) > _MOST_FILES:
            raise ValueError(f"{path}: {len(files):,} files, too many to be sure that none of them changed; name files")
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.relative_to(path).as_posix()} {self._file(file)}\n".encode())
        return digest.hexdigest()

    def _file(self, path: Path) -> str:
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if known is None or known[:3] != mark:
            known = self._known[str(path)] = [*mark, sha256_of(path)]
        return str(known[3])


def values_of(
    config: str | Mapping[str, Any], overrides: Iterable[str], hashes: Hashes, *, without: Iterable[str] = ()
) -> Any:
    """A configuration (a file, or its tables) with its overrides as a value that stands for all that it says.

    without: keys at its top that are told otherwise.
    """
    left = _FREE | set(without)
    told = dict(config) if isinstance(config, Mapping) else read_toml(Path(config))
    here = Path() if isinstance(config, Mapping) else Path(config).parent
    found = {key: _content(value, here, hashes) for key, value in told.items() if key not in left}
    for text in overrides:
        typed = {key: _content(value, Path(), hashes) for key, value in parse_override(text).items() if key not in left}
        found = merge(found, typed)
    return found


def _content(value: Any, here: Path, hashes: Hashes) -> Any:
    if isinstance(value, Mapping):
        return {key: _content(one, here, hashes) for key, one in value.items()}
    if isinstance(value, list):
        return [_content(one, here, hashes) for one in value]
    path = path_in(value, here)
    if path is None:
        files = matches_in(value, here)
        return {"named": value.partition("#")[2], "sha256": [hashes.of(one) for one in files]} if files else value
    if path.suffix == ".toml":
        return values_of(str(path), (), hashes)
    return {"sha256": hashes.of(path)}


def path_in(value: Any, here: Path) -> Path | None:
    """The file or folder that a value of a configuration names from `here`. A word without a slash and a dot names none, whatever
    lies there: "full" is a method."""
    if not _may_be_path(value):
        return None
    path = here / Path(value).expanduser()
    return path if path.exists() else None


def matches_in(value: Any, here: Path) -> list[Path]:
    """The files that a pattern names from `here`, in order; of FILE.json#NAME, data sets that lie beside it, the folder."""
    if not _may_be_path(value):
        return []
    base, cut, _ = value.partition("#")
    if cut:
        path = here / Path(base).expanduser()
        return [path.parent] if path.is_file() else []
    found = glob.glob(str(here / Path(value).expanduser()), recursive=True) if "*" in value else []
    return sorted(path for path in map(Path, found) if path.is_file())


def _may_be_path(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and ("/" in value or "." in value) and "\n" not in value and len(value) <= 1024


def key_of(*parts: Any) -> str:
    """16 hexadecimal digits of plain data."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

"""A Hugging Face folder as a model to talk with: exported to GGUF on first use, found again as long as nothing changed.

The key is what decides the file: the text of the small files, name, size and time of the weights (whose bytes would take as
long to hash as to export), the type, and the version of this package. An export lies under the folder's own place in the
cache, so that a new checkpoint at the same path takes the place of the old one. Finding one needs no torch. Of a model that sees
the encoder of pictures lies beside the file, where it is found as with any other.

What it gives up: weights that were replaced by others of the same size and time are not seen.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gangpao
from gangpao import catalog
from gangpao.atomic import locked

Progress = Callable[[int, int], None]

_FORM = 3  # raise it when an export of the same folder becomes another file
_WEIGHTS = (".safetensors", ".bin")
_SMALL = (".json", ".jinja", ".model", ".txt")
_BUSY = "another gangpao is exporting this checkpoint; try again when it is done"


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether this is a Hugging Face folder: one with a config.json."""
    return (Path(path) / "config.json").is_file()


def cached_export(folder: str | os.PathLike[str], progress: Progress | None = None, *, kind: str = "Q8_0") -> Path:
    """The .gguf file of a Hugging Face folder, from the cache or written now; progress(done, total) as in gguf.export.

    Raises ValueError when it is no checkpoint, has no GGUF form, or another process is exporting it; ImportError without
    the extra `lab` if it must be written.
    """
    source = Path(folder).expanduser().resolve()
    if not is_checkpoint(source):
        raise ValueError(
            f"{folder}: not a checkpoint: there is no config.json; give a Hugging Face folder or a .gguf file"
        )
    place = exports_dir() / hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
    target = place / _key(source, kind) / f"{_name(source)}.gguf"
    if target.is_file():
        return target
    with locked(place, busy=_BUSY):
        if not target.is_file():  # written since we looked
            _write(source, target, kind, progress)
    return target


def exports_dir() -> Path:
    """Where exports are kept, beside the store of models."""
    return catalog.models_dir().with_name("exports")


def _write(source: Path, target: Path, kind: str, progress: Progress | None) -> None:
    if progress:
        progress(0, 1)  # what takes long begins now: torch's import, then reading
    from gangpao.deploy import pair  # needs torch

    for old in target.parent.parent.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    target.parent.mkdir(parents=True)
    pair.export(source, target, kind, progress=progress)


def _name(source: Path) -> str:
    """What the model is called: the run's name for RUN/export."""
    name = source.parent.name if source.name == "export" and source.parent.name else source.name
    return name or "model"


def _key(source: Path, kind: str) -> str:
    files: list[tuple[object, ...]] = []
    for path in sorted(source.iterdir()):
        if path.suffix in _WEIGHTS:
            state = path.stat()
            files.append((path.name, state.st_size, state.st_mtime_ns))
        elif path.suffix in _SMALL and path.is_file():
            files.append((path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
    described = json.dumps([_FORM, gangpao.__version__, kind, files])
    return hashlib.sha256(described.encode()).hexdigest()[:16]

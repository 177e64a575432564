"""The store of packed weights: `packed/` beside the models, a file of panels and a record for each.

A file belongs to weights by what they are: the model file's size, time and header, the first and last bytes of every tensor, how it
was loaded, and how this version packs (a small matrix of every type is packed and hashed, so no version number can be forgotten).
It is mapped, not read: its pages come as they are needed and leave where memory is short. What is damaged, cut off or of another
version is not used, and goes.

Of what is longest unused goes first what the budget has no room for. What it gives up: a model file that was changed in the middle
of a tensor, in place and with its old time.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gangpao import atomic, catalog, kernels
from gangpao.formats.gguf import GGUF
from gangpao.units import show_bytes

log = logging.getLogger("gangpao.engine")
_END = 4096  # bytes behind the panels, so that no kernel looks behind the file
_SAMPLE, _SAMPLES = 4096, 64
_EDGE = 2048  # bytes at either end of a tensor that belong to its identity
_FREE = 1_000_000_000  # bytes of the disk that stay free


def folder() -> Path:
    """Where packed weights lie."""
    return catalog.models_dir().with_name("packed")


class PackedStore:
    """See the module. budget: bytes of all files together."""

    def __init__(self, budget: int) -> None:
        self.budget = budget

    def fill(self, arena: kernels.Arena, gguf: GGUF, *, float32: bool = False) -> int:
        """Let the arena hand out what is kept of these weights; how many bytes that is, 0 where nothing is or it is damaged."""
        panels = folder() / f"{identity(gguf, float32=float32)}.panels"
        record = _record(panels)
        size: int = record["bytes"] if isinstance(record.get("bytes"), int) else -1
        try:
            with panels.open("rb") as file:
                whole = size > 0 and os.fstat(file.fileno()).st_size == size + _END
                if not whole or record.get("sample") != _sample(panels, size):
                    raise ValueError("damaged")
                arena.fill(file.fileno(), size + _END)
            os.utime(_record_path(panels))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            log.warning("%s is damaged and goes; the weights are packed again", panels)
            _remove(panels)
            return 0
        return size

    def keep(self, arena: kernels.Arena, gguf: GGUF, *, float32: bool = False) -> bool:
        """Write down what the arena handed out for these weights, where budget and disk have room; whether it was written."""
        size = arena.nbytes + _END
        root = folder()
        root.mkdir(parents=True, exist_ok=True)
        self._make_room(size)
        if size > self.budget or shutil.disk_usage(root).free < size + _FREE:
            log.warning("packed weights take %s, for which there is no room: they are not kept", show_bytes(size))
            return False
        panels = root / f"{identity(gguf, float32=float32)}.panels"
        try:
            with atomic.new_file(panels) as temporary, temporary.open("wb") as file:
                for piece in arena.pieces():
                    file.write(piece.data)
                file.write(bytes(_END))
            record = {
                "bytes": arena.nbytes, "sample": _sample(panels, arena.nbytes), "sources": [str(p) for p in gguf.paths],
            }  # fmt: skip
            atomic.write_json(_record_path(panels), record)
        except OSError as error:
            log.warning("packed weights were not kept: %s", error)
            _remove(panels)
            return False
        return True

    def drop(self, gguf: GGUF, *, float32: bool = False) -> None:
        """Forget these weights."""
        _remove(folder() / f"{identity(gguf, float32=float32)}.panels")

    def _make_room(self, size: int) -> None:
        kept = sorted(_kept(), key=lambda panels: _record_path(panels).stat().st_mtime)
        total = sum(panels.stat().st_size for panels in kept)
        for panels in kept:
            if total + size <= self.budget:
                return
            total -= panels.stat().st_size
            _remove(panels)


def remove_of(gone: Callable[[Path], bool]) -> int:
    """Delete what is kept of model files for which gone(path) is true, and of those that are not there any more. Returns the bytes
    freed."""
    freed = 0
    for panels in list(_kept()):
        sources = [Path(str(source)) for source in _record(panels).get("sources", ())]
        if any(gone(source) or not source.exists() for source in sources):
            freed += panels.stat().st_size
            _remove(panels)
    return freed


def identity(gguf: GGUF, *, float32: bool = False) -> str:
    """A name that is another one for other weights, and for another way to pack them."""
    digest = hashlib.sha256(_layout())
    stats = [path.stat() for path in gguf.paths]
    tensors = [(t.name, t.shape, t.type, t.offset, t.part) for t in gguf.tensors.values()]
    digest.update(json.dumps([float32, [(s.st_size, s.st_mtime_ns) for s in stats], tensors]).encode())
    with gguf.path.open("rb") as file:
        digest.update(file.read(gguf.metadata_end))
    for name in gguf.tensors:
        flat = gguf.raw(name).reshape(-1)
        digest.update(flat[:_EDGE].tobytes() + flat[-_EDGE:].tobytes())
    return digest.hexdigest()[:32]


@functools.cache
def _layout() -> bytes:
    """How this version packs: a hash of what a small matrix of every type becomes."""
    digest = hashlib.sha256()
    rows, cols = 20, 512
    for name, block, size, *_ in kernels.weight_types():
        raw = np.random.default_rng(0).integers(0, 256, (rows, cols // block * size), dtype=np.uint8)
        for planes in (False, True):
            packed = kernels.pack(raw, name, rows, cols, None, kernels.Arena(), planes)
            digest.update(name.encode() + packed.bytes())
    return digest.digest()


def _sample(panels: Path, size: int) -> str:
    """A hash of stretches all over a file of panels."""
    digest = hashlib.sha256()
    with panels.open("rb") as file:
        for at in np.linspace(0, max(0, size - _SAMPLE), _SAMPLES).astype(int).tolist():
            file.seek(at)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _kept() -> Iterator[Path]:
    root = folder()
    yield from (path for path in (root.glob("*.panels") if root.is_dir() else ()) if _record_path(path).is_file())


def _record_path(panels: Path) -> Path:
    return panels.with_suffix(".json")


def _record(panels: Path) -> dict[str, Any]:
    try:
        record = json.loads(_record_path(panels).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # nothing kept, or not ours
        return {}
    return record if isinstance(record, dict) else {}


def _remove(panels: Path) -> None:
    _record_path(panels).unlink(missing_ok=True)
    panels.unlink(missing_ok=True)

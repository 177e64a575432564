"""Checkpoints of a run: written so that a crash at any moment leaves the old ones whole, and read only when every bit fits.

A checkpoint is a folder step-00000400 with safetensors files, state.json and manifest.json, which has the sha256 of every
other file. It is written under another name, brought to the disk (fsync), renamed, and the parent brought to the disk; a
folder with the right name is therefore complete. The hash is taken of the bytes in memory on their way out, so that a
disk that keeps something else is found out too.

Nothing here is pickled: tensors are safetensors, the rest is JSON. Sharded tensors are folders beside the files, into which
every rank writes its parts at once (gangpao.train.checkpoints.sharded).

What it gives up: the hash of sharded files is taken after they were written, from what the disk gives back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gangpao.atomic import sync
from gangpao.train.step.parallel import World, is_sharded

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8})")
_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Tensors = Mapping[str, Tensor]


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


class _Hashed:
    """A file that hashes what goes into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        self.hash.update(data)
        self.file.write(data)
        self.size += len(data)


def _write(path: Path, fill: Callable[[_Hashed], None]) -> dict[str, Any]:
    """Write a file to the disk; its line of the manifest."""
    with path.open("wb") as file:
        out = _Hashed(file)
        fill(out)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": out.hash.hexdigest(), "size": out.size}


def write_tensors(path: Path, tensors: Tensors) -> dict[str, Any]:
    """A safetensors file, tensor by tensor: a tensor on a GPU is in memory only while it is written."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def fill(out: _Hashed) -> None:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            out.write(flat.view(torch.uint8).numpy().data)

    return _write(path, fill)


def _write_json(path: Path, data: Any) -> dict[str, Any]:
    return _write(path, lambda out: out.write(json.dumps(data, indent=1, sort_keys=True).encode()))


def name_of(step: int) -> str:
    """Name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name)) if folder.is_dir() else []


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path}: not a checkpoint: its name would be {name_of(400)} or the like")
    return int(match[1])


def _sharded() -> ModuleType:
    """The module for parts: its import takes seconds, and most runs have none."""
    from gangpao.train.checkpoints import sharded

    return sharded


def save(
    folder: Path, step: int, tensors: Mapping[str, Tensors], record: Mapping[str, Any], world: World | None = None
) -> Path:
    """Write checkpoint `step`: `tensors` is file name (without suffix) -> tensors by name, `record` is JSON.

    Every rank calls this; rank 0 writes all but the parts of sharded tensors. A whole checkpoint of that name stays as it is.
    Raises OSError (disk full) with nothing changed, on all ranks when sharded parts failed, else on rank 0.
    """
    world = world or World()
    target = folder / name_of(step)
    staging = folder / f".tmp-{target.name}"
    split = {kind: {n: t for n, t in named.items() if is_sharded(t)} for kind, named in tensors.items()}
    parts = {kind: named for kind, named in split.items() if named}
    first = world.rank == 0
    there, failed = False, None
    if first:
        try:
            there = _prepare(folder, target, staging, parts)
        except OSError as error:
            failed = error
    if parts:
        there, stop = (bool(v) for v in world.sums([there, failed is not None]))
        if stop and failed is None:
            failed = OSError("rank 0 could not make the folder")
    if failed is not None:
        raise failed
    if there:
        return target
    try:
        for kind, named in parts.items():
            _sharded().write(staging / kind, named)
        if first:
            whole = {k: {n: t for n, t in named.items() if n not in split[k]} for k, named in tensors.items()}
            _finish(staging, target, {kind: named for kind, named in whole.items() if named}, dict(record))
    except BaseException:
        if first:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def _prepare(folder: Path, target: Path, staging: Path, parts: Mapping[str, Tensors]) -> bool:
    """Make room for what is to be written. True when a whole checkpoint of that name is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        try:
            verify(target)
            return True
        except Damaged:
            _remove(target)
    shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed; the lock says that it is gone
    staging.mkdir()
    for kind in parts:
        (staging / kind).mkdir()
    return False


def _finish(staging: Path, target: Path, tensors: Mapping[str, Tensors], record: dict[str, Any]) -> None:
    """Write what is whole, and the manifest of everything; then the checkpoint gets its name."""
    files = {name: _hashed(staging / name) for name in _files(staging)}
    for kind, named in tensors.items():
        files[f"{kind}.safetensors"] = write_tensors(staging / f"{kind}.safetensors", named)
    files[STATE] = _write_json(staging / STATE, record)
    _write_json(staging / MANIFEST, {"files": files, "format": FORMAT, "step": step_of(target)})
    for folder in (*(p for p in staging.iterdir() if p.is_dir()), staging):
        sync(folder)
    staging.rename(target)
    sync(target.parent)


def _files(folder: Path) -> set[str]:
    """All files below a folder, as the manifest names them."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def _hashed(path: Path) -> dict[str, Any]:
    """The line of the manifest for a file as it is on the disk."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": file.tell()}


def verify(path: Path) -> dict[str, Any]:
    """Read every byte and compare with the manifest, which is returned. Raises Damaged naming the file."""
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path / MANIFEST}: cannot be read ({error})") from error
    step = int(path.name[-8:]) if _NAME.fullmatch(path.name) else None
    # The text must be as we write it: a flipped bit that JSON does not mind is one all the same.
    if not isinstance(manifest, dict) or json.dumps(manifest, indent=1, sort_keys=True) != text:
        raise Damaged(f"{path / MANIFEST}: not a manifest as it was written")
    files = manifest.get("files")
    if (
        manifest.get("format") != FORMAT
        or manifest.get("step") != step
        or not isinstance(files, dict)
        or STATE not in files
    ):
        raise Damaged(
            f"{path / MANIFEST}: says format {manifest.get('format')!r:.20}, step {manifest.get('step')!r:.20}"
        )
    names = _files(path)
    if names != {*files, MANIFEST}:
        raise Damaged(f"{path}: has other files than its manifest: {', '.join(sorted(names ^ {*files, MANIFEST}))}")
    for name, line in files.items():
        try:
            found = _hashed(path / name)
        except OSError as error:
            raise Damaged(f"{path / name}: cannot be read ({error})") from error
        if found != line:
            raise Damaged(
                f"{path / name}: {found['size']} bytes do not have the hash in {MANIFEST}: the file is damaged"
            )
    return manifest


class Checkpoint:
    """A verified checkpoint: `record`, and tensors by file."""

    def __init__(self, path: Path) -> None:
        verify(path)
        self.path, self.step = path, step_of(path)
        self.record: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))

    def has(self, kind: str) -> bool:
        """Whether there are tensors of this kind."""
        return (self.path / f"{kind}.safetensors").is_file() or (self.path / kind).is_dir()

    def names(self, kind: str) -> list[str]:
        """Names of the tensors of a kind."""
        out: list[str] = []
        if (self.path / f"{kind}.safetensors").is_file():
            with safe_open(self.path / f"{kind}.safetensors", framework="pt") as file:
                out += file.keys()
        return out + (list(_sharded().shapes(self.path / kind)) if (self.path / kind).is_dir() else [])

    def tensors(self, kind: str, patterns: Tensors | None = None) -> dict[str, Tensor]:
        """Tensors of a kind, in memory of their own. Those that ranks wrote in parts are placed as the patterns of their
        names are, so that each rank reads its own part; without a pattern they are whole."""
        out: dict[str, Tensor] = {}
        try:
            if (self.path / f"{kind}.safetensors").is_file():
                with safe_open(self.path / f"{kind}.safetensors", framework="pt") as file:
                    out = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, no mapping
            if (self.path / kind).is_dir():
                out |= _sharded().read(self.path / kind, patterns or {})
        except (SafetensorError, OSError) as error:
            raise Damaged(f"{self.path}: {kind} cannot be read ({error})") from error
        return out


def latest(folder: Path, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint; `note` hears of damaged ones that were passed over. None where there are none.

    Raises Damaged when there are checkpoints and all are damaged: starting anew would be a decision.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return Checkpoint(path)
        except Damaged as error:
            note(f"{error}; trying the checkpoint before it")
    if found:
        raise Damaged(f"{folder}: all {len(found)} checkpoints are damaged; delete the folder to begin anew")
    return None


def prune(folder: Path, *, keep_last: int, protected: set[int]) -> None:
    """Delete all but the last ones and those of `protected` steps."""
    for path in checkpoints(folder)[:-keep_last]:
        if step_of(path) not in protected:
            _remove(path)


def _remove(path: Path) -> None:
    """Under another name first, so that half a checkpoint never has the name of a whole one."""
    grave = path.with_name(f".gone-{path.name}")
    shutil.rmtree(grave, ignore_errors=True)
    path.rename(grave)
    shutil.rmtree(grave)


def clean(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for path in folder.glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".gone-step-*"):
        shutil.rmtree(path, ignore_errors=True)

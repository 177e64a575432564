"""Where an unfinished pull lives, and how it becomes a model: hidden folder, small state files, one rename.

`models/.staging/NAME/LAYOUT/FILE` grows while bytes arrive; `LAYOUT` is how they arrive (ranges of one file, joined
parts, a copy), because half of one is no use to the other. Beside it a JSON file remembers what is there. When size
and hash are right, a record is written, everything is flushed, and the folder is renamed to `models/NAME`: whoever
looks sees nothing or all of it.

What it gives up: a power cut may leave a state that is ahead of the data; the hash notices, and the pull starts over.
"""

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gangpao import catalog
from gangpao.atomic import sync
from gangpao.progress import Progress
from gangpao.units import show_bytes

BLOCK = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PullError(ValueError):
    """The pull failed; the message says what happened and what to do."""


class SourceError(Exception):
    """One source did not deliver; the next one may. Carries what happened and the next step, for the user."""


class Stopped(Exception):
    """Somebody else failed, or Ctrl-C: end quietly. For threads of ours only."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a pull is, and how it cuts a file. Seconds and bytes."""

    connect_s: float = 10.0
    read_s: float = 30.0  # without a single byte
    window_s: float = 60.0  # a connection that brings less than min_bytes in this time has stalled
    min_bytes: int = 32_768
    attempts: int = 8  # in a row that bring less than min_bytes; a timeout counts double
    backoff_s: float = 0.5
    segment: int = 8 << 20
    part_s: float = 1800.0  # one wheel


@dataclass(slots=True)
class Work:
    """One pull: what, how, and how far."""

    name: str
    model: catalog.Entry
    progress: Progress
    jobs: int = catalog.DEFAULT_JOBS
    limits: Limits = Limits()
    unverified: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def folder(self, layout: str) -> Path:
        """The staging folder of one layout, made if need be."""
        folder = catalog.staging_of(self.name) / layout
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def state_file(self, layout: str, file: str) -> Path:
        """Where the state of one file is kept."""
        return catalog.staging_of(self.name) / f"{layout}-{file}.json"

    def check_space(self, need: int) -> None:
        """Raise PullError if the store's disk has less than `need` bytes (and a margin) free."""
        have = shutil.disk_usage(catalog.staging_of(self.name)).free
        if have < need + catalog.DISK_MARGIN:
            raise no_space(self.name, need + catalog.DISK_MARGIN, have)


def no_space(name: str, need: int | None, have: int) -> PullError:
    """The error for a full disk: need, have and the ways out."""
    wanted = f"{show_bytes(need)} more are needed and " if need is not None else ""
    others = [f"{other} ({show_bytes(catalog.size_of(path))})" for other, path in catalog.installed().items()]
    ways = [f"`gangpao rm` one of {', '.join(others)}"] if others else []
    models = catalog.load().models
    size = models[name].bytes if name in models else 0
    smaller = [other for other, m in models.items() if m.engine and 0 < m.bytes < size]
    if smaller:
        ways.append(f"a smaller model: {', '.join(smaller)}")
    ways.append("another disk: set GANGPAO_HOME to a folder there")
    return PullError(
        f"{name}: not enough disk in {catalog.models_dir()}: {wanted}{show_bytes(have)} are free. "
        f"Ways out: {'; '.join(ways)}. What was downloaded is kept"
    )


def load_state(path: Path) -> dict[str, Any]:
    """A state file, or nothing where it is missing or unreadable: then the work starts over."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # never written, cut off by a crash, or not ours
        return {}
    return state if isinstance(state, dict) else {}


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace a state file in one step."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(path)


def sha256_of(path: Path, report: Callable[[int], None] = lambda done: None) -> str:
    """Hash of a file, reporting bytes done."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            done += len(block)
            report(done)
    return digest.hexdigest()


def git_oid_of(path: Path) -> str:
    """Hash that git gives to a small file, which hubs announce for what is not large-file storage."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def publish(work: Work, layout: str, record: dict[str, Any]) -> Path:
    """Make a finished staging folder the model. `record` is kept in it. Returns the model's path."""
    source, target = work.folder(layout), catalog.folder_of(work.name)
    (source / catalog.RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in [*source.iterdir(), source]:
        sync(path)
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        old = catalog.staging_of(work.name) / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)
    sync(target.parent)
    shutil.rmtree(catalog.staging_of(work.name), ignore_errors=True)
    return target / work.model.file

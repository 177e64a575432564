"""Files and folders that appear whole or not at all, also when the machine dies in between.

The idea: write under a hidden name next to the target, flush everything to the disk, rename. A reader sees the old thing
or the new one. The hidden name is always the same, so that what a killed process left is found and replaced by the next.

What it gives up: two writers of one target at the same time; `locked` keeps the second one out of a folder.
"""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder to fill; it becomes `path` when the block ends well and is gone when it does not."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A hidden file to write; it takes the name `path` when the block ends well, and is gone when it does not."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished folder and give it its name, in place of what has that name now."""
    for inner in temporary.rglob("*"):
        sync(inner)
    sync(temporary)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, replaced in one step."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError naming the file when it cannot be read or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON: {error}") from error


def sync(path: Path) -> None:
    """Make sure a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_LOCK = ".lock"
BUSY = "another gangpao is working here; wait for it or choose another folder"


class Busy(ValueError):
    """Another process works in the folder."""


@contextmanager
def locked(folder: Path, busy: str = BUSY, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process; the system lets go when the process ends, however it ends.

    patience: seconds to try again in. Raises Busy, a ValueError which says `busy`, when another one has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + patience
    try:
        while not _taken(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= until:
                raise Busy(f"{folder}: {busy}")
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder now. Writes nothing, so that it may be asked of what one can only read."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _taken(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _taken(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True

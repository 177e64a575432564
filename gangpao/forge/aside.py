"""A stage put aside under old/NAME-KEY and taken back. A call that is killed in this loses nothing: the next one finishes it.

    old/NAME-KEY/NAME/        what the stage's commands wrote
    old/NAME-KEY/state.json   its record

What is put aside grows under a hidden name and gets its own when it is whole. The folder is moved, never copied, so a stage is in
one place or the other; which step a killed call came to is told by what lies where (`recover`).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gangpao.atomic import write_json
from gangpao.forge.record import OLD, Record, record_path

_STATE = "state.json"


def place(out: Path, name: str, key: str) -> Path:
    """Where a stage lies when it is put aside."""
    return out / OLD / f"{name}-{key}"


def put_aside(out: Path, record: Record) -> Path:
    """Move a stage that was begun out of the way, its folder and its record; where it lies now.

    One of the same key that lies there is replaced, unless it is done and this one is not: then this one is dropped.
    """
    kept, folder = place(out, record.name, record.key), out / record.name
    if not record.done and (known := _known(kept)) is not None and known.done:
        shutil.rmtree(folder, ignore_errors=True)
        record_path(out, record.name).unlink()
        return kept
    growing = _growing(kept)
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    write_json(growing / _STATE, record.json())
    if folder.exists():
        folder.rename(growing / record.name)
    else:
        (growing / record.name).mkdir()
    _finish(out, record.name, growing)
    return kept


def take_back(out: Path, name: str, key: str) -> Record | None:
    """A stage of this key as it was when it was put aside; None where none was."""
    kept = place(out, name, key)
    record = _known(kept)
    if record is None or not (kept / name).is_dir():
        return None
    shutil.rmtree(out / name, ignore_errors=True)  # without a record it is no stage
    (kept / name).rename(out / name)
    record.write(record_path(out, name))
    shutil.rmtree(kept)
    return record


def recover(out: Path, name: str) -> None:
    """Finish what a killed call was about to put aside or to take back of a stage."""
    for growing in sorted((out / OLD).glob(f".{name}-*.partial")):
        if (growing / name).is_dir():
            _finish(out, name, growing)
        else:  # killed before the folder was moved: the stage is where it was
            shutil.rmtree(growing)
    if record_path(out, name).is_file() or not (out / name).is_dir():
        return
    for kept in sorted((out / OLD).glob(f"{name}-*")):
        record = _known(kept)
        if record is not None and record.name == name and not (kept / name).exists():  # killed while it was taken back
            record.write(record_path(out, name))
            shutil.rmtree(kept)
            return


def _growing(kept: Path) -> Path:
    return kept.with_name(f".{kept.name}.partial")


def _known(kept: Path) -> Record | None:
    return Record.read(kept / _STATE)


def _finish(out: Path, name: str, growing: Path) -> None:
    """The folder has been moved: the record goes, and what was put aside gets its name."""
    record = _known(growing)
    assert record is not None
    record_path(out, name).unlink(missing_ok=True)
    kept = place(out, name, record.key)
    if kept.exists():
        shutil.rmtree(kept)
    growing.rename(kept)

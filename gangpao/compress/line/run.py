"""Steps one after the other in one folder, each resumable, each measured beside the model that all began with. Start reading here.

    RUN/run.json            what was told, which model it began with
    RUN/01-prune/ ...       a step: its model, what it keeps to go on from, and facts.json when it is done
    RUN/compare/            what every model says and loses (compare/)
    RUN/report.json, report.html

A step is done when its facts.json is there. It bears a fingerprint of the model that all began with and of all settings up to it; a
folder with another one is refused and never overwritten. Later steps may change: only they are done anew, once their folders are
gone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gangpao import cost, machine
from gangpao.atomic import locked, read_json, write_json
from gangpao.compress.line.config import CompressConfig, do_step
from gangpao.evaluate.results import sha256_of
from gangpao.train.run_file import RUN, check_folder
from gangpao.tune.base.load import base_files
from gangpao.units import show_bytes, show_seconds

FACTS, BEGUN = "facts.json", "begun.json"
BUSY = "another process compresses in this folder; wait for it, or choose another --out"


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is done: its folder, what it was told, its model, its facts, machine time of all calls."""

    folder: Path
    kind: str
    told: Mapping[str, Any]
    path: Path
    facts: Mapping[str, Any]
    seconds: float


def run_compression(
    config: CompressConfig, model: Path, out: Path, *, resume: bool = False, stream: TextIO | None = None
) -> list[Done]:
    """Take `model` (a folder or a .gguf file; what config.model means) through the steps in the folder `out`.

    Raises ValueError for a folder that holds another compression and as the steps do; step.Stopped when a signal ended one, and
    then the same call goes on.
    """
    check_folder(out, resume=resume)
    cost.get_profile(config.cost_profile)  # a wrong name is said before anything is done
    begun = sha256_of(base_files(model))
    prints = _fingerprints(begun, config)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, BUSY):
        _check_steps(config, out, prints)
        _write_run(config, model, out, begun)
        done: list[Done] = []
        source = model
        for number, (step, print_) in enumerate(zip(config.step, prints, strict=True), 1):
            one = _step(number, step, print_, source, model, out, stream, len(config.step))
            done.append(one)
            source = one.path
    return done


def folder_of(out: Path, number: int, kind: str) -> Path:
    """Where a step lies."""
    return out / f"{number:02d}-{kind}"


def _fingerprints(begun: str, config: CompressConfig) -> list[str]:
    """Of each step: what it depends on, all steps before it included."""
    out, chain = [], begun
    for step in config.step:
        told = json.dumps(step.model_dump(mode="json", exclude={"threads", "save", "cost_profile"}), sort_keys=True)
        chain = hashlib.sha256(f"{chain} {told}".encode()).hexdigest()
        out.append(chain)
    return out


def _check_steps(config: CompressConfig, out: Path, prints: Sequence[str]) -> None:
    """Raises ValueError for a folder of a step that was told something else, or that no step is for: nothing is overwritten."""
    folders = {
        folder_of(out, i, step.kind): print_
        for i, (step, print_) in enumerate(zip(config.step, prints, strict=True), 1)
    }
    for found in sorted(out.glob("[0-9][0-9]-*")):
        begun = found / BEGUN
        if found not in folders:
            raise ValueError(f"{found}: no step of this compression; give another --out, or delete it: rm -r {found}")
        if begun.is_file() and read_json(begun).get("fingerprint") != folders[found]:
            raise ValueError(
                f"{found} was made with other settings, or from another model: take the change back, give another --out, or delete "
                f"this step and those behind it: rm -r {found}"
            )


def _write_run(config: CompressConfig, model: Path, out: Path, begun: str) -> None:
    write_json(
        out / RUN,
        {
            "config": config.model_dump(mode="json"),
            "data": {},
            "model": str(model),
            "sha256": begun,
            "git": machine.git_commit(),
        },
    )


def _step(
    number: int, step: Any, print_: str, source: Path, original: Path, out: Path, stream: TextIO | None, of: int
) -> Done:  # fmt: skip
    folder = folder_of(out, number, step.kind)
    told = step.model_dump(mode="json", exclude={"kind"}, exclude_defaults=True)
    name = f"step {number} of {of}, {step.kind}"
    if (folder / FACTS).is_file():
        known = read_json(folder / FACTS)
        _say(stream, f"{name}: done already ({folder})")
        return Done(folder, step.kind, told, folder / known["path"], known["facts"], known["seconds"])
    folder.mkdir(exist_ok=True)
    before = read_json(folder / BEGUN)["seconds"] if (folder / BEGUN).is_file() else 0.0
    write_json(folder / BEGUN, {"fingerprint": print_, "seconds": before})
    _say(stream, f"{name}: from {source} to {folder}")
    clock = time.monotonic()
    try:
        result = do_step(step, source, original, folder, stream)
    finally:
        seconds = before + time.monotonic() - clock
        write_json(folder / BEGUN, {"fingerprint": print_, "seconds": seconds})
    path = result.path.relative_to(folder)
    write_json(folder / FACTS, {"path": str(path), "facts": dict(result.facts), "seconds": seconds})
    for left in ("budget", "rounding"):  # what a step went on from, and only that
        shutil.rmtree(folder / left, ignore_errors=True)
    _say(stream, f"{name}: {show_bytes(size_of(result.path))} in {show_seconds(seconds)}")
    return Done(folder, step.kind, told, result.path, result.facts, seconds)


def size_of(model: Path) -> int:
    """Bytes of the files that a model's weights are in."""
    return sum(file.stat().st_size for file in base_files(model))


def _say(stream: TextIO | None, text: str) -> None:
    if stream is not None:
        print(text, file=stream, flush=True)

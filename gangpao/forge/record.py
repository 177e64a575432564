"""What a line leaves in its folder: how it was told last, and a record of each stage that was begun."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import gangpao
from gangpao import machine
from gangpao.atomic import read_json, write_json
from gangpao.forge.config import ForgeConfig
from gangpao.forge.stages.stage import Product

LINE, STATE, LOG, OLD = "forge.json", "state", "log", "old"


@functools.cache
def made_by() -> dict[str, Any]:
    """Which gangpao works here, on which machine."""
    return {
        "gangpao": gangpao.__version__, "commit": machine.git_commit(), "machine": machine.cpu_name(),
        "cores": machine.physical_cores(),
    }  # fmt: skip


def record_path(out: Path, name: str) -> Path:
    """Where the record of a stage lies."""
    return out / STATE / f"{name}.json"


def log_path(out: Path, name: str) -> Path:
    """Where all lies that a stage's commands said."""
    return out / LOG / f"{name}.log"


@dataclass(slots=True)
class Record:
    """A stage as it stands in state/NAME.json. seconds: of all calls that ended; since: when the call began that runs or was
    killed; made_by: the gangpao and the machine that ended it."""

    name: str
    key: str
    done: bool = False
    seconds: float = 0.0
    begun: str = ""
    ended: str = ""
    since: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    products: dict[str, Product] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """What is known of a stage; None where nothing is."""
        if not path.is_file():
            return None
        told = read_json(path)
        products = {kind: Product(**one) for kind, one in told.pop("products").items()}
        return cls(**told, products=products)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.json())

    def spent(self, out: Path, *, runs: bool = False) -> float:
        """Seconds of all calls, one that was killed until its log was touched last. runs: one is running now."""
        if not self.since:
            return self.seconds
        begun = datetime.fromisoformat(self.since).timestamp()
        last = time.time() if runs else _changed(log_path(out, self.name), begun)
        return self.seconds + max(0.0, last - begun)


def _changed(path: Path, otherwise: float) -> float:
    """When a file was last written to."""
    return path.stat().st_mtime if path.is_file() else otherwise


def follow(out: Path) -> None:
    """Let all records of a line say where its folder is now, if it was moved or copied since the last call."""
    was = read_json(out / LINE).get("out") if (out / LINE).is_file() else None
    if isinstance(was, str) and was != str(out):
        for path in [*sorted((out / STATE).glob("*.json")), *sorted((out / OLD).glob("*/*.json"))]:
            write_json(path, _rebased(read_json(path), was, str(out)))


def _rebased(value: Any, was: str, now: str) -> Any:
    """The same with paths below one folder below another; keys are paths, too, in what is remembered of hashes."""
    if isinstance(value, Mapping):
        return {_rebased(key, was, now): _rebased(one, was, now) for key, one in value.items()}
    if isinstance(value, list):
        return [_rebased(one, was, now) for one in value]
    if isinstance(value, str) and (value == was or value.startswith(f"{was}/")) and not value.startswith(f"{now}/"):
        return now + value[len(was) :]
    return value


@dataclass(frozen=True, slots=True)
class Line:
    """All that is known of a line: as it was told, and the records of its stages, done or not, in their order."""

    out: Path
    told: Mapping[str, Any]
    config: ForgeConfig
    records: Mapping[str, Record]

    def facts(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Facts of a kind by the stages that have them."""
        for name, record in self.records.items():
            if kind in record.facts:
                yield name, record.facts[kind]


def read_line(out: Path) -> Line:
    """What lies in the folder of a line. Raises ValueError where none was begun."""
    if not (out / LINE).is_file():
        raise ValueError(f"{out}: no line was begun here; begin one: gangpao forge FILE.toml --out {out}")
    told = read_json(out / LINE)
    config = ForgeConfig.model_validate(told["config"])
    records = {name: Record.read(record_path(out, name)) for name in config.stages()}
    return Line(out, told, config, {name: record for name, record in records.items() if record is not None})

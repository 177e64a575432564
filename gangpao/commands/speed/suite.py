"""`gangpao bench --suite`: models against each other over context lengths and batch sizes, each sample taken in turns.

    round 1: model A, all cells; model B, all cells    round 2: A, B    ...    so that what changes on the machine meets all alike
    a cell: one prompt of `context` tokens read and an answer written behind it; then `batch` of them written at once

One model is in memory at a time, so a model of any size that fits alone can take part, and the memory of each is its own. A cell
that a model or the memory cannot hold is left out with its reason. What it gives up: a load between two turns, and no quiet is
waited for; what others did with the processors meanwhile stands beside every row.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gangpao
from gangpao import atomic, catalog, kernels, machine
from gangpao.commands.model import find, loading
from gangpao.commands.show import examine
from gangpao.commands.speed import sample, table
from gangpao.engine.cache import bytes_needed
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.journal import Journal, key_of
from gangpao.options import option
from gangpao.units import show_seconds

ALONE = 0  # the batch of the sample that reads a prompt and writes one answer, without a scheduler
DECODE_WEIGHT = (
    4  # a token that is written takes about so many times as long as one that is read; for the time left only
)


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What a suite measures."""

    suite: bool = option(False, "Compare models, context lengths and batch sizes, in turns.")
    contexts: str = option("512,2048", "With --suite: tokens of the prompts, separated by commas.")
    batches: str = option("1,4,8", "With --suite: answers at once, separated by commas.")
    out: Path | None = option(None, "With --suite: folder of samples to go on from, of suite.md and suite.json.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure in one round."""

    model: str
    context: int
    batch: int

    def key(self, number: int) -> str:
        """Of its sample of one round in the journal."""
        return key_of(self.model, self.context, self.batch, number)

    def weight(self, decode_tokens: int) -> int:
        """About how long it takes, in tokens of a prompt."""
        return max(1, self.batch) * (self.context + DECODE_WEIGHT * decode_tokens)


def numbers(text: str, flag: str, most: int) -> list[int]:
    """Whole numbers from 1 to `most`, ascending, each once. Raises ValueError naming the option."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"{flag} {text!r:.60}: write whole numbers with commas, for example 1,4,8") from None
    if not 1 <= found[0] <= found[-1] <= most:
        raise ValueError(f"{flag} {text!r:.60}: each is between 1 and {most}")
    return found


def run(
    models: Sequence[str], suite: SuiteOptions, options: EngineOptions, *, decode_tokens: int, repeat: int
) -> dict[str, Any]:
    """Measure what is missing, print the table, and return it as data (table.summary). Raises ValueError for what cannot be."""
    contexts = numbers(suite.contexts, "--contexts", 1_000_000)
    batches = numbers(suite.batches, "--batches", 256)
    if suite.out is not None and suite.out.is_file():
        raise ValueError(f"--out {suite.out} is a file; name a folder")
    files = dict(find.find_model(model) for model in models)
    if len(files) < len(models):
        raise ValueError(f"a model is named twice: {', '.join(models)}; name each once")
    kernels.set_num_threads(options.threads or machine.physical_cores())
    facts = {name: file_facts(name, path) for name, path in files.items()}
    cells = {
        name: [Cell(name, c, b) for c in contexts for b in (ALONE, *batches) if c + decode_tokens <= limit_of(facts[name])]
        for name in files
    }  # fmt: skip
    left_out = [
        f"{name}, {c} tokens: the model knows {limit_of(facts[name])} positions"
        for name in files for c in contexts if c + decode_tokens > limit_of(facts[name])
    ]  # fmt: skip
    what = conditions(facts, options, decode_tokens)
    with _folder(suite.out) as folder, Journal(folder, what) as journal:
        work = _Work(files, cells, journal, options, decode_tokens, repeat)
        left_out += work.measure()
        found = table.summary(work.samples(), what, left_out)
        text = table.markdown(found)
        atomic.write_json(folder / "suite.json", found)
        with atomic.new_file(folder / "suite.md") as new:
            new.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps(found, ensure_ascii=False))
    return found


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where the samples go: --out, or a folder that is gone at the end."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="gangpao-suite-") as name:
        yield Path(name)


def conditions(facts: dict[str, dict[str, Any]], options: EngineOptions, decode_tokens: int) -> dict[str, Any]:
    """What samples have in common that may be compared: models, settings, machine and code."""
    return {
        "models": facts,
        "decode_tokens": decode_tokens,
        "kv": options.kv,
        "threads": kernels.num_threads(),
        "cpu": machine.cpu_name(),
        "cores": machine.physical_cores(),
        "memory_bytes": machine.total_memory(),
        "kernels": kernels.describe(),
        "gangpao": gangpao.__version__,
        "commit": machine.git_commit(),
    }


def limit_of(facts: dict[str, Any]) -> int:
    """Positions that a model knows."""
    return int(facts["context_length"])


def file_facts(name: str, path: Path) -> dict[str, Any]:
    """What tells a file from another one of its name; its type as the catalog says, else the most frequent one."""
    found, entry = examine(str(path)), catalog.load().models.get(name)
    kind = (entry.quantization if entry else "") or next(iter(found["types"]), "")
    names = ("bytes", "parameters", "architecture", "context_length")
    return {"file": path.name, "type": kind, **{key: found[key] for key in names}}


@dataclass(slots=True)
class _Work:
    """What is to be measured, by model, and where the samples are."""

    files: dict[str, Path]
    cells: dict[str, list[Cell]]
    journal: Journal
    options: EngineOptions
    decode_tokens: int
    repeat: int

    def samples(self) -> list[dict[str, Any]]:
        """What has been measured of it so far."""
        every = (cell.key(n) for n in range(self.repeat) for cells in self.cells.values() for cell in cells)
        return [found for key in every if (found := self.journal.get(key)) is not None]

    def turns(self) -> Iterator[tuple[int, list[Cell]]]:
        """(round, cells of one model without a sample) in the order in which they are measured."""
        for number in range(self.repeat):
            for every in self.cells.values():
                missing = [cell for cell in every if self.journal.get(cell.key(number)) is None]
                if missing:
                    yield number, missing

    def measure(self) -> list[str]:
        """Take all samples that are missing, with the time left on stderr.

        A model that cannot be loaded is left out; the reasons are returned.
        """
        cannot: dict[str, str] = {}
        turns = list(self.turns())
        left = sum(self._weight(missing) for _, missing in turns)
        if self.journal.resumed:
            more = sum(len(missing) for _, missing in turns)
            find.say(f"{self.journal.path}: {self.journal.resumed} samples are there, {more} are missing")
        done, start = 0, time.monotonic()
        for number, missing in turns:
            name = missing[0].model
            left -= self._weight(missing)
            if name in cannot:
                continue
            try:
                engine = self._load(missing)
            except ValueError as error:
                cannot[name] = str(error)
                find.say(f"{name} is left out: {error}")
                continue
            for at, cell in enumerate(missing):
                found = measure(engine, cell, self.decode_tokens)
                place = {"model": name, "context": cell.context, "batch": cell.batch, "round": number}
                self.journal.put(cell.key(number), place | found)
                done += self._weight([cell])
                seconds = (time.monotonic() - start) * (left + self._weight(missing[at + 1 :])) / done
                said = f"round {number + 1} of {self.repeat}: {name}, {_said(cell, found)}"
                find.say(f"{said}; {show_seconds(seconds)} left")
            del engine
            gc.collect()
        return [f"{name}: {reason}" for name, reason in cannot.items()]

    def _weight(self, cells: Sequence[Cell]) -> int:
        return sum(cell.weight(self.decode_tokens) for cell in cells)

    def _load(self, cells: Sequence[Cell]) -> Engine:
        context = max(cell.context for cell in cells) + self.decode_tokens
        path = str(self.files[cells[0].model])
        engine = loading.load_engine(path, options=replace(self.options, context=context))
        sample.warm_up(engine)
        return engine


def measure(engine: Engine, cell: Cell, decode_tokens: int) -> dict[str, Any]:
    """One sample: speeds, bytes of memory, and what others did meanwhile; or why it cannot be taken."""
    watch = machine.Watch()
    if cell.batch == ALONE:
        prefill, decode = sample.alone(engine, sample.random_ids(engine, cell.context), decode_tokens)
        found: dict[str, Any] = {"prefill_tps": prefill, "decode_tps": decode}
        found["gb_per_s"] = engine.model.bytes_per_token * decode / 1e9
    else:
        tokens = sample.pool_tokens(cell.context, cell.batch, decode_tokens)
        need, have = bytes_needed(engine.model.config, tokens, engine.kv_dtype), machine.available_memory()
        if need > have:
            return {"left_out": f"the cache needs {need / 1e6:,.0f} MB and {have / 1e6:,.0f} MB are available"}
        found = {}
        found["batch_tps"], found["cache_bytes"] = sample.together(engine, cell.context, cell.batch, decode_tokens)
    busy = watch.read()
    return {
        **found,
        "rss_mb": machine.rss_mb(),
        "others_cpus": busy.others,
        "steal": busy.steal,
        "quiet": busy.is_quiet,
    }


def _said(cell: Cell, found: dict[str, Any]) -> str:
    if "left_out" in found:
        return f"{cell.context} tokens, {cell.batch} at once: left out, {found['left_out']}"
    if cell.batch == ALONE:
        return f"{cell.context} tokens read at {found['prefill_tps']:.1f}, written at {found['decode_tps']:.1f} tok/s"
    return f"{cell.context} tokens, {cell.batch} at once: {found['batch_tps']:.1f} tok/s"

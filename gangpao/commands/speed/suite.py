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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gangpao
from gangpao import atomic, catalog, kernels, machine
from gangpao.commands.model import find, loading
from gangpao.commands.show import examine
from gangpao.commands.speed import sample, table
from gangpao.commands.speed.samples import Samples
from gangpao.engine.cache import bytes_needed
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
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
    out: Path | None = option(None, "With --suite: file of samples (JSON lines) to go on from; FILE.md has the table.")


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure in one round."""

    model: str
    context: int
    batch: int

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
    if suite.out is not None and suite.out.suffix != ".jsonl":
        raise ValueError(
            f"--out {suite.out}: samples are JSON lines, name a .jsonl file; the table goes beside it as .md"
        )
    files = dict(find.find_model(model) for model in models)
    if len(files) < len(models):
        raise ValueError(f"a model is named twice: {', '.join(models)}; name each once")
    kernels.set_num_threads(options.threads or machine.physical_cores())
    facts = {name: _facts(name, path) for name, path in files.items()}
    with Samples(suite.out, conditions(facts, options, decode_tokens)) as samples:
        cells = {
            name: [Cell(name, c, b) for c in contexts for b in (ALONE, *batches) if c + decode_tokens <= limit_of(facts[name])]
            for name in files
        }  # fmt: skip
        left_out = _measure(files, cells, samples, options, decode_tokens, repeat)
        left_out += [
            f"{name}, {c} tokens: the model knows {limit_of(facts[name])} positions"
            for name in files for c in contexts if c + decode_tokens > limit_of(facts[name])
        ]  # fmt: skip
        found = table.summary(list(samples.by_key.values()), samples.conditions, left_out)
    text = table.markdown(found)
    if suite.out is not None:
        with atomic.new_file(suite.out.with_suffix(".md")) as new:
            new.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps(found, ensure_ascii=False))
    return found


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


def _facts(name: str, path: Path) -> dict[str, Any]:
    """What tells a file from another one of its name; its type as the catalog says, else the most frequent one."""
    found, entry = examine(str(path)), catalog.load().models.get(name)
    kind = (entry.quantization if entry else "") or next(iter(found["types"]), "")
    names = ("bytes", "parameters", "architecture", "context_length")
    return {"file": path.name, "type": kind, **{key: found[key] for key in names}}


def _measure(
    files: dict[str, Path],
    cells: dict[str, list[Cell]],
    samples: Samples,
    options: EngineOptions,
    decode_tokens: int,
    repeat: int,
) -> list[str]:
    """All samples that are not there yet, round by round and model by model, with the time left on stderr.

    A model that cannot be loaded is left out; the reasons are returned.
    """
    cannot: dict[str, str] = {}
    turns = list(_turns(cells, samples, repeat))
    total = sum(cell.weight(decode_tokens) for _, missing in turns for cell in missing)
    done, start = 0, time.monotonic()
    if samples.by_key and samples.path:
        find.say(
            f"{samples.path}: {len(samples.by_key)} samples are there, {sum(len(m) for _, m in turns)} are missing"
        )
    for number, missing in turns:
        name = missing[0].model
        if name in cannot:
            continue
        context = max(cell.context for cell in missing) + decode_tokens
        try:
            engine = loading.load_engine(str(files[name]), options=replace(options, context=context))
        except ValueError as error:
            cannot[name] = str(error)
            total -= sum(cell.weight(decode_tokens) for _, later in turns if later[0].model == name for cell in later)
            find.say(f"{name} is left out: {error}")
            continue
        sample.warm_up(engine)
        for cell in missing:
            found = measure(engine, cell, decode_tokens)
            samples.add({"model": name, "context": cell.context, "batch": cell.batch, "round": number, **found})
            done += cell.weight(decode_tokens)
            left = (time.monotonic() - start) * (total - done) / done
            find.say(f"round {number + 1} of {repeat}: {name}, {_said(cell, found)}; {show_seconds(left)} left")
        del engine
        gc.collect()
    return [f"{name}: {reason}" for name, reason in cannot.items()]


def _turns(cells: dict[str, list[Cell]], samples: Samples, repeat: int) -> Iterator[tuple[int, list[Cell]]]:
    """(round, cells of one model without a sample) in the order in which they are measured."""
    for number in range(repeat):
        for name, every in cells.items():
            missing = [c for c in every if (name, c.context, c.batch, number) not in samples.by_key]
            if missing:
                yield number, missing


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

"""What drafts are worth here: the cost of more rows in a step, and a real answer with and without drafts.

An answer to one question says little about others: benchmarks/speculation.py asks many, by class.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gangpao.commands.speed.sample import random_ids
from gangpao.engine.cache import PAGE
from gangpao.engine.generate import Engine

ROWS = (2, 4, 8, 16)
QUESTION = "Write a Python function that merges overlapping intervals, with type hints, a docstring and three examples."


@dataclass(frozen=True, slots=True)
class Worth:
    """Tokens a second of decoding the same answer without and with drafts, and what was drafted and right."""

    plain_tps: float
    tps: float
    drafted: int
    accepted: int


def row_costs(engine: Engine, repeat: int, rows: Sequence[int] = ROWS) -> dict[int, float]:
    """What a step of so many rows takes, in steps of one row, behind a page of context."""
    cache = engine.model.new_cache(PAGE + max(rows), engine.kv_dtype)
    ids = random_ids(engine, PAGE + max(rows))
    engine.model.forward(ids[:PAGE], cache)
    seconds: dict[int, list[float]] = {n: [] for n in (1, *rows)}
    for _ in range(1 + 3 * repeat):
        for n, found in seconds.items():
            start = time.perf_counter()
            engine.model.forward(ids[PAGE : PAGE + n], cache, all_logits=True)
            found.append(time.perf_counter() - start)
            cache.truncate(PAGE)
    return {n: statistics.median(seconds[n][1:]) / statistics.median(seconds[1][1:]) for n in rows}


def worth(engine: Engine, tokens: int, repeat: int) -> Worth:
    """A greedy answer of so many tokens at most, in turn without and with drafts; medians. Without, a draft head reads nothing."""
    ids = engine.prompt_with([{"role": "user", "content": QUESTION}])
    params = engine.recommended(temperature=0, max_tokens=min(tokens, engine.context - len(ids) - 1))
    found: dict[bool, list[float]] = {False: [], True: []}
    drafted, accepted, reader = 0, 0, engine.model.reader
    for _ in range(repeat):
        for speculate, speeds in found.items():
            engine.model.reader = reader if speculate else None
            generation = engine.generate(ids, params, stop=engine.template.stop, speculate=speculate, pool=False)
            for _ in generation:
                pass
            speeds.append(generation.stats.decode_tps)
        drafted, accepted = generation.stats.drafted, generation.stats.accepted
    return Worth(statistics.median(found[False]), statistics.median(found[True]), drafted, accepted)

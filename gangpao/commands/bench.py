"""`gangpao bench`: how fast a model reads and writes here, and how close that is to what the memory gives.

Prefill runs --prompt-tokens ids through an empty cache; decode then adds one token at a time behind them. Both are
repeated, interleaved, and reported as medians, because a shared machine is noisy; what others did with the processors
meanwhile is told. GB/s counts the weights a decode step
reads; mbu is that over the read bandwidth measured in the same run, with the same threads.

The last line of stdout is one JSON object.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np
import typer

from gangpao import machine
from gangpao.commands import options as opt
from gangpao.commands.model import loading
from gangpao.commands.terminal import screen
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.options import Fields, command_of

PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=1, max=1_000_000, help="Tokens to prefill.")]
DecodeTokens = Annotated[int, typer.Option("--decode-tokens", min=1, max=100_000, help="Tokens to decode after them.")]
Repeat = Annotated[int, typer.Option("--repeat", min=1, max=100, help="Runs to take the median of.")]


@dataclass(frozen=True, slots=True)
class Result:
    """tok/s, weight GB/s (1e9 bytes) and its share of the read bandwidth, resident MB (1e6), seconds to load, and what others
    did meanwhile: processors in use (None: unknown), share of time stolen by the host, load."""

    prefill_tps: float
    decode_tps: float
    gb_per_s: float
    mbu: float
    rss_mb: float
    load_s: float
    others_cpus: float | None
    steal: float
    load_1m: float


@command_of()
def bench(
    model: opt.ModelName,
    prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 64,
    repeat: Repeat = 3,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads", "kv"))],
) -> None:
    """Measure prefill and decode speed against the memory's bandwidth."""
    from gangpao import kernels

    engine = loading.load_engine(model, options=replace(options, context=prompt_tokens + decode_tokens))
    watch = machine.Watch()
    before = kernels.read_bandwidth()
    prefill, decode = measure(engine, prompt_tokens, decode_tokens, repeat)
    bandwidth = max(before, kernels.read_bandwidth())
    busy = watch.read()
    gb_per_s = engine.model.bytes_per_token * statistics.median(decode) / 1e9
    result = Result(
        prefill_tps=statistics.median(prefill),
        decode_tps=statistics.median(decode),
        gb_per_s=gb_per_s,
        mbu=gb_per_s / bandwidth,
        rss_mb=machine.rss_mb(),
        load_s=engine.load_s,
        others_cpus=busy.others,
        steal=busy.steal,
        load_1m=busy.load,
    )
    rows = [
        ("model", f"{engine.name}, {engine.model.nbytes / 1e6:,.0f} MB of weights, KV {options.kv}"),
        ("kernels", screen.kernels_line()),
        (f"prefill {prompt_tokens}", f"{result.prefill_tps:.1f} tok/s   ({_all(prefill)})"),
        (f"decode {decode_tokens}", f"{result.decode_tps:.1f} tok/s   ({_all(decode)})"),
        ("weights", f"{gb_per_s:.1f} GB/s, {result.mbu:.0%} of the {bandwidth:.1f} GB/s this memory gives"),
        ("memory", f"{result.rss_mb:,.0f} MB resident"),
        ("load", f"{result.load_s:.2f} s"),
        ("machine", str(busy)),
    ]
    for name, value in rows:
        print(f"{name:12} {value}")
    print(json.dumps({k: v if v is None else round(v, 4) for k, v in asdict(result).items()}))


def measure(engine: Engine, prompt_tokens: int, decode_tokens: int, repeat: int) -> tuple[list[float], list[float]]:
    """Prefill and decode tok/s of every repetition. The ids are random but always the same."""
    ids = np.random.default_rng(0).integers(0, engine.model.config.vocab_size, prompt_tokens).tolist()
    # Pages are touched, caches warmed and clocks raised by a run that does not count.
    engine.model.forward(ids[:32], engine.model.new_cache(engine.context, engine.kv_dtype))
    prefill, decode = [], []
    for _ in range(repeat):
        cache = engine.model.new_cache(engine.context, engine.kv_dtype)
        start = time.perf_counter()
        logits = engine.model.forward(ids, cache)
        middle = time.perf_counter()
        for _ in range(decode_tokens):
            logits = engine.model.forward([int(logits.argmax())], cache)
        end = time.perf_counter()
        prefill.append(prompt_tokens / (middle - start))
        decode.append(decode_tokens / (end - middle))
    return prefill, decode


def _all(values: list[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in values)

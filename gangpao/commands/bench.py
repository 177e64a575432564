"""`gangpao bench`: how fast a model reads and writes here, and how close that is to what the memory gives.

Prefill runs --prompt-tokens ids through an empty cache; decode then adds one token at a time behind them. Both are
repeated, interleaved, and reported as medians, because a shared machine is noisy; what others did with the processors
meanwhile is told. GB/s counts the weights a decode step
reads; mbu is that over the read bandwidth measured in the same run, with the same threads.

--suite compares models, context lengths and batch sizes instead (speed/suite.py).

The last line of stdout is one JSON object.
"""

import json
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import typer

from gangpao import machine
from gangpao.commands import options as opt
from gangpao.commands.model import loading
from gangpao.commands.speed import sample
from gangpao.commands.speed.suite import SuiteOptions
from gangpao.commands.speed.suite import run as run_suite
from gangpao.commands.terminal import screen
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.options import Fields, command_of

Models = Annotated[list[str] | None, typer.Option("-m", "--model", help=f"{opt.MODEL}; repeatable with --suite.")]
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
    name: opt.Named = None,
    model: Models = None,
    prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 64,
    repeat: Repeat = 3,
    adapter: opt.Adapters = None,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads", "kv"))],
    suite: SuiteOptions,
) -> None:
    """Measure prefill and decode speed against the memory's bandwidth."""
    models = [*([name] if name else []), *(model or [])]
    if suite.suite:
        if not models:
            raise ValueError("--suite compares models: name them, -m A -m B")
        if adapter:
            raise ValueError("--suite measures models without adapters; leave --suite or --adapter out")
        run_suite(models, suite, options, decode_tokens=decode_tokens, repeat=repeat)
        return
    if len(models) != 1:
        named = f"{len(models)} models, and one is measured" if models else "no model is named"
        raise ValueError(f"{named}: gangpao bench MODEL, or gangpao bench --suite -m A -m B to compare")
    one(models[0], prompt_tokens, decode_tokens, repeat, options, adapter)


def one(
    model: str,
    prompt_tokens: int,
    decode_tokens: int,
    repeat: int,
    options: EngineOptions,
    adapter: list[str] | None = None,
) -> None:
    """Measure one model, with its adapters, and print it."""
    from gangpao import kernels

    engine = loading.load_engine(
        model, options=replace(options, context=prompt_tokens + decode_tokens), adapters=adapter
    )
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
        *[
            ("adapter", f"{name}, {engine.model.adapters[name].nbytes / 1e6:,.1f} MB")
            for name in engine.model.adapters.names()
        ],
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
    ids = sample.random_ids(engine, prompt_tokens)
    sample.warm_up(engine)
    both = [sample.alone(engine, ids, decode_tokens) for _ in range(repeat)]
    return [prefill for prefill, _ in both], [decode for _, decode in both]


def _all(values: list[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in values)

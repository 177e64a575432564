"""`gangpao bench`: how fast a model reads and writes here, and how close that is to what the memory gives.

Prefill runs --prompt-tokens ids through an empty cache; decode then adds one token at a time behind them. Both are
repeated, interleaved, and reported as medians, because a shared machine is noisy; what others did with the processors
meanwhile is told. GB/s counts the weights a decode step
reads; mbu is that over the read bandwidth measured in the same run, with the same threads.

--profile shows where the time of a token goes instead (speed/profile.py).

--suite compares models, context lengths and batch sizes instead (speed/suite.py).
--share adds a row for the table of devices (speed/row.py).

A model that sees also encodes a piece of a picture. The last line of stdout is one JSON object.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import typer

from gangpao import machine
from gangpao.commands import options as opt
from gangpao.commands.model import find, loading
from gangpao.commands.speed import profile as profiles
from gangpao.commands.speed import row, sample
from gangpao.commands.speed.drafts import Worth, row_costs, worth
from gangpao.commands.speed.suite import SuiteOptions, file_facts
from gangpao.commands.speed.suite import run as run_suite
from gangpao.commands.terminal import screen
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.options import Fields, command_of

Models = Annotated[list[str] | None, typer.Option("-m", "--model", help=f"{opt.MODEL}; repeatable with --suite.")]
PromptTokens = Annotated[int, typer.Option("--prompt-tokens", min=1, max=1_000_000, help="Tokens to prefill.")]
DecodeTokens = Annotated[int, typer.Option("--decode-tokens", min=1, max=100_000, help="Tokens to decode after them.")]
Repeat = Annotated[int, typer.Option("--repeat", min=1, max=100, help="Runs to take the median of.")]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Show where the time of a token goes: every kernel, its bandwidth, what is none."),
]
Share = Annotated[
    bool,
    typer.Option("--share", help="Also print a row for the table of devices, Markdown and JSON. Nothing is sent."),
]


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
    load_1m: float | None
    picture_s: float | None = None  # to encode a piece of a picture
    rows: dict[int, float] = field(default_factory=dict)  # of a step -> what it takes, in steps of one row
    drafts: Worth | None = None  # of an answer, where a draft model was named


@command_of()
def bench(
    name: opt.Named = None,
    model: Models = None,
    prompt_tokens: PromptTokens = 512,
    decode_tokens: DecodeTokens = 64,
    repeat: Repeat = 3,
    profile: Profile = False,
    adapter: opt.Adapters = None,
    mmproj: opt.Mmproj = None,
    share: Share = False,
    *,
    options: Annotated[EngineOptions, Fields(EngineOptions, ("threads", "kv", "sparse", "draft"))],
    suite: SuiteOptions,
) -> None:
    """Measure prefill and decode speed against the memory's bandwidth."""
    models = [*([name] if name else []), *(model or [])]
    if suite.suite:
        if not models:
            raise ValueError("--suite compares models: name them, -m A -m B")
        if adapter or profile:
            raise ValueError(
                "--suite measures models without adapters and kernels; leave --suite, or --adapter and --profile, out"
            )
        if share:
            raise ValueError("--share is a row of one model; leave --suite out")
        run_suite(models, suite, options, decode_tokens=decode_tokens, repeat=repeat)
        return
    if len(models) != 1:
        named = f"{len(models)} models, and one is measured" if models else "no model is named"
        raise ValueError(f"{named}: gangpao bench MODEL, or gangpao bench --suite -m A -m B to compare")
    if profile:
        if share:
            raise ValueError("--share is a row of speeds, --profile of kernels: leave one of them out")
        _profile(models[0], prompt_tokens, decode_tokens, repeat, options, adapter)
        return
    one(models[0], prompt_tokens, decode_tokens, repeat, options, adapter, mmproj, share=share)


def one(
    model: str,
    prompt_tokens: int,
    decode_tokens: int,
    repeat: int,
    options: EngineOptions,
    adapter: list[str] | None = None,
    mmproj: str | None = None,
    *,
    share: bool = False,
) -> None:
    """Measure one model, with its adapters and what it sees with, and print it; share: with a row for the table of devices."""
    from gangpao import kernels

    least = 256 + decode_tokens if options.draft else 0  # for a question and its answer
    options = replace(options, context=max(least, prompt_tokens + decode_tokens))
    engine = loading.load_engine(model, options=options, adapters=adapter, mmproj=mmproj)
    watch = machine.Watch()
    before = kernels.read_bandwidth()
    prefill, decode = measure(engine, prompt_tokens, decode_tokens, repeat)
    bandwidth = max(before, kernels.read_bandwidth())
    looks = picture_seconds(engine, repeat)
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
        picture_s=statistics.median(looks) if looks else None,
        rows={n: round(cost, 3) for n, cost in row_costs(engine, repeat).items()},
        drafts=worth(engine, decode_tokens, repeat) if engine.speculation.draft else None,
    )
    told = f"{gb_per_s:.1f} GB/s, {result.mbu:.0%} of the {bandwidth:.1f} GB/s this memory gives"
    rows = [
        *_model_rows(engine),
        ("kernels", screen.kernels_line()),
        (f"prefill {prompt_tokens}", f"{result.prefill_tps:.1f} tok/s   ({_all(prefill)})"),
        (f"decode {decode_tokens}", f"{result.decode_tps:.1f} tok/s   ({_all(decode)})"),
        ("weights", told),
        *_draft_rows(engine, result),
        *_sight_rows(engine, looks),
        ("memory", f"{result.rss_mb:,.0f} MB resident"),
        ("load", f"{result.load_s:.2f} s"),
        ("machine", str(busy)),
    ]
    for name, value in rows:
        print(f"{name:12} {value}")
    figures = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(result).items()}
    if share:
        figures = _shared(engine.name, model, figures, options, prompt_tokens, decode_tokens, busy)
    print(json.dumps(figures, ensure_ascii=False))


def _model_rows(engine: Engine) -> list[tuple[str, str]]:
    """What is measured: the model and its adapters."""
    adapters = engine.model.adapters
    return [
        ("model", f"{engine.name}, {engine.model.nbytes / 1e6:,.0f} MB of weights, KV {engine.kv_dtype}"),
        *(("adapter", f"{name}, {adapters[name].nbytes / 1e6:,.1f} MB") for name in adapters.names()),
    ]


def _profile(
    model: str, prompt_tokens: int, decode_tokens: int, repeat: int, options: EngineOptions, adapter: list[str] | None
) -> None:
    """Measure where the time of one model goes, and print it."""
    context = prompt_tokens + decode_tokens + 2
    engine = loading.load_engine(model, options=replace(options, context=context), adapters=adapter)
    watch = machine.Watch()
    found = profiles.measure(engine, prompt_tokens, decode_tokens, repeat)
    print(f"{engine.name}, {engine.model.nbytes / 1e6:,.0f} MB of weights, KV {options.kv}; {screen.kernels_line()}")
    for line in profiles.lines(found):
        print(line)
    print(f"\nmachine: {watch.read()}")
    print(json.dumps(profiles.document(found)))


def _shared(
    name: str, model: str, figures: dict[str, Any], options: EngineOptions, prompt: int, decode: int, busy: machine.Busy
) -> dict[str, Any]:
    """Print the row for the table of devices; everything that is in it, as data."""
    what = {"name": name} | file_facts(name, find.find_model(model)[1])
    settings = {
        "prompt_tokens": prompt,
        "decode_tokens": decode,
        "kv": options.kv,
        "quiet": busy.is_quiet if busy.known else None,
    }
    found = row.facts(what, figures, settings)
    print(f"\n{row.markdown(found)}\n")
    return found


def measure(engine: Engine, prompt_tokens: int, decode_tokens: int, repeat: int) -> tuple[list[float], list[float]]:
    """Prefill and decode tok/s of every repetition. The ids are random but always the same."""
    ids = sample.random_ids(engine, prompt_tokens)
    sample.warm_up(engine)
    both = [sample.alone(engine, ids, decode_tokens) for _ in range(repeat)]
    return [prefill for prefill, _ in both], [decode for _, decode in both]


def picture_seconds(engine: Engine, repeat: int) -> list[float]:
    """Seconds to encode a piece of as many pixels as pieces have at most; empty where the model does not see."""
    if engine.seeing is None:
        return []
    from gangpao.images import slices

    sight, side = engine.seeing.sight, engine.seeing.sight.vision.slicing.resolution
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    (piece, *_) = slices.pieces(noise, sight.vision).pieces
    out = []
    for _ in range(repeat):
        start = time.perf_counter()
        sight.encode(piece)
        out.append(time.perf_counter() - start)
    return out


def _sight_rows(engine: Engine, seconds: list[float]) -> list[tuple[str, str]]:
    if engine.seeing is None:
        return []
    sight = engine.seeing.sight
    side = sight.vision.slicing.resolution
    return [
        ("sees", f"{sight.vision.name}, {sight.nbytes / 1e6:,.0f} MB of weights"),
        (f"look {side}", f"{statistics.median(seconds):.2f} s   ({', '.join(f'{s:.2f}' for s in seconds)}), one piece"),
    ]


def _draft_rows(engine: Engine, result: Result) -> list[tuple[str, str]]:
    """What more rows cost, the model that drafts, and what drafts are worth in an answer."""
    costs = ", ".join(f"{cost:.2f}" for cost in result.rows.values())
    rows = [("rows", f"a step of {', '.join(map(str, result.rows))} rows takes {costs} x one of 1 row")]
    draft, found = engine.speculation.draft, result.drafts
    if draft is None or found is None:
        return rows
    plain_s = engine.speculation.costs.plain_s
    share = draft.seconds((), plain_s).first / plain_s if plain_s else 0.0
    said = (
        f"{found.tps:.1f} tok/s, {found.plain_tps:.1f} without; {found.accepted} of {found.drafted} drafted were right"
    )
    return [
        *rows,
        ("draft", f"{draft.name}, {draft.nbytes / 1e6:,.0f} MB of weights, asking it takes {share:.2f} of a step"),
        ("drafted", f"{said} (one answer of code, greedy)"),
    ]


def _all(values: list[float]) -> str:
    return ", ".join(f"{v:.1f}" for v in values)

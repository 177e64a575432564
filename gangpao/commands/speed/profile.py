"""`gangpao bench --profile`: where the time of a token goes, kernel by kernel, against what this machine gives.

    kernels        every kernel by what it computes: calls, time, GB/s of weights (or keys and values), GMAC/s, and the share of the
                   roofline: the time that its bytes take at the read bandwidth, or its multiply-adds at the peak, over its own
    not kernels    the time of an answer that no kernel took: the forward pass in Python, choosing a token, making text of it

Bandwidth and peak are measured in the same run with the same threads. How much time is not kernels comes from runs in which only a
counter runs inside the kernels (two looks at the clock a call); which kernel took how much from others, in which each call is told
apart from outside. Without --profile there is neither.

What it gives up: the peak is that of byte products in vector registers, which AMX tiles exceed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from gangpao import kernels
from gangpao.commands.speed import sample
from gangpao.engine.cache import PAGE, page_bytes
from gangpao.engine.generate import Engine
from gangpao.engine.sample import GREEDY
from gangpao.engine.transformer import CHUNK, Transformer

_NOT_TIMED = ("count_time", "counted_time", "read_bandwidth", "multiply_add_peak")


@dataclass(slots=True)
class Row:
    """One kernel: calls, seconds, bytes that it has to read and multiply-adds (0 where they do not count), over a run."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    bytes: float = 0.0
    macs: float = 0.0


@dataclass(slots=True)
class Run:
    """tokens in wall seconds, of which `inside` were in kernels; forward: of the wall the forward pass, where that was told
    apart."""

    tokens: int
    wall: float
    inside: float
    forward: float | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def outside(self) -> float:
        """Share of the time that no kernel took."""
        return 1 - self.inside / self.wall if self.wall else 0.0


@dataclass(slots=True)
class Profile:
    """GB/s and GMAC/s of this machine, and the runs that are shown."""

    bandwidth: float
    peak: float
    decode: Run
    prefill: Run


def measure(engine: Engine, prompt_tokens: int, decode_tokens: int, repeat: int) -> Profile:
    """Decoding behind a prompt, and reading the prompt: of `repeat` runs each the median one."""
    ids = sample.random_ids(engine, prompt_tokens)
    sample.warm_up(engine)
    before = kernels.read_bandwidth()
    answers, passes, decodes, prefills, told = [], [], [], [], []
    for _ in range(repeat):
        answers.append(_answer(engine, ids, decode_tokens))
        prefill, decode = _forward(engine, ids, decode_tokens)
        prefills.append(prefill)
        passes.append(decode)
        with timed(engine.model) as rows:
            told.append(_told(engine, ids, decode_tokens, rows))
    decodes = [decode for _, decode in told]
    whole, one, each = _middle(answers), _middle(passes), _middle(decodes)
    whole.forward, whole.rows = one.wall / one.tokens * whole.tokens, each.rows
    reading = _middle(prefills)
    reading.rows = _middle([prefill for prefill, _ in told]).rows
    return Profile(max(before, kernels.read_bandwidth()), kernels.multiply_add_peak(), whole, reading)


def _middle(runs: Sequence[Run]) -> Run:
    return sorted(runs, key=lambda run: run.wall)[(len(runs) - 1) // 2]


def _answer(engine: Engine, ids: Sequence[int], tokens: int) -> Run:
    """An answer as a user gets it, from its first token on, without drafts."""
    never = dict.fromkeys((i for i in engine.tokenizer.end_ids if i < engine.model.config.vocab_size), -100.0)
    params = engine.recommended(seed=1, max_tokens=tokens + 1, logit_bias=never)
    generation = engine.generate(ids, params, speculate=False)
    next(generation)
    wall, steps = generation.stats.decode_s, generation.stats.decode_steps
    with _counted() as inside:
        for _ in generation:
            pass
        stats = generation.stats
        return Run(max(1, stats.decode_steps - steps), stats.decode_s - wall, inside())


def _forward(engine: Engine, ids: Sequence[int], tokens: int) -> tuple[Run, Run]:
    """Forward passes alone: of the prompt, and of one token after the other."""
    cache = engine.model.new_cache(engine.context, engine.kv_dtype)
    with _counted() as inside:
        start = time.perf_counter()
        logits = engine.model.forward(ids, cache)
        prefill = Run(len(ids), time.perf_counter() - start, inside())
    wall = 0.0
    with _counted() as inside:
        for _ in range(tokens):
            best = int(logits.argmax())
            start = time.perf_counter()
            logits = engine.model.forward([best], cache, need=GREEDY)
            wall += time.perf_counter() - start
        return prefill, Run(tokens, wall, inside())


def _told(engine: Engine, ids: Sequence[int], tokens: int, rows: Timer) -> tuple[Run, Run]:
    """The same with every kernel call told apart."""
    model, cache = engine.model, engine.model.new_cache(engine.context, engine.kv_dtype)
    start = time.perf_counter()
    logits = model.forward(ids, cache)
    prefill = Run(len(ids), time.perf_counter() - start, 0.0, rows=rows.take(engine, 0, len(ids)))
    start = time.perf_counter()
    for _ in range(tokens):
        logits = model.forward([int(logits.argmax())], cache, need=GREEDY)
    return prefill, Run(tokens, time.perf_counter() - start, 0.0, rows=rows.take(engine, len(ids), tokens, at_once=1))


@contextmanager
def _counted() -> Iterator[Callable[[], float]]:
    """Time in kernels is counted while the context is open; gives a function for the seconds so far."""
    kernels.count_time(True)
    try:
        yield lambda: kernels.counted_time()[0] / 1e9
    finally:
        kernels.count_time(False)


class Timer:
    """Kernel calls told apart: seconds inside each, by what it computes."""

    def __init__(self, model: Transformer) -> None:
        self._rows: dict[str, Row] = {}
        self._names = dict(_linears(model))

    def wrapped(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel, with its time noted."""
        count, names, rows = kernels.counted_time, self._names, self._rows
        linear, search = name == "linear", name == "linear_largest"

        def call(*args: Any, **options: Any) -> Any:
            before = count()[0]
            out = kernel(*args, **options)
            spent = count()[0] - before
            label = names.get(id(args[0]), name) if linear else "head" if search else name
            row = rows.get(label)
            if row is None:
                row = rows[label] = Row(label)
            row.calls += 1
            row.seconds += spent / 1e9
            if linear:
                row.bytes += args[0].nbytes
                row.macs += float(args[0].rows) * args[0].cols * args[1].n
            elif search:  # out is the number of panels with all bits
                row.bytes += args[0].bytes_of(out)
                row.macs += float(args[2].cols) * args[1].cols * args[1].n
            return out

        return call

    def take(self, engine: Engine, length: int, tokens: int, at_once: int = CHUNK) -> list[Row]:
        """The rows since the last call, the longest first, with what attention read: `tokens` ids behind `length` in steps of so
        many."""
        if (row := self._rows.get("attend")) is not None:
            row.bytes, row.macs = _attention(engine, length, tokens, at_once)
        found = sorted((row for row in self._rows.values() if row.seconds), key=lambda row: -row.seconds)
        self._rows.clear()
        return found


def _attention(engine: Engine, length: int, tokens: int, at_once: int) -> tuple[float, float]:
    """Bytes of keys and values that steps read at least, and multiply-adds with them; a window is not looked at."""
    c = engine.model.config
    a_position = page_bytes(c, engine.kv_dtype) / PAGE
    ends = [min(begin + at_once, tokens) for begin in range(0, tokens, at_once)]
    seen = tokens * length + tokens * (tokens + 1) / 2
    layers = c.num_hidden_layers - c.recurrent_layers
    return sum(length + end for end in ends) * a_position, 2.0 * c.num_attention_heads * c.head_dim * layers * seen


def _linears(model: Transformer) -> Iterator[tuple[int, str]]:
    """Linear layers by identity, and what each is called in its layer."""
    yield id(model.weights.head), "head"
    for layer in model.weights.layers:
        for part in (layer.mixer, *layer.mlps):
            for f in fields(part):
                if isinstance(getattr(part, f.name), kernels.Linear):
                    yield id(getattr(part, f.name)), f.name
        if layer.router is not None:
            yield id(layer.router), "router"


@contextmanager
def timed(model: Transformer) -> Iterator[Timer]:
    """Every kernel call is told apart while the context is open. The kernels of the process are replaced meanwhile, so nothing else
    may compute."""
    timer = Timer(model)
    kept = {name: getattr(kernels, name) for name in kernels.__all__ if name not in _NOT_TIMED}
    kept = {name: one for name, one in kept.items() if type(one) is type(kernels.linear)}
    held = {name: one for name, one in vars(model).items() if any(one is kernel for kernel in kept.values())}
    with _counted():
        try:
            for name, kernel in kept.items():
                setattr(kernels, name, timer.wrapped(name, kernel))
            for name, one in held.items():
                setattr(model, name, next(getattr(kernels, known) for known, kernel in kept.items() if kernel is one))
            yield timer
        finally:
            for name, kernel in kept.items():
                setattr(kernels, name, kernel)
            for name, one in held.items():
                setattr(model, name, one)


# --- shown


def lines(profile: Profile) -> Iterator[str]:
    """The profile as text."""
    yield f"this machine gives {profile.bandwidth:.1f} GB/s and {profile.peak:.0f} GMAC/s with {kernels.num_threads()} threads"
    for title, run in (("decode", profile.decode), ("prefill", profile.prefill)):
        yield ""
        each = run.wall / run.tokens
        yield f"{title}: {each * 1e3:.3f} ms a token ({1 / each:.1f} tok/s), {run.outside:.1%} of it not kernels"
        yield f"  {'kernel':14} {'calls':>7} {'us/token':>9} {'share':>6} {'GB/s':>6} {'GMAC/s':>7} {'roofline':>8}"
        for row in run.rows:
            yield _line(row, run, profile)
        outside = (run.wall - run.inside) / run.tokens
        yield f"  {'not kernels':14} {'':7} {outside * 1e6:9.1f} {run.outside:6.1%}"
        if run.forward is not None:
            rest = max(0.0, (run.wall - run.forward) / run.tokens)
            yield f"  {'  of it choosing and text':24} {rest * 1e6:7.1f} {rest / each:6.1%}"


def _line(row: Row, run: Run, profile: Profile) -> str:
    each, speed, macs = row.seconds / run.tokens, row.bytes / row.seconds / 1e9, row.macs / row.seconds / 1e9
    shown = f"{speed:6.1f} {macs:7.1f} {_roofline(row, profile):8.0%}" if row.macs else ""
    return f"  {row.name:14} {row.calls / run.tokens:7.2f} {each * 1e6:9.1f} {_share(row, run):6.1%} {shown}".rstrip()


def _share(row: Row, run: Run) -> float:
    """Of the run's time: of what its kernels took together as much as of what they took when told apart."""
    total = sum(one.seconds for one in run.rows)
    return row.seconds / total * run.inside / run.wall if total else 0.0


def _roofline(row: Row, profile: Profile) -> float:
    return max(row.bytes / profile.bandwidth, row.macs / profile.peak) / 1e9 / row.seconds


def document(profile: Profile) -> dict[str, Any]:
    """The profile as JSON."""
    out: dict[str, Any] = {"read_gb_per_s": round(profile.bandwidth, 2), "peak_gmac_per_s": round(profile.peak, 1)}
    for title, run in (("decode", profile.decode), ("prefill", profile.prefill)):
        out[title] = {
            "ms_per_token": round(run.wall / run.tokens * 1e3, 4),
            "not_kernels": round(run.outside, 4),
            "kernels": [
                {
                    "name": row.name, "calls_per_token": round(row.calls / run.tokens, 3),
                    "us_per_token": round(row.seconds / run.tokens * 1e6, 2), "share": round(_share(row, run), 4),
                    **({"gb_per_s": round(row.bytes / row.seconds / 1e9, 2), "gmac_per_s": round(row.macs / row.seconds / 1e9, 1),
                        "roofline": round(_roofline(row, profile), 4)} if row.macs else {}),
                }
                for row in run.rows
            ],
        }  # fmt: skip
    return out

"""Our training step against transformers' Trainer, and against the matrix products that it consists of.

Both sides train the same Llama from the same weights on the same rows, with the same batch, precision, AdamW, clipping and
number of threads, and must come to the same loss before and after the measured steps, or nothing is reported. Every sample
is a process of its own, ours and theirs in turn, taken again while others keep the machine busy. Trainer gets what a
careful person would give it (packed rows, SDPA, no logging, no cache) and the faster of torch's two AdamWs.

Then one step of ours is recorded: every matrix product with its shapes, strides and types. The products are replayed
alone, on tensors that lie as the step's did, between further steps: a step cannot be faster than they are. A profile says
where the rest goes. What it gives up: real text; ids are random, some frequent, most rare.

`python benchmarks/training.py` needs transformers and accelerate and half an hour on two cores. With --out it writes
results/training_<hardware>_<date>.md; the last line is JSON.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import engines
import numpy as np
import report
import torch
from against_llama import say
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gangpao import machine
from gangpao.data.tokens.pack import Batch
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.count import parameters
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.train.config import OptimizerConfig
from gangpao.train.loop import Job, Stage, Training
from gangpao.train.progress import Report
from gangpao.train.step.lanes import lanes_for
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Optimizer

ROOT = Path(__file__).resolve().parent.parent
SPEED_GOAL, SHARE_GOAL = 1.8, 0.7
LR, WEIGHT_DECAY, BETAS, EPS, CLIP = 1e-3, 0.1, (0.9, 0.95), 1e-8, 1.0
OPTIMS = ("adamw_torch_fused", "adamw_torch")
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mkldnn::_linear_pointwise"}
# Relative difference of the two losses: at the beginning, and after the last step.
TOLERANCES = {"fp32": (1e-5, 1e-3), "bf16": (2e-3, 1e-2)}
Times = list[float]


def _shape(vocab: int, width: int, ff: int, layers: int, heads: int, kv: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=ff, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=width // heads, max_position_embeddings=2048, initializer_range=0.02,
    )  # fmt: skip


SHAPES = {
    "20m": _shape(8192, 384, 1024, 11, 6, 2),
    "30m-32k": _shape(32_000, 384, 1024, 11, 6, 2),
    "tiny": _shape(512, 64, 128, 2, 2, 1),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What one child process does. side: gangpao, trainer or products. optim: Trainer's name of its AdamW."""

    side: str
    folder: str
    precision: str
    rows: int
    micro_rows: int
    seq_len: int
    warmup: int
    steps: int
    threads: int
    optim: str = OPTIMS[0]

    @property
    def tokens(self) -> int:
        """Of one optimizer step."""
        return self.rows * self.seq_len


def token_rows(work: Work) -> np.ndarray:
    """Ids of all steps, int64 [rows, T]. Low ids are frequent, so there is something to learn and losses can be compared."""
    vocab = ModelConfig.from_file(Path(work.folder) / "config.json").vocab_size
    count = (work.warmup + work.steps) * work.rows
    return (vocab * np.random.default_rng(1).random((count, work.seq_len)) ** 4).astype(np.int64)


class Memory:
    """The rows, as the loop wants them. transformers shifts labels itself, so the last id of a row has none here."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.at = rows, 0

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Batch:
        ids = self.rows[self.at : self.at + rows]
        self.at = (self.at + rows) % len(self.rows)
        labels = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
        return Batch(ids, labels, np.zeros_like(ids))


class Enough(Exception):
    """All steps are done; ends a run before it writes its last checkpoint, which is not what is measured."""


class Timed(Report):
    """The run's own report, which also keeps the seconds of every step; after each, `between(steps so far)` is free."""

    def __init__(self, folder: Path, steps: int, between: Callable[[int], None]) -> None:
        super().__init__(folder)
        self.times: Times = []
        self._steps, self._between = steps, between

    def step(self, step: int, stage: str, values: dict[str, float], tokens: int, seconds: float) -> None:
        super().step(step, stage, values, tokens, seconds)
        self.times.append(seconds)
        self._between(len(self.times))
        if len(self.times) == self._steps:
            raise Enough
        self.tick()


def train_ours(work: Work, steps: int, between: Callable[[int], None] = id) -> tuple[Times, list[float]]:
    """Seconds of every step, and the loss of the first rows before and after."""
    model = weights.load(work.folder, dtype=torch.float32)
    source = Memory(token_rows(work))
    objective = NextToken(dtype=torch.bfloat16 if work.precision == "bf16" else None)
    size = 4 * parameters(model.config).total  # of the gradients; the replay is of one pass, so without lanes
    lanes = lanes_for(work.threads, work.micro_rows, size, separable=work.side != "products")
    options = OptimizerConfig(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay=WEIGHT_DECAY, clip=CLIP)

    def loss() -> float:
        batch = Memory(source.rows).take(work.micro_rows)
        with torch.no_grad():
            return float(objective(model, batch, 1.0 / objective.measure(batch)[0]).loss)

    losses = [loss()]
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(Path(folder), steps, between)
        optimizer = Optimizer(model.named_parameters(), lambda name: rule_of(name, model.config), options)
        job = Job(
            Path(folder), model, optimizer, objective, [Stage("stable", steps + 1, lambda before: source)], clip=CLIP,
            learning_rate=lambda step: LR, rows=work.rows, micro_rows=work.micro_rows, report=timed, lanes=lanes,
        )  # fmt: skip
        with contextlib.suppress(Enough), contextlib.closing(lanes), contextlib.closing(timed):
            Training(job).fit()
    return timed.times, [*losses, loss()]


def train_theirs(work: Work, steps: int) -> tuple[Times, list[float]]:
    """The same with transformers.Trainer."""
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    model = LlamaForCausalLM.from_pretrained(work.folder, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    rows = torch.from_numpy(token_rows(work))
    bf16 = work.precision == "bf16"

    def loss() -> float:
        some = rows[: work.micro_rows]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return float(model(input_ids=some, labels=some).loss)

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.monotonic())

    losses = [loss()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=work.micro_rows,
            gradient_accumulation_steps=work.rows // work.micro_rows, bf16=bf16, use_cpu=True, optim=work.optim,
            learning_rate=LR, lr_scheduler_type="constant", weight_decay=WEIGHT_DECAY, adam_beta1=BETAS[0],
            adam_beta2=BETAS[1], adam_epsilon=EPS, max_grad_norm=CLIP, train_sampling_strategy="sequential",
            logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        packed = [{"input_ids": row, "labels": row} for row in rows]
        Trainer(model=model, args=arguments, train_dataset=packed, callbacks=[Clock()]).train()
    return [b - a for a, b in pairwise(ends)], [*losses, loss()]


@dataclass(frozen=True, slots=True)
class Call:
    """A recorded operation, ready to run again: tensors of the same layout, an output that exists already."""

    name: str
    operands: str
    flops: int
    again: Callable[[], Any]


class Recorder(TorchDispatchMode):
    """Keeps every matrix product and every attention that is computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Call] = []
        self.attention: list[Call] = []
        self._buffers: dict[Any, Tensor] = {}
        self._kept: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name.rstrip("_") in PRODUCTS:
            again, given = [self._buffer(a) for a in args], {k: self._buffer(v) for k, v in kwargs.items()}
            if not name.endswith("_") and "out" in func.overloadpacket.overloads() and "out" not in given:
                func, given = func.overloadpacket.out, given | {"out": self._buffer(out)}
            matrices = [a for a in args if isinstance(a, Tensor)][-2:]
            flops = 2 * out.numel() * matrices[0].shape[-1]
            self.products.append(Call(name, _layout(matrices), flops, lambda: func(*again, **given)))
        elif _known(name):
            # Its values matter (softmax of noise overflows), so one call of each kind is kept as it was.
            key = (name, _layout(args))
            copies = self._kept.setdefault(key, tuple(a.clone() if isinstance(a, Tensor) else a for a in args))
            self.attention.append(Call(name, key[1], 0, lambda: func(*copies, **kwargs)))
        return out

    def _buffer(self, value: Any) -> Any:
        """A tensor that stands for one of the step: what was in one place then is in one place now."""
        if not isinstance(value, Tensor):
            return value
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if key not in self._buffers:
            empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            self._buffers[key] = empty.normal_(std=0.02)
        return self._buffers[key]


def _layout(operands: Sequence[Any]) -> str:
    """Shapes, with T behind what lies transposed, and the type."""
    tensors = [a for a in operands if isinstance(a, Tensor)]
    turned = ["T" if a.ndim == 2 and a.stride(0) == 1 and a.stride(1) > 1 else "" for a in tensors]
    shapes = ["x".join(map(str, a.shape)) + t for a, t in zip(tensors, turned, strict=True)]
    return f"{' · '.join(shapes)} {str(tensors[0].dtype).removeprefix('torch.')}"


def replay(calls: Sequence[Call], seconds: dict[tuple[str, str], list[float]]) -> float:
    """Seconds of all calls, one after the other; also added to those of their kind."""
    start = before = time.perf_counter()
    for call in calls:
        call.again()
        now = time.perf_counter()
        seconds[call.name, call.operands].append(now - before)
        before = now
    return before - start


def _known(name: str) -> bool:
    return name.removeprefix("aten::").rstrip("_") in PRODUCTS or "attention" in name


def measure_products(work: Work) -> dict[str, Any]:
    """Steps with the replay between them; then a step under the profiler."""
    recorder, kinds = Recorder(), defaultdict[tuple[str, str], Times](list)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    last, passes = work.warmup + 1 + work.steps, list[Times]()

    def between(step: int) -> None:
        if step == work.warmup:
            recorder.__enter__()
        elif step == work.warmup + 1:
            recorder.__exit__(None, None, None)
            replay([*recorder.products, *recorder.attention], defaultdict(list))  # warm
        if work.warmup < step <= last:
            passes.append([replay(recorder.products, kinds), replay(recorder.attention, kinds)])
        if step == last:
            profile.start()
        elif step == last + 1:
            profile.stop()

    times, _ = train_ours(work, last + 1, between)
    config = ModelConfig.from_file(Path(work.folder) / "config.json")
    flops = sum(c.flops for c in recorder.products)
    assert flops > 5.9 * parameters(config).total * work.tokens, "there are products that this script does not know"
    # A step lies between two replays; it is compared with their mean.
    steps = times[work.warmup + 1 : last]
    rounds = [[t, (a + b) / 2, (c + d) / 2] for t, ((a, c), (b, d)) in zip(steps, pairwise(passes), strict=True)]
    flops_of = {(c.name, c.operands): c.flops for c in [*recorder.products, *recorder.attention]}
    table = []
    for key, seconds in kinds.items():
        count = len(seconds) // len(passes)
        table.append([": ".join(key), count, count * statistics.median(seconds) * 1e3, count * flops_of[key] / 1e9])
    events = [(e.key, e.count, e.self_cpu_time_total / 1e3) for e in profile.key_averages() if not _known(e.key)]
    return {"times": steps, "rounds": rounds, "gflop": flops / 1e9, "kinds": table, "profile": events}


def child(work: Work) -> dict[str, Any]:
    """What a child process prints."""
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    if work.side == "products":
        return measure_products(work)
    train = train_ours if work.side == "gangpao" else train_theirs
    times, losses = train(work, work.warmup + work.steps)
    return {"times": times[work.warmup :], "losses": losses}


Sample = dict[str, Any]  # what a child printed, with others, peak_bytes and tps (of its median step)


@dataclass(frozen=True, slots=True)
class Case:
    """Everything found out about one shape at one precision."""

    name: str
    work: Work
    optims: dict[str, float]
    samples: dict[str, list[Sample]]
    products: Sample

    def ratios(self) -> list[float]:  # ours / theirs, round by round
        pairs = zip(self.samples["gangpao"], self.samples["trainer"], strict=True)
        return [mine["tps"] / theirs["tps"] for mine, theirs in pairs]

    def shares(self, *, attention: bool = False) -> list[float]:
        return [(mm + (sdpa if attention else 0.0)) / step for step, mm, sdpa in self.products["rounds"]]


def sample(work: Work) -> Sample:
    """The answer of a child; another one while others are loud, and the quietest in the end."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(asdict(work))]
    runs: list[tuple[str, int, float]] = []
    while not runs or (runs[-1][2] > engines.QUIET and len(runs) < engines.ATTEMPTS):
        runs.append(engines.run(command))
    out, peak, others = min(runs, key=lambda r: r[2])
    found = json.loads(out.strip().splitlines()[-1])
    return {**found, "peak_bytes": peak, "others": others, "tps": work.tokens / statistics.median(found["times"])}


def same_work(ours: Sample, theirs: Sample, precision: str) -> None:
    """Raises ValueError when the losses part: then the two did not do the same."""
    for a, b, tolerance in zip(ours["losses"], theirs["losses"], TOLERANCES[precision], strict=True):
        if not abs(a - b) <= tolerance * abs(b):
            raise ValueError(f"{precision}: our loss is {a:.6f} and theirs {b:.6f}: this is not the same work")


def measure(name: str, work: Work, rounds: int) -> Case:
    """Their faster AdamW and the check, interleaved rounds, then the products."""
    first, found = sample(work), dict[str, float]()
    for optim in OPTIMS if rounds else ():
        theirs = sample(replace(work, side="trainer", optim=optim))
        same_work(first, theirs, work.precision)
        found[optim] = theirs["tps"]
        say(f"  trainer with {optim}: {theirs['tps']:,.0f} tok/s; losses {first['losses']} and {theirs['losses']}")
    rival = replace(work, side="trainer", optim=max(found, key=found.__getitem__, default=OPTIMS[0]))
    samples: dict[str, list[Sample]] = {"gangpao": [], "trainer": []}
    for i in range(rounds):
        for one in (work, rival):
            samples[one.side].append(sample(one))
        mine, theirs = (rows[-1] for rows in samples.values())
        same_work(mine, theirs, work.precision)
        say(f"  round {i + 1} of {rounds}: {mine['tps']:,.0f} and {theirs['tps']:,.0f} tok/s")
    case = Case(name, work, found, samples, sample(replace(work, side="products")))
    say(f"  products {statistics.median(case.shares()):.1%} of a step")
    return case


def markdown(cases: Sequence[Case]) -> str:
    """The whole report."""
    packages = ", ".join(f"{p} {report.version(p)}" for p in ("torch", "transformers", "accelerate"))
    about = {
        "date": date.today().isoformat(),
        "commit": report.commit(ROOT),
        "CPU": f"{report.cpu_name()}, {machine.physical_cores()} cores, as many threads on both sides",
        "packages": f"{packages}; torch computes with {torch.backends.cpu.get_cpu_capability()}",
    }
    lines = ["# A training step: ours, transformers' Trainer, and the products alone\n\n| | |\n|-|-|"]
    lines += [f"| {name} | {value} |" for name, value in about.items()]
    for case in cases:
        w, size = case.work, parameters(SHAPES[case.name]).total / 1e6
        lines += [
            f"\n## {case.name}, {w.precision}\n\n{size:.1f} M parameters; a step is {w.rows} rows of {w.seq_len} tokens, "
            f"{w.micro_rows} at a time; {w.warmup} steps to warm up, {w.steps} measured in every sample."
        ]
        lines += (speed_lines(case) if case.ratios() else []) + share_lines(case)
    return "\n".join(lines) + "\n"


def speed_lines(case: Case) -> list[str]:
    """Both sides, their ratio, and all samples."""
    lines = ["", "| side | tok/s (median) | quartiles | ms a step | peak MB | loss before, after |", "|-|-:|-|-:|-:|-|"]
    for side, rows in case.samples.items():
        low, middle, high = report.quartiles([s["tps"] for s in rows])
        peak, ms = max(s["peak_bytes"] for s in rows) / 1e6, case.work.tokens / middle * 1e3
        losses = ", ".join(f"{loss:.5f}" for loss in rows[-1]["losses"])
        lines.append(f"| {side} | {middle:,.0f} | {low:,.0f} to {high:,.0f} | {ms:,.0f} | {peak:,.0f} | {losses} |")
    low, middle, high = report.quartiles(case.ratios())
    tried = ", ".join(f"{name} {tps:,.0f}" for name, tps in case.optims.items())
    lines += [
        f"\n**{middle:.2f} x Trainer** (quartiles {low:.2f} to {high:.2f} over {len(case.ratios())} rounds; goal "
        f"{SPEED_GOAL}). Trainer's AdamW is the faster of {tried} tok/s.",
        "\nSamples in the order of the rounds; in brackets the share of the machine that others used.\n",
    ]
    for side, rows in case.samples.items():
        lines.append(f"- {side}: " + ", ".join(f"{s['tps']:,.0f} ({s['others']:.0%})" for s in rows))
    return lines


def share_lines(case: Case, top: int = 12) -> list[str]:
    """Products and attention of a step, and where the rest goes."""
    found, both = case.products, statistics.median(case.shares(attention=True))
    low, middle, high = report.quartiles(case.shares())
    step, products, attention = (statistics.median(column) * 1e3 for column in zip(*found["rounds"], strict=True))
    lines = [
        f"\n**Products: {middle:.0%} of a step** (quartiles {low:.1%} to {high:.1%} over {len(case.shares())} steps; goal "
        f"{SHARE_GOAL:.0%}): {products:,.0f} of {step:,.0f} ms, {found['gflop'] / products * 1e3:,.0f} GFLOP/s. With torch's "
        f"attention ({attention:,.0f} ms) {both:.0%}. Others used {found['others']:.0%} of the machine.",
        "\nThe longest of them, then the rest of a profiled step by torch's operations:\n",
        "| product or attention | times | ms | GFLOP/s |\n|-|-:|-:|-:|",
    ]
    for name, count, ms, gflop in sorted(found["kinds"], key=lambda k: -k[2])[:top]:
        lines.append(f"| {name} | {count} | {ms:,.1f} | {gflop / ms * 1e3:,.0f} |")
    lines += ["\n| operation | times | ms | share |\n|-|-:|-:|-:|"]
    for name, count, ms in sorted(found["profile"], key=lambda e: -e[2])[:top]:
        lines.append(f"| {name} | {count} | {ms:,.1f} | {ms / step:.1%} |")
    return lines


def summary(case: Case) -> dict[str, object]:
    """What a program wants to know of one case."""
    out: dict[str, object] = {}
    if ratios := case.ratios():
        low, middle, high = report.quartiles(ratios)
        out |= {side: round(statistics.median(s["tps"] for s in rows), 1) for side, rows in case.samples.items()}
        out |= {"ratio": round(middle, 3), "ratio_q1": round(low, 3), "ratio_q3": round(high, 3)}
    share, both = (statistics.median(case.shares(attention=a)) for a in (False, True))
    return out | {"products_share": round(share, 3), "products_attention_share": round(both, 3)}


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["20m", "30m-32k"], choices=SHAPES)
    parser.add_argument("--precisions", nargs="+", default=list(TOLERANCES), choices=TOLERANCES)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; 0: only the products")
    parser.add_argument("--steps", type=int, default=5, help="measured optimizer steps of a sample")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--rows", type=int, default=16, help="rows of a step")
    parser.add_argument("--micro-rows", type=int, default=8, help="rows of a forward pass")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a row")
    parser.add_argument("--out", action="store_true", help="write the report to benchmarks/results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the report, and the summary as one JSON line."""
    args = options(argv)
    if args.worker:
        print(json.dumps(child(Work(**json.loads(args.worker)))))
        return 0
    if args.rounds and (missing := [p for p in ("transformers", "accelerate") if find_spec(p) is None]):
        raise SystemExit(f"transformers' Trainer is the peer here: pip install {' '.join(missing)}")
    cases = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.shapes:
            model = Transformer.build(SHAPES[name], seed=1)
            folder = weights.save(Path(temporary) / name, model.config, weights.state(model))
            for precision in args.precisions:
                say(f"{name}, {precision}:")
                work = Work(
                    "gangpao", str(folder), precision, args.rows, args.micro_rows, args.seq_len, args.warmup, args.steps,
                    machine.physical_cores(),
                )  # fmt: skip
                cases.append(measure(name, work, args.rounds))
    text = markdown(cases)
    print(text)
    if args.out:
        path = ROOT / f"benchmarks/results/training_{report.hardware_slug()}_{date.today().isoformat()}.md"
        path.write_text(text, encoding="utf-8")
    print(json.dumps({f"{case.name} {case.work.precision}": summary(case) for case in cases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

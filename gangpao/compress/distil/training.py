"""A model trained towards its teacher in the one training loop: what distillation and quantization-aware training share.

    load student and teacher -> read the data -> (keep what the teacher says) -> objective -> gangpao/train/loop.py

In the folder of a step, `run/` is a run as everywhere: run.json, metrics.jsonl, checkpoints. A second call goes on from the last
checkpoint and computes the same bits; one that was told something else is refused by the names of what differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from gangpao import cost, machine
from gangpao.atomic import locked
from gangpao.compress.distil.config import TeachingConfig
from gangpao.compress.distil.inner import Projections, Taps, checked_pairs
from gangpao.compress.distil.objective import Distil, Heldout, InnerSpec
from gangpao.compress.distil.store import About, Store
from gangpao.compress.distil.teacher import Working, check_same_words
from gangpao.compress.prune.masks import keep_masks, read_masks
from gangpao.compress.step import Stopped
from gangpao.evaluate.results import sha256_of
from gangpao.model.count import flops_per_token
from gangpao.model.init import Rule, rule_of
from gangpao.train.checkpoints import checkpoint
from gangpao.train.loop import Job, Stage, Training
from gangpao.train.pretrain import measured_peak
from gangpao.train.progress import Report, read_metrics
from gangpao.train.run_file import read_run, refuse_differences, write_run
from gangpao.train.step import parallel
from gangpao.train.step.lanes import lanes_for
from gangpao.train.step.lean import Lean
from gangpao.train.step.optim import Optimizer
from gangpao.train.step.parallel import World
from gangpao.tune.base.load import Base, base_files, base_shape, check_length, load_base
from gangpao.tune.data.prepare import Prepared, prepare
from gangpao.tune.evaluation import evaluator
from gangpao.tune.objectives.logps import Settings

RUN, PROJECTIONS = "run", "projections"
FREE = {"save", "evaluation", "threads", "cost_profile", "micro_batch_size", "recompute", "keep"}
BUSY = "another process trains in this folder; wait for it, or choose another folder"

Change = Callable[[Base], None]  # what a step does to a student, before it is trained; which parameters want a gradient


@dataclass(frozen=True, slots=True)
class Taught:
    """A student after its last step, and what is to be known of it."""

    student: Base
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Class:
    """What all parts of a run share."""

    config: TeachingConfig
    run: Path
    world: World
    student: Base
    teacher_path: Path
    teacher_sha256: str
    prepared: Prepared
    stream: TextIO | None

    @property
    def settings(self) -> Settings:
        return Settings(
            dtype=self.config.dtype or self.student.dtype, recompute=self.config.recompute, device=self.world.device
        )

    def say(self, text: str) -> None:
        if self.stream is not None:
            print(text, file=self.stream, flush=True)


def teach(
    config: TeachingConfig, source: Path, original: Path, out: Path, change: Change, stream: TextIO | None
) -> Taught:
    """Train the model `source` in the folder out/run, or go on with what is there.

    Raises ValueError for a wrong configuration, data without a row, a teacher with other tokens, or a folder that holds another
    run; Stopped after a signal, when all is saved.
    """
    run = out / RUN
    run.mkdir(parents=True, exist_ok=True)
    known = read_run(run) if checkpoint.checkpoints(run / "checkpoints") else None
    threads = config.threads or (known["config"]["threads"] if known else machine.physical_cores())
    config = config.model_copy(update={"threads": threads})
    if known is not None:
        before, now = known["config"], config.model_dump(mode="json")
        now["data"] = before["data"]  # what it holds counts, by its fingerprint
        refuse_differences(before, now, run, free=FREE, paths=("teacher",))
    torch.set_num_threads(threads)
    world = parallel.start(config.device)
    try:
        with locked(run, BUSY):
            return _teach(config, source, Path(config.teacher or original), run, world, change, known, stream)
    finally:
        world.close()


def _teach(
    config: TeachingConfig, source: Path, teacher: Path, run: Path, world: World, change: Change,
    known: dict[str, Any] | None, stream: TextIO | None,
) -> Taught:  # fmt: skip
    for path in (source, teacher):  # by their headers, before anything is loaded
        check_length(config.seq_len, base_shape(path), path)
    student = load_base(source, storage=_storage(config), dtype=config.dtype, device=str(world.device))
    student.model.requires_grad_(True)
    change(student)
    prepared = prepare(
        config.data, student.tokenizer, student.chat_template, config.seq_len, architecture=student.config.model_type
    )
    if prepared.kind not in ("texts", "answers"):
        raise ValueError(f"data: {prepared.kind} cannot be learned from a teacher: give texts or conversations")
    c = _Class(config, run, world, student, teacher, sha256_of(base_files(teacher)), prepared, stream)
    for what, now in (("student", student.sha256), ("teacher", c.teacher_sha256), ("data", prepared.fingerprint)):
        if known is not None and known["of"][what] != now:
            raise ValueError(f"{run}: the {what} has changed since this run began; begin another one: rm -r {run}")
    job = _job(c)
    try:
        training = Training(job)
        for line in _heading(c):
            job.report.note(line)
        if known is None:  # only now: a mistake leaves no run behind
            of = {"student": student.sha256, "teacher": c.teacher_sha256, "data": prepared.fingerprint}
            facts = {"fingerprint": prepared.fingerprint, **prepared.report.facts()}
            write_run(run, config, student.config, facts, world, steps=config.steps, of=of)
        outcome = training.fit()
    finally:
        job.report.close()
        job.lanes.close()
    if (number := outcome.signal or training.signals.received) is not None:  # also in the last evaluation
        raise Stopped(number)
    return Taught(student, _facts(c))


def _storage(config: TeachingConfig) -> str:
    return "bf16" if config.optimizer.kind == "lean" else "fp32"


# --- the parts of a run


def _job(c: _Class) -> Job:
    config, model = c.config, c.student.model
    peak = config.peak(c.student.config)
    schedule = config.schedule.over(config.steps, peak)  # what may fail comes before the report opens its file
    objective, heldout = _objectives(c)
    optimizer = _optimizer(c)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    separable = c.world.device.type == "cpu" and c.student.config.moe is None
    lanes = lanes_for(config.threads or 1, config.micro_batch_size, trained, separable=separable)
    report = Report(
        c.run,
        stream=c.stream,
        profile=cost.get_profile(config.cost_profile)[1],
        flops_per_token=flops_per_token(c.student.config, config.seq_len, training=True),
        peak_flops=measured_peak(c.world.device, c.settings.dtype or torch.float32),
    )
    evaluate = evaluator(model, heldout, lambda: _heldout_batches(c), lanes) if c.prepared.held else None
    return Job(
        folder=c.run,
        model=model,
        optimizer=optimizer,
        objective=objective,
        stages=[Stage("teach", config.steps, c.prepared.train)],
        learning_rate=schedule.learning_rate,
        rows=config.rows,
        micro_rows=config.micro_batch_size,
        report=report,
        clip=config.optimizer.clip,
        guard=config.guard,
        save=config.save,
        evaluate=evaluate,
        evaluate_every=config.evaluation.every_steps,
        evaluate_first=True,
        world=c.world,
        lanes=lanes,
    )


def _optimizer(c: _Class) -> Optimizer | Lean:
    shape, config = c.student.config, c.config

    def rule(name: str) -> Rule:
        own = name.startswith("model.") and name.endswith(("weight", "bias"))  # else a projection, or a gain of a scale
        return rule_of(name, shape) if own or name == "lm_head.weight" else Rule(None, 1.0, 0.0)

    options = config.optimizer_config(shape)
    if config.optimizer.kind == "lean":
        if masks_of(c.student.path):
            raise ValueError(f"{c.student.path}: its masks are kept by optimizer.kind adamw or muon, not by lean")
        return Lean(c.student.model.named_parameters(), rule, options, config.lean)
    optimizer = Optimizer(c.student.model.named_parameters(), rule, options)
    if masks := masks_of(c.student.path):
        keep_masks(c.student.model, optimizer, masks)
    return optimizer


def masks_of(model: Path) -> dict[str, torch.Tensor]:
    """Which weights of a pruned folder stay zeros, by name; none where it has no masks."""
    return read_masks(model) if model.is_dir() else {}


def _heldout_batches(c: _Class) -> Iterator[Any]:
    """Held-out rows, up to the limit."""
    most = c.config.evaluation.limit_tokens
    count = 0
    for batch in c.prepared.heldout(c.config.evaluation.rows):
        yield batch
        count += batch.ids.size
        if most is not None and count >= most:
            return


def _objectives(c: _Class) -> tuple[Distil, Heldout]:
    spec = c.config.logits.spec()
    if c.config.keep.top_k:
        kept, held = _kept(c)
        return Distil(kept, spec, c.settings), Heldout(held, c.settings)
    base = _teacher(c)
    if not c.config.looks_inside:
        working = Working(base.model, base.dtype, c.world.device)
        return Distil(working, spec, c.settings), Heldout(working, c.settings)
    h, a, depth = (
        c.config.hidden,
        c.config.attention,
        (c.student.config.num_hidden_layers, base.config.num_hidden_layers),
    )
    hidden = checked_pairs(h.layers, *depth) if h.weight else ()
    attention = checked_pairs(a.layers, *depth) if a.weight else ()
    inner = InnerSpec(h.weight, h.kind, hidden, a.weight, a.kind, attention)
    projections = Projections(hidden, c.student.config.hidden_size, base.config.hidden_size, c.config.seed)
    model: nn.Module = c.student.model
    model.add_module(PROJECTIONS, projections.to(c.world.device))  # trained and saved with the student
    taps = Taps(c.student.model, [s for s, _ in hidden], [s for s, _ in attention])
    theirs = Taps(base.model, [t for _, t in hidden], [t for _, t in attention])
    teacher = Working(base.model, base.dtype, c.world.device, theirs)
    plain = Working(base.model, base.dtype, c.world.device)
    return Distil(teacher, spec, c.settings, inner=inner, taps=taps, projections=projections), Heldout(
        plain, c.settings
    )


def _teacher(c: _Class) -> Base:
    base = load_base(c.teacher_path, dtype=c.config.dtype, device=str(c.world.device))
    check_same_words(c.student, base)
    return base


def _kept(c: _Class) -> tuple[Store, Store]:
    """What the teacher says of all rows of the run, and of held-out ones; what is not there yet is asked for now."""
    keep = c.config.keep
    words = c.student.config.vocab_size
    folder = Path(keep.folder) if keep.folder else c.run / "teacher"

    def store(name: str, temperature: float) -> Store:
        k = min(keep.top_k, words)
        about = About(c.teacher_sha256, c.prepared.fingerprint, k, words, temperature, keep.precision)
        return Store(folder / name, about)

    train, held = store("train", c.config.logits.temperature), store("heldout", 1.0)
    source, size = c.prepared.train(), c.config.micro_batch_size
    steps = range(c.config.steps * c.config.rows // size)
    want: Sequence[tuple[Store, Callable[[], Iterator[Any]], str]] = (
        (held, lambda: _heldout_batches(c), "held-out"),
        (train, lambda: (source.take(size) for _ in steps), "training"),
    )
    base: Base | None = None
    for one, batches, what in want:
        missing = itertools.filterfalse(one.has, batches())
        first = next(missing, None)
        if first is None:
            continue
        base = base or _teacher(c)
        c.say(f"the teacher {c.teacher_path.name} speaks about {what} rows, once; kept in {one.folder}")
        count = one.fill(itertools.chain([first], missing), Working(base.model, base.dtype, c.world.device))
        c.say(f"{count:,} rows kept, {one.nbytes / 1e6:,.1f} MB")
    return train, held


def _heading(c: _Class) -> list[str]:
    config, count = c.config, sum(p.numel() for p in c.student.model.parameters() if p.requires_grad)
    logits = config.logits
    return [
        f"{c.run}: {c.student.path.name} learns from {c.teacher_path.name}: {logits.kind} KL, temperature {logits.temperature:g}, "
        f"{count:,} weights to train",
        f"{config.steps:,} steps of {config.batch_tokens:,} tokens, learning rate {config.peak(c.student.config):g}, "
        f"{config.schedule.kind}; {config.threads} threads, {machine.cpu_name()}",
        *c.prepared.report.lines(),
    ]


def _facts(c: _Class) -> dict[str, Any]:
    """What a report says of a run, from its metrics."""
    lines = read_metrics(c.run)
    held = [line["heldout"] for line in lines if "heldout" in line]
    steps = [line for line in lines if "loss" in line and "event" not in line]
    found: dict[str, Any] = {
        "teacher": str(c.teacher_path), "teacher_sha256": c.teacher_sha256, "student": str(c.student.path),
        "tokens": steps[-1]["tokens"] if steps else 0, "steps": c.config.steps, "loss": c.config.logits.kind,
        "temperature": c.config.logits.temperature, "lr": c.config.peak(c.student.config),
    }  # fmt: skip
    if held:
        found |= {"heldout_before": _named(held[0]), "heldout_after": _named(held[-1])}
    return found


def _named(heldout: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("heldout_"): value for key, value in heldout.items() if key != "heldout"}


def own_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The student's tensors under Hugging Face's names, without what was only there to teach it."""
    return {n: p.detach() for n, p in model.named_parameters() if not n.startswith(PROJECTIONS)}

"""A tuning run put together for the one training loop: base, method, data, objective; what comes out is written at the end.

A run is a folder:

    run.json        resolved configuration, shape, the base by its sha256, fingerprint of the data, git commit, environment
    metrics.jsonl   a line a step, and the held-out losses
    checkpoints/    what is trained, and no copy of the base
    adapter/        the adapter in PEFT's form, with the base's chat template (full tuning: export/, a Hugging Face folder)
    adapter.gguf    the same for llama.cpp, where that form can say it

Running it again goes on where it stopped, to the bit. The base is only read; another base under the same name is refused.

Over ranks of torchrun every rank holds the base and the gradients of what is trained are summed, or each has a part (sharding.py).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from gangpao import cost, machine
from gangpao.atomic import locked
from gangpao.engine.pictures.prompts import mark_ids
from gangpao.model.count import flops_per_token, parameters
from gangpao.model.init import Rule
from gangpao.model.vision.tower import VisionTower
from gangpao.train.checkpoints import checkpoint
from gangpao.train.loop import Job, Objective, Outcome, Source, Stage, Training
from gangpao.train.memory import is_out_of_memory
from gangpao.train.pretrain import BUSY, measured_peak
from gangpao.train.progress import Report
from gangpao.train.run_file import check_folder, read_run, refuse_differences, write_run
from gangpao.train.step import parallel
from gangpao.train.step.lanes import Lanes, lanes_for
from gangpao.train.step.lean import Lean
from gangpao.train.step.optim import Optimizer
from gangpao.train.step.parallel import World
from gangpao.tune import admission, output, sharding
from gangpao.tune.base.load import Base, load_base
from gangpao.tune.config import TuneConfig
from gangpao.tune.data.prepare import Prepared, prepare
from gangpao.tune.evaluation import evaluator
from gangpao.tune.methods import Applied, apply
from gangpao.tune.objectives.asking import Answers, heldout_reward, prompts_of, rollouts_of
from gangpao.tune.objectives.build import objective_of
from gangpao.tune.objectives.logps import Settings
from gangpao.tune.objectives.rewards import reward_of
from gangpao.tune.objectives.rollouts import Prompt
from gangpao.tune.pictures.features import features
from gangpao.tune.pictures.table import PictureTable
from gangpao.tune.sight import begin
from gangpao.tune.sight.model import SeeingModel, encoded
from gangpao.tune.sight.parts import apply_parts
from gangpao.units import show_bytes

STAGE = "tune"
FREE = {
    "save", "evaluation", "threads", "cost_profile", "tensorboard", "micro_batch_size", "recompute", "parallel", "shard_ranks",
}  # fmt: skip
_DATA_PATHS = ("root", "files", "heldout_files")
_SHOW_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class _Run:
    """What all parts of a run share. known: run.json of earlier calls that saved something, None for a new run. model: what is
    called with ids, the base or, with its tower, one that sees."""

    config: TuneConfig
    out: Path
    world: World
    base: Base
    applied: Applied
    prepared: Prepared
    known: dict[str, Any] | None
    model: nn.Module
    answers: Answers | None = None  # who gives GRPO's, to these prompts
    prompts: Sequence[Prompt] = ()
    held_prompts: Sequence[Prompt] = ()

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        rows = self.config.epochs * (len(self.prompts) if self.answers else self.prepared.rows_per_epoch)
        return self.config.steps or max(1, round(rows / self.config.rows))

    @property
    def settings(self) -> Settings:
        """How a forward pass is made."""
        return Settings(dtype=self.base.dtype, recompute=self.config.recompute, device=self.world.device)


def run_config(
    config: TuneConfig,
    model: Path,
    out: Path,
    *,
    resume: bool = False,
    stream: TextIO | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Tune `model` (a folder or a .gguf file; what config.model or new.text means) in the folder `out`, or go on there.

    resume: insist on the latter. watch: see Report. Raises ValueError for a wrong configuration, data without a row that can be
    learned, too little memory, or a folder that holds another run.
    """
    check_folder(out, resume=resume)
    if config.new is None:
        output.check(config, model)
    known = read_run(out) if checkpoint.checkpoints(out / "checkpoints") else None
    config = _resolved(config, known, out)
    torch.set_num_threads(config.threads or 1)
    rank = int(os.environ.get("RANK", "0"))
    alone = locked(out, BUSY) if rank == 0 else contextlib.nullcontext()
    with _gone_if_refused(out), alone, _world(config) as world:
        try:
            if config.pictures:
                config = config.model_copy(update={"data": begin.draw(config, out, stream)})
            if config.new is not None:
                model = begin.new_base(config, out, model)
            return _tune(config, model, out, world, known, stream if world.rank == 0 else None, watch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"memory ran out while tuning. The same command goes on from what is saved in {out}, with less: "
                f"{admission.ways_out(config)}"
            ) from error


@contextlib.contextmanager
def _gone_if_refused(out: Path) -> Iterator[None]:
    """A folder that was made for a run which is then refused goes again."""
    made = not out.exists()
    try:
        yield
    except ValueError:
        if made and out.is_dir() and {path.name for path in out.iterdir()} <= {".lock"}:
            shutil.rmtree(out)
        raise


@contextlib.contextmanager
def _world(config: TuneConfig) -> Iterator[World]:
    world = parallel.start(config.device)
    try:
        yield world
    finally:
        world.close()


def _resolved(config: TuneConfig, known: dict[str, Any] | None, out: Path) -> TuneConfig:
    """What is decided once, for all resumptions. Raises ValueError where a run is there that was told something else."""
    if known is None:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        threads = config.threads or max(1, machine.physical_cores() // ranks)
        return config.model_copy(update={"threads": threads})
    before = known["config"]
    config = config.model_copy(update={"threads": config.threads or before["threads"]})
    now = config.model_dump(mode="json")
    now["data"] |= {key: before["data"].get(key) for key in _DATA_PATHS}  # what they hold counts, by its fingerprint
    refuse_differences(before, now, out, free=FREE, paths=("model",))
    return config


def _tune(
    config: TuneConfig,
    model: Path,
    out: Path,
    world: World,
    known: dict[str, Any] | None,
    stream: TextIO | None,
    watch: Callable[[dict[str, Any]], None] | None,
) -> Outcome:
    admission.admit(config, model, world.device, ranks=world.size)
    base = load_base(model, storage=config.base_storage, dtype=config.dtype, device=str(world.device))
    _same_base(base, known, out)
    pictures = PictureTable(base.tower.vision, base.tokenizer.vocab_size) if base.tower is not None else None
    prepared = _prepared(config, base, pictures, stream)
    if known is not None and known["data"]["fingerprint"] != prepared.fingerprint:
        raise ValueError(f"{out}: the data has changed since this run began; begin another one")
    if base.tower is None or pictures is None:
        applied = sharding.part(config, base, apply(base.model, config.method, seed=config.seed), world)
        seen: nn.Module = base.model
    else:
        applied = apply_parts(base.model, base.tower, config.method, config.vision, seed=config.seed)
        seen = _seeing(config, base, base.tower, pictures, out, stream)
    r = _asking(_Run(config, out, world, base, applied, prepared, known, seen), model)
    job = _job(r, stream, watch)
    try:
        training = Training(job)
        for line in heading(r):
            job.report.note(line)
        if world.rank == 0 and known is None:  # only now: a mistake leaves no run behind
            facts = {"fingerprint": prepared.fingerprint, **prepared.report.facts()}
            about = {"path": str(model), "sha256": base.sha256, "storage": base.storage}
            count = sum(p.numel() for p in applied.trainable.values())
            write_run(out, config, base.config, facts, world, steps=r.steps, base=about, trainable=count)
        outcome = training.fit()
    finally:
        job.report.close()
        job.lanes.close()
    if outcome.signal is None and not world.sums([float(world.rank == 0 and output.there(out))])[0]:
        sharding.gather(base.model)
        for note in output.write(out, base, applied, config) if world.rank == 0 else []:
            if stream is not None:
                print(note, file=stream, flush=True)
    return outcome


def _asking(r: _Run, model: Path) -> _Run:
    """The same with an engine that answers, where the objective learns from its own answers."""
    if r.config.objective.kind != "grpo":
        return r
    prompts, end = prompts_of(r.prepared.parts, r.base.tokenizer)
    held, _ = prompts_of(r.prepared.held, r.base.tokenizer)
    longest, limit = max(len(p.ids) for p in (*prompts, *held)), r.base.config.max_position_embeddings
    if longest + r.config.objective.max_answer_tokens > limit:
        raise ValueError(
            f"objective.max_answer_tokens {r.config.objective.max_answer_tokens} behind a prompt of {longest} tokens is more than "
            f"the {limit} positions that this model knows: lower it, or leave out the longest rows (data.max_length)"
        )
    threads = r.config.threads or 1
    answers = Answers(model, r.applied.adapter, r.config.objective, longest=longest, end=end, threads=threads)
    return replace(r, answers=answers, prompts=prompts, held_prompts=held)


def _seeing(
    config: TuneConfig, base: Base, tower: VisionTower, pictures: PictureTable, out: Path, stream: TextIO | None
) -> SeeingModel:
    """The base with its tower, when its parts that learn are marked; what a frozen encoder says is computed here."""
    kept = None
    if pictures.entries and config.vision.features and "encoder" not in config.vision.train:

        def show(done: int, of: int) -> None:
            if stream is not None and (done == of or done % 1024 == 0):
                print(f"pictures: the encoder has seen {done:,} of {of:,}", file=stream, flush=True)

        hidden = tower.vision.encoder.hidden_size
        kept = features(
            out / "features", tower.encoder, pictures, hidden, lambda number: encoded(tower, pictures, number), show
        )
    marks = mark_ids(base.tokenizer, tower.vision.marks, "the base") if tower.vision.canvas else None
    return SeeingModel(base.model, tower, pictures, kept, marks)


def _prepared(config: TuneConfig, base: Base, pictures: PictureTable | None, stream: TextIO | None) -> Prepared:
    def show(rows: int) -> None:
        if stream is not None and rows % _SHOW_ROWS == 0:
            print(f"data: {rows:,} rows read", file=stream, flush=True)

    return prepare(
        config.data, base.tokenizer, base.chat_template, config.seq_len, kind=config.data_kind,
        architecture=base.config.model_type, pictures=pictures, progress=show,
    )  # fmt: skip


def _same_base(base: Base, known: dict[str, Any] | None, out: Path) -> None:
    if known is not None and known["base"]["sha256"] != base.sha256:
        raise ValueError(
            f"{out}: this run tunes a base with sha256 {known['base']['sha256'][:12]}, and {base.path} has {base.sha256[:12]}: the "
            "file has changed since; name the one it began with, or begin another run"
        )


def _job(r: _Run, stream: TextIO | None, watch: Callable[[dict[str, Any]], None] | None) -> Job:
    config, world, model = r.config, r.world, r.model
    schedule = config.schedule_of(r.steps)  # what may fail comes before the report opens its file
    objective = objective_of(config.objective, r.settings, off=r.applied.off, world=world)
    lanes = _lanes(r)
    report = Report(
        r.out if world.rank == 0 else None,
        stream=stream,
        profile=cost.get_profile(config.cost_profile)[1],
        flops_per_token=_flops(r),
        peak_flops=measured_peak(world.device, r.base.dtype) * world.size,
        tensorboard=config.tensorboard,
        watch=watch,
    )
    return Job(
        folder=r.out,
        model=model,
        optimizer=_optimizer(r),
        objective=objective,
        stages=[Stage(STAGE, r.steps, _source(r))],
        learning_rate=schedule.learning_rate,
        rows=config.rows,
        micro_rows=config.micro_rows,
        report=report,
        clip=config.optimizer.clip,
        guard=config.guard,
        save=config.save,
        evaluate=_evaluator(r, objective, lanes),
        evaluate_every=config.evaluation.every_steps,
        evaluate_first=True,
        world=world,
        lanes=lanes,
    )


def _evaluator(
    r: _Run, objective: Objective, lanes: Lanes
) -> Callable[[Callable[[], bool]], dict[str, float] | None] | None:
    if not r.prepared.held:
        return None
    if r.answers is not None:
        return heldout_reward(r.held_prompts, r.answers, reward_of(r.config.objective.rewards), r.base.tokenizer.decode)
    return evaluator(r.model, objective, lambda: r.prepared.heldout(r.config.micro_batch_size), lanes)


def _source(r: _Run) -> Callable[[dict[str, Any] | None], Source]:
    if r.answers is None:
        return r.prepared.train
    config, text = r.config, r.base.tokenizer.decode
    return rollouts_of(r.prompts, r.answers, text, row_length=config.seq_len, seed=config.data.seed)


def _optimizer(r: _Run) -> Optimizer | Lean:
    named, rule, options = r.model.named_parameters(), rule_of(r.applied), r.config.optimizer_config()
    if r.config.optimizer.kind == "lean":
        return Lean(named, rule, options, r.config.lean)
    return Optimizer(named, rule, options)


def rule_of(applied: Applied) -> Callable[[str], Rule]:
    """Factors on the learning rate, and whether a parameter decays."""
    return lambda name: Rule(None, applied.lr_factor(name), float(applied.decay(name)))


def _lanes(r: _Run) -> Lanes:
    """Rows go to several threads where they depend on nothing but themselves."""
    plain = r.config.objective.kind in ("sft", "pretrain") and not r.applied.draws_random_numbers
    whole = r.base.config.moe is None and not sharding.shares(r.config, r.world)
    separable = plain and whole and r.world.device.type == "cpu"
    gradients = sum(p.numel() * p.element_size() for p in r.applied.trainable.values())
    return lanes_for(r.config.threads or 1, r.config.micro_batch_size, gradients, separable=separable)


def _flops(r: _Run) -> float:
    """FLOPs of a token. A frozen weight needs no gradient of its own, which is a third of the work."""
    trained = sum(p.numel() for p in r.applied.trainable.values()) / parameters(r.base.config).total
    return flops_per_token(r.base.config, r.config.seq_len, training=True) * (2 + min(1.0, trained)) / 3


def heading(r: _Run) -> list[str]:
    """What is about to be tuned, on what, with what: the first lines of a run."""
    config, count = r.config, sum(p.numel() for p in r.applied.trainable.values())
    size = sum(p.numel() * p.element_size() for p in r.applied.trainable.values())
    threads = f"{config.threads} thread{'s' if config.threads != 1 else ''}"
    ranks = f"{r.world.size} ranks, each with " if r.world.size > 1 else ""
    return [
        f"{r.out}: {config.method.kind} on {r.base.path.name} ({r.base.storage}), {count:,} weights to train "
        f"({show_bytes(size)}), {config.objective.kind}",
        f"{r.steps:,} steps of {config.step_size}, learning rate {config.peak:g}; "
        f"{ranks}{threads}, computing in {str(r.base.dtype).removeprefix('torch.')}, {machine.cpu_name()}",
        *r.prepared.report.lines(),
    ]

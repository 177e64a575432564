"""THE training loop: batches and an objective in, a trained model and checkpoints out. Read this file first.

    fit      resume from the newest whole checkpoint, then until the last step:
    _advance batches of one step -> losses and gradients, micro-batch by micro-batch -> is it sane? -> clip, update
             -> report -> evaluate, save when due

Pretraining, SFT, DPO, QAT and distillation differ in where batches come from and what the loss is, so those are arguments
(`Source`, `Objective`). The loss of a step is the sum over everything that counts (labels, pairs) in all micro-batches on all
ranks, divided by its number: accumulation and the number of ranks do not change it.

Whatever happens between two lines of this file, a run can go on from the last checkpoint and computes the same bits: weights,
optimizer, position in the data, random numbers and the memory of recent losses are all in it.

What it gives up: the norm of the gradient is looked at before every update, which on a GPU is one wait a step.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import GuardConfig, SaveConfig
from gangpao.train.progress import Report
from gangpao.train.step.gradients import Update, check
from gangpao.train.step.lanes import Lanes
from gangpao.train.step.lean import Lean
from gangpao.train.step.loss import Terms
from gangpao.train.step.optim import Average, Optimizer
from gangpao.train.step.parallel import World, like, local, reshard

RECENT = 50  # losses that a spike is compared with


class Source(Protocol):
    """Where batches come from, in an order that `state` remembers (gangpao.data.tokens.pack.Loader)."""

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Any: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


class Objective(Protocol):
    """What is minimised. It may have summary(values of a step) -> values to report, where sums become means over something else,
    and separable = False, where rows depend on one another."""

    def measure(self, batch: Any) -> tuple[int, int]:
        """(what the loss is summed over, ids that go through the model)."""

    def __call__(self, model: nn.Module, batch: Any, scale: float) -> Terms:
        """The summed loss of a batch, and values to report, times `scale`. values["loss"] is what spikes are found in."""


@runtime_checkable
class Summarises(Protocol):
    """An objective with values that are no means over what it counts, such as ratios of two sums."""

    def summary(self, numbers: dict[str, float]) -> dict[str, float]:
        """What is reported, from the values summed over a step."""


class TrainingStopped(ValueError):
    """The run cannot go on; its checkpoints are sane.

    code, values: what was wrong: bad_loss (step, loss, norm), spike (step, loss, factor, median), weight (step, name), weights
    (step); an empty code where only the message says it.
    """

    def __init__(self, message: str, code: str = "", **values: float | str) -> None:
        super().__init__(message)
        self.code, self.values = code, values


_Wrong = tuple[str, str, dict[str, float]]  # with a step: in words, and as the code and values of TrainingStopped


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps with one source of batches. source(position) makes it when the stage begins; position is where the stage before
    left its own source (None: there was none), so that documents not seen yet can come first."""

    name: str
    steps: int
    source: Callable[[dict[str, Any] | None], Source]
    decay: bool = False


@dataclass(slots=True)
class Job:
    """Everything a run needs. rows: of a step, over all ranks; micro_rows: of one forward pass on one rank.

    learning_rate(step) counts steps from 1. begin: steps that were done elsewhere (a branch); before: where they left the
    data. evaluate(stop) returns held-out losses by name, or None when stop() said so; "heldout" among them chooses the best
    checkpoint; evaluate_first: also before the first step. forward: the model as it is called, when that is another object
    (torch.compile). no_sync: see TrainConfig. lanes: the threads of a step.
    """

    folder: Path
    model: nn.Module
    optimizer: Optimizer | Lean
    objective: Objective
    stages: Sequence[Stage]
    learning_rate: Callable[[int], float]
    rows: int
    micro_rows: int
    report: Report
    clip: float = 1.0
    guard: GuardConfig = field(default_factory=lambda: GuardConfig())
    save: SaveConfig = field(default_factory=lambda: SaveConfig())
    evaluate: Callable[[Callable[[], bool]], dict[str, float] | None] | None = None
    evaluate_every: int = 1000
    evaluate_stages: bool = True
    evaluate_first: bool = False
    average: Average | None = None
    world: World = field(default_factory=World)
    begin: int = 0
    before: dict[str, Any] | None = None
    forward: nn.Module | None = None
    no_sync: bool = False
    lanes: Lanes = field(default_factory=lambda: Lanes(1, torch.get_num_threads()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run came to. signal: the number of the one that ended it early, else None. begun: the step this call began at."""

    step: int
    signal: int | None
    begun: int = 0


class Signals:
    """SIGTERM and SIGINT as a request that the loop looks at between steps. A second one interrupts at once.

    say: a line for the person who asked, since the step that is finished first may take long.
    """

    def __init__(self, *, say: bool = False) -> None:
        self.received: int | None = None
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self._say:  # written past Python's buffers, which the loop may hold
            os.write(2, b"\nstopping: this step is finished and saved; once more stops at once, without saving\n")

    def __bool__(self) -> bool:
        return self.received is not None


class Training:
    """A run in progress."""

    def __init__(self, job: Job) -> None:
        per_pass = job.micro_rows * job.world.size
        if job.rows % per_pass:
            raise ValueError(
                f"a step of {job.rows} rows is not a multiple of micro_batch_size {job.micro_rows} times {job.world.size} ranks"
            )
        self.job = job
        self.passes = job.rows // per_pass
        check(job, self.passes)
        self.checkpoints = job.folder / "checkpoints"
        self.step = job.begin
        self.total = job.begin + sum(stage.steps for stage in job.stages)
        self.tokens = 0
        self.recent: list[float] = []
        self.bad_in_row = self.rollbacks = 0
        self.best: tuple[int, float] | None = None
        self.kept: list[int] = []
        self.heldout: float | None = None
        self.evaluated_step = -1
        self.saved_step = -1
        self.saved_seconds = 0.0
        self.signals = Signals(say=job.report.shown)
        self._stage: Stage | None = None
        self._source: Source | None = None
        self._before = job.before

    # --- the way of a run

    def fit(self) -> Outcome:
        """Train to the end, or until a signal; whatever comes after can go on from what is saved."""
        with self.signals:
            if self.job.world.rank == 0:
                checkpoint.clean(self.checkpoints)
            found = checkpoint.latest(self.checkpoints, self.job.report.note)
            if found is not None:
                self.restore(found)
                self.job.report.cut(found.record["metrics_position"])
                self.job.report.note(f"going on from {found.path.name}")
            else:
                self.job.report.cut(0)  # of a process that was killed before its first checkpoint
                if self.job.guard.on_bad_step == "rollback":
                    self.save()  # somewhere to go back to
            self.job.report.begin(self.step, self.total)
            self.saved_seconds = self.job.report.seconds
            begun, asked = self.step, False
            if found is None and self.job.evaluate_first:
                self._evaluate()
            while self.step < self.total and not asked:
                asked = self._advance()
            if self.saved_step != self.step:
                self.save(must=True)
            if self.step == self.total and self.evaluated_step != self.step and not self._asked():
                self._evaluate()  # a signal came in the last step, so this is another call
        return Outcome(self.step, self.signals.received if self.step < self.total else None, begun)

    def _asked(self) -> bool:
        """Whether a signal came to any rank."""
        return bool(self.job.world.sums([bool(self.signals)])[0])

    def stage(self) -> tuple[Stage, int]:
        """The stage that the next step belongs to, and the step it ends at."""
        end = self.job.begin
        for stage in self.job.stages:
            end += stage.steps
            if self.step < end:
                return stage, end
        return self.job.stages[-1], end

    def _source_of(self, stage: Stage) -> Source:
        if self._stage is not stage or self._source is None:
            before = self._source.state() if self._source is not None else self._before
            self._stage, self._source = stage, stage.source(before)
        return self._source

    def _advance(self) -> bool:
        """One optimizer step. True when a signal asks to stop."""
        job, world = self.job, self.job.world
        stage, end = self.stage()
        source = self._source_of(stage)
        per_pass = job.micro_rows * world.size
        batches = [source.take(per_pass, world.rank, world.size) for _ in range(self.passes)]
        counted = [job.objective.measure(batch) for batch in batches]
        late = job.report.seconds - self.saved_seconds > 60 * job.save.every_minutes and world.rank == 0
        labels, tokens = sum(c for c, _ in counted), sum(t for _, t in counted)
        # One exchange for what all ranks must agree on.
        count, tokens_of_all, asked, due = world.sums([labels, tokens, bool(self.signals), late])
        lr = job.learning_rate(self.step + 1)
        update = Update(job, batches, 1.0 / max(1.0, count), lr)
        values, norm = update.gradients()
        names = list(values)
        numbers = dict(zip(names, world.sums([float(values[name]) for name in names]), strict=True))
        numbers = job.objective.summary(numbers) if isinstance(job.objective, Summarises) else numbers
        grad_norm = float(norm)
        wrong = self._what_is_wrong(numbers["loss"], grad_norm)
        if wrong is None:
            update.apply(grad_norm)
            self.bad_in_row = 0
            self.recent = [*self.recent[1 - RECENT :], numbers["loss"]]
        job.optimizer.zero_grad()
        self.tokens += int(tokens_of_all)
        line = {**numbers, "lr": lr, "grad_norm": grad_norm, "tokens": self.tokens}
        if wrong is not None and self._treat(wrong, line):
            return bool(asked)
        self.step += 1
        job.report.step(self.step, stage.name, line, int(tokens_of_all), job.report.tick())
        self._after_step(end, bool(due), bool(asked))
        return bool(asked)

    def _after_step(self, end: int, due: bool, asked: bool) -> None:
        """Evaluate and save when it is time."""
        ends = self.step == end
        regular = self.step % self.job.save.every_steps == 0 or ends
        wanted = ends and (self.job.evaluate_stages or self.step == self.total)
        if not asked and (wanted or self.step % self.job.evaluate_every == 0):
            self._evaluate()
        if ends:
            self.kept.append(self.step)
        if regular or due or asked:
            self.save(must=ends or asked)

    def _evaluate(self) -> None:
        self.heldout = None
        if self.job.evaluate is None:
            return
        self.job.model.eval()
        alone = self.job.world.size == 1  # ranks that left at different batches would wait for each other
        losses = self.job.evaluate(lambda: alone and bool(self.signals))
        self.job.model.train()
        reshard(self.job.model)
        if losses is None:
            return
        self.job.report.write({"step": self.step, "heldout": losses})
        # The rest is in metrics.jsonl, and in the summary at the end.
        shown = losses if len(losses) < 5 else {k: v for k, v in losses.items() if k in ("heldout", "heldout_bpb")}
        self.job.report.note(f"step {self.step} held-out: " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        self.heldout, self.evaluated_step = losses.get("heldout"), self.step
        self.job.report.tick()

    # --- steps that went wrong

    def _what_is_wrong(self, loss: float, norm: float) -> _Wrong | None:
        if not math.isfinite(loss) or not math.isfinite(norm):
            return (f"loss {loss}, gradient norm {norm}", "bad_loss", {"loss": loss, "norm": norm})
        factor = self.job.guard.spike_factor
        if factor and len(self.recent) == RECENT and loss > factor * (median := statistics.median(self.recent)):
            values = {"loss": loss, "factor": factor, "median": median}
            return (f"loss {loss:.4g} is more than {factor:g} times the median {median:.4g}", "spike", values)
        return None

    def _treat(self, wrong: _Wrong, line: Mapping[str, float]) -> bool:
        """Skip, go back or stop, as configured; the weights have not been touched. True after going back."""
        job, guard, (why, code, values) = self.job, self.job.guard, wrong
        job.report.write({"step": self.step + 1, "event": guard.on_bad_step, "why": why, **line})
        job.report.note(f"step {self.step + 1}: {why}: {guard.on_bad_step}")
        self.bad_in_row += 1
        last = (
            f"the last checkpoint is {checkpoint.name_of(self.saved_step)}"
            if self.saved_step >= 0
            else "nothing is saved yet"
        )
        if guard.on_bad_step == "stop":
            message = f"step {self.step + 1}: {why}; stopped as guard.on_bad_step says; {last}"
            raise TrainingStopped(message, code, step=self.step + 1, **values)
        if guard.on_bad_step == "skip":
            if self.bad_in_row > guard.max_bad_steps:
                raise TrainingStopped(f"{self.bad_in_row} bad steps in a row ({why}); lower the learning rate; {last}")
            return False
        self._roll_back(why)
        return True

    def _roll_back(self, why: str) -> None:
        """To the last checkpoint, but behind the batch that was bad: the batches since then are not seen again."""
        self.rollbacks += 1
        found = checkpoint.latest(self.checkpoints, self.job.report.note)
        if found is None or self.rollbacks > self.job.guard.max_bad_steps:
            raise TrainingStopped(
                f"step {self.step + 1}: {why}; gone back {self.rollbacks - 1} times already; lower the learning rate"
            )
        rollbacks, bad_in_row = self.rollbacks, self.bad_in_row
        stage, position = self._stage, self._source.state() if self._source else None
        self.restore(found)
        self.rollbacks, self.bad_in_row = rollbacks, bad_in_row
        if position is not None and self.stage()[0] is stage and self._source is not None:
            self._source.restore(position)

    # --- checkpoints

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint. A full disk is reported and training goes on with the old ones, unless `must`.

        Raises TrainingStopped instead of saving weights that are not finite.
        """
        job = self.job
        tensors = self._tensors()
        bad = [name for name, t in tensors["model"].items() if not bool(local(t).isfinite().all())]
        if job.world.sums([len(bad)])[0]:
            name = {"name": bad[0]} if bad else {}
            raise TrainingStopped(
                f"step {self.step}: {bad[0] if bad else 'a weight'} is not finite any more; "
                "nothing was saved over the last checkpoint", "weight" if bad else "weights", step=self.step, **name,
            )  # fmt: skip
        measured = self.heldout is not None and self.evaluated_step == self.step  # of these very weights
        if measured and self.heldout is not None and (self.best is None or self.heldout < self.best[1]):
            self.best = (self.step, self.heldout)
        failed: OSError | None = None
        try:
            checkpoint.save(self.checkpoints, self.step, tensors, self._record(), job.world)
            protected = {*self.kept, *([self.best[0]] if self.best and job.save.keep_best else [])}
            if job.world.rank == 0:
                checkpoint.prune(self.checkpoints, keep_last=job.save.keep_last, protected=protected)
        except OSError as error:
            failed = error
        self.saved_seconds = job.report.seconds
        if not job.world.sums([float(failed is not None)])[0]:
            self.saved_step = self.step
            return
        what = f"checkpoint {checkpoint.name_of(self.step)} was not written ({failed or 'on rank 0'}); the older ones are whole"
        if must:
            raise OSError(f"{what}. Make room and run the same command again")
        job.report.note(f"{what}; training goes on")

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint has, by file."""
        job = self.job
        out = {
            "model": {name: p.detach() for name, p in trainable(job.model)},
            "optimizer": job.optimizer.state(),
            "rng": {"cpu": torch.get_rng_state()},
        }
        if job.world.device.type == "cuda":
            out["rng"]["cuda"] = torch.cuda.get_rng_state(job.world.device)
        if job.average is not None:
            out["average"] = dict(job.average.values)
        return out

    def _record(self) -> dict[str, Any]:
        stage = self._stage
        decayed = any(s.decay for s in self.job.stages[: self.job.stages.index(stage) + 1]) if stage else False
        return {
            "step": self.step,
            "stage": stage.name if stage else None,
            "decayed": decayed,
            "source": self._source.state() if self._source else None,
            "tokens": self.tokens,
            "recent": self.recent,
            "bad_in_row": self.bad_in_row,
            "rollbacks": self.rollbacks,
            "best": self.best,
            "kept": self.kept,
            "heldout": self.heldout,
            "evaluated_step": self.evaluated_step,
            "seconds": self.job.report.seconds,
            "metrics_position": self.job.report.position(),
        }

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Become what a checkpoint says."""
        named = self.job.optimizer.named
        load_weights(self.job.model, found.tensors("model", named), found.path)
        of_state = {key: named[name] for key in found.names("optimizer") if (name := key.partition(".")[2]) in named}
        self.job.optimizer.restore(found.tensors("optimizer", of_state))
        if self.job.average is not None and found.has("average"):
            self.job.average.restore(found.tensors("average", named))
        rng = found.tensors("rng")
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and self.job.world.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.job.world.device)
        r = found.record
        self.step, self.tokens, self.recent = r["step"], r["tokens"], list(r["recent"])
        self.bad_in_row, self.rollbacks, self.heldout = r["bad_in_row"], r["rollbacks"], r["heldout"]
        self.best, self.kept = (tuple(r["best"]) if r["best"] else None), list(r["kept"])
        self.evaluated_step = r.get("evaluated_step", r["step"])
        self.saved_step = self.step
        self.job.report.seconds = max(self.job.report.seconds, r["seconds"])
        self._stage = self._source = None
        stage = self.stage()[0]
        if r["source"] is None:
            self._before = self.job.before
        elif r["stage"] == stage.name:
            self._source_of(stage).restore(r["source"])
        else:  # the checkpoint is the end of the stage before
            self._before = r["source"]


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What training changes, and so what a checkpoint holds: a frozen base is read again from where it lies."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Put saved weights into a model. Raises ValueError when they are another model's."""
    own = dict(trainable(model))
    if own.keys() != tensors.keys() or any(own[name].shape != t.shape for name, t in tensors.items()):
        wrong = sorted(own.keys() ^ tensors.keys()) or [n for n, t in tensors.items() if own[n].shape != t.shape]
        raise ValueError(
            f"{where}: its weights are those of another model ({', '.join(wrong[:3])}); choose another folder"
        )
    for name, p in own.items():
        p.copy_(like(tensors[name], p))

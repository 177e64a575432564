"""A tiny model, a loader in memory and jobs over them, for the tests of the training room."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gangpao.model.config import ModelConfig
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import GuardConfig, OptimizerConfig, SaveConfig
from gangpao.train.loop import Job, Stage, Training
from gangpao.train.progress import Report, read_metrics
from gangpao.train.schedule import Schedule
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Average, Optimizer
from tests.child import environment

SEQ_LEN, VOCAB = 24, 50


def shape(**changes: Any) -> ModelConfig:
    """Every knob off its neutral value."""
    base = {
        "model_type": "minicpm", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "scale_emb": 3.0, "scale_depth": 1.4,
        "dim_model_base": 16, "initializer_range": 0.1,
    }  # fmt: skip
    return ModelConfig.model_validate(base | changes)


@dataclass(frozen=True)
class Rows:
    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray


class Memory:
    """Rows that follow from (seed, number of the row) alone: a counting pattern with noise, and a border somewhere."""

    def __init__(self, seed: int = 0, before: dict[str, Any] | None = None) -> None:
        self.seed, self.position = seed, 0
        self.before = before

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, number))
        ids = (np.arange(SEQ_LEN + 1) * rng.integers(1, 4) + rng.integers(VOCAB)) % VOCAB
        ids = np.where(rng.random(SEQ_LEN + 1) < 0.1, rng.integers(0, VOCAB, SEQ_LEN + 1), ids).astype(np.int64)
        border = int(rng.integers(2, SEQ_LEN))
        documents = (np.arange(SEQ_LEN) >= border).astype(np.int64)
        labels = ids[1:].copy()
        labels[border - 1] = -100
        labels[: int(rng.integers(0, 4))] = -100  # rows differ in how many labels they have
        return ids[:-1].copy(), labels, documents

    def take(self, rows: int, rank: int = 0, world: int = 1) -> Rows:
        chosen = [self.row(self.position + i) for i in range(rank, rows, world)]
        self.position += rows
        return Rows(*(np.stack(column) for column in zip(*chosen, strict=True)))

    def state(self) -> dict[str, Any]:
        return {"seed": self.seed, "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        assert state["seed"] == self.seed
        self.position = state["position"]


def job(
    folder: Path, *, stages: tuple[tuple[str, int], ...] = (("stable", 12),), rows: int = 4, micro_rows: int = 4,
    optimizer: str = "adamw", config: ModelConfig | None = None, ema: float = 0.0, objective: Any = None, **fields: Any,
) -> Job:  # fmt: skip
    """A job on the tiny model; the stages named decay* decay."""
    config = config or shape()
    model = Transformer.build(config, seed=1)
    total = fields.get("begin", 0) + sum(n for _, n in stages)
    stable = fields.get("begin", 0) + sum(n for name, n in stages if not name.startswith("decay"))
    folder.mkdir(parents=True, exist_ok=True)
    fields = {"save": SaveConfig(every_steps=4, keep_last=3), "guard": GuardConfig()} | fields
    return Job(
        folder=folder,
        model=model,
        optimizer=Optimizer(
            model.named_parameters(), lambda name: rule_of(name, config), OptimizerConfig(kind=optimizer, lr=0.02)
        ),
        objective=objective or NextToken(),
        stages=[
            Stage(name, n, lambda before, i=i: Memory(i, before), name.startswith("decay"))
            for i, (name, n) in enumerate(stages)
        ],
        learning_rate=Schedule("wsd", 0.02, total, warmup=3, decay_start=stable, half_life=2.0).learning_rate,
        rows=rows,
        micro_rows=micro_rows,
        report=Report(folder),
        average=Average(model.named_parameters(), ema) if ema else None,
        **fields,
    )


def fit(j: Job) -> Training:
    """Train it and close its files."""
    training = Training(j)
    try:
        training.fit()
    finally:
        j.report.close()
    return training


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss, of the lines that are steps."""
    return {m["step"]: m["loss"] for m in read_metrics(folder) if "loss" in m and "event" not in m}


def end_of(folder: Path) -> dict[str, Any]:
    """All that a run ended with, to be compared with `same_end`: every loss and gradient norm, weights, optimizer, random numbers
    and the place in the data. Held-out figures alone would not do: they lie on so coarse a lattice that two models share one."""
    newest = checkpoint.Checkpoint(checkpoint.checkpoints(folder / "checkpoints")[-1])
    tensors = {
        (kind, name): t.reshape(-1).view(torch.uint8).numpy().tobytes()  # numpy has no bf16
        for kind in ("model", "optimizer", "rng")
        for name, t in newest.tensors(kind).items()
    }
    lines = [m for m in read_metrics(folder) if "loss" in m and "event" not in m]
    steps = {m["step"]: (m["loss"], m["grad_norm"], m["lr"]) for m in lines}
    return {"step": newest.step, "source": newest.record["source"], "steps": steps, **tensors}


def same_end(one: Path, two: Path) -> bool:
    """Whether two runs ended in the same bits, whatever happened on the way; a branch is compared from its own first step on."""
    ends = [end_of(one), end_of(two)]
    begin = max(min(end["steps"], default=0) for end in ends)
    for end in ends:
        end["steps"] = {step: values for step, values in end["steps"].items() if step >= begin}
    assert ends[0].keys() == ends[1].keys()
    return all(ends[0][key] == ends[1][key] for key in ends[0])


def weights_of(j: Job) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in j.model.named_parameters()}


def in_child(log: Path, work: Callable[..., object], *arguments: Any, **options: Any) -> Process:
    """Start `work` (a function of a module) in a process of its own; what it prints, a traceback too, goes to `log`.

    From a fork server, because this process may have threads by now (torch's, the tokenizers'), and a fork would inherit
    their locks for ever. The server has torch imported and nothing running, so a child is there in milliseconds.
    """
    os.environ |= environment()  # the server begins without our path
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gangpao.train.loop", "gangpao.model.transformer"])
    process = context.Process(target=_child, args=(log, work, arguments, options))
    process.start()
    return process


def _child(log: Path, work: Callable[..., object], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)  # sums in one order, as in the parent
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    work(*arguments, **options)


def exit_code(process: Process) -> int:
    """Of a child, when it has ended: as a shell says it, negative for a signal."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode

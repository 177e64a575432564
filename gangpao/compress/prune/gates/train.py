"""Gates trained in the one training loop, from where a run of it stopped; then what they say stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from gangpao.compress.prune.config import GatesConfig
from gangpao.compress.prune.cut import Kept
from gangpao.compress.prune.gates.l0 import NAME, Clock, Gated, Gates, attach, folded
from gangpao.compress.prune.shape import Shape
from gangpao.compress.prune.source import Source
from gangpao.compress.prune.source import build as build_model
from gangpao.compress.step import Stopped
from gangpao.data.build import Built, build, load_data_config
from gangpao.data.tokens.pack import Loader
from gangpao.model import weights
from gangpao.model.config import ModelConfig
from gangpao.model.count import flops_per_token
from gangpao.model.init import Rule, rule_of
from gangpao.progress import Progress, Silent
from gangpao.text.tokenizer import Tokenizer
from gangpao.train.config import OptimizerConfig, SaveConfig
from gangpao.train.loop import Job, Stage, Training
from gangpao.train.progress import Report
from gangpao.train.schedule import Schedule
from gangpao.train.step.lanes import Lanes
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Optimizer
from gangpao.tune.base.load import check_length

_PROBE = "Hello, world! 你好，世界。 def f(x):\n    return x + 1  # 12345\n"


@dataclass(frozen=True, slots=True)
class Learned:
    """tensors: the trained weights, what goes as zeros. facts: of the run."""

    kept: Kept
    tensors: dict[str, Tensor]
    facts: Mapping[str, Any]


def learned(
    config: GatesConfig, source: Source, shape: Shape, folder: Path, *, threads: int, stream: TextIO | None = None
) -> Learned:
    """Train gates on `source` towards `shape`. The source stays as it is.

    Raises ValueError where there is nothing to train on, and Stopped after a signal, when all is saved.
    """
    c = source.model.config
    if not c.plain:
        raise ValueError("gates are for models without experts, latent attention and Gated DeltaNet")
    check_length(config.seq_len, c, source.path)
    model = build_model(c, {name: p.clone() for name, p in weights.state(source.model).items()}).train()
    folder.mkdir(parents=True, exist_ok=True)
    built = _data(config, source.tokenizer, folder, stream)
    gates = Gates(c, shape, config.seed)
    attach(model, gates)
    model.requires_grad_(config.lr > 0)
    gates.requires_grad_(True)
    job = _job(config, model, gates, built, folder, threads, stream)
    torch.manual_seed(config.seed)
    try:
        outcome = Training(job).fit()
    finally:
        job.report.close()
    if outcome.signal is not None:
        raise Stopped(outcome.signal)
    model.requires_grad_(False).eval()
    kept = gates.kept()
    with torch.no_grad():
        shares = {name: float(share.mean()) for name, share in gates.open_shares().items()}
    tokens = config.steps * config.batch_tokens
    facts = {
        "steps": config.steps,
        "tokens": tokens,
        "open": shares,
        "wanted": gates.shares,
        "flops": tokens * flops_per_token(c, config.seq_len, training=True),
    }
    return Learned(kept, folded(model, gates, kept), facts)


def _job(
    config: GatesConfig, model: Any, gates: Gates, built: Built, folder: Path, threads: int, stream: TextIO | None
) -> Job:
    warmup = max(1, round(0.05 * config.steps))
    peak = config.lr or config.gate_lr
    clock = Clock(Schedule("constant", peak, config.steps, warmup).learning_rate)
    parts = built.parts()
    return Job(
        folder=folder,
        model=model,
        optimizer=Optimizer(model.named_parameters(), _rule(config, model.config, peak), OptimizerConfig(lr=peak)),
        objective=Gated(NextToken(), gates, clock, round(config.warmup * config.steps)),
        stages=[Stage("gates", config.steps, lambda _: Loader(parts, seq_len=config.seq_len, seed=config.seed))],
        learning_rate=clock,
        rows=config.batch_tokens // config.seq_len,
        micro_rows=config.micro_batch_size,
        report=Report(folder, stream=stream),
        save=SaveConfig(every_steps=config.save_every_steps, keep_last=1),
        lanes=Lanes(1, threads),
    )


def _rule(config: GatesConfig, c: ModelConfig, peak: float) -> Any:
    def rule(name: str) -> Rule:
        return Rule(None, config.gate_lr / peak, 0.0) if name.startswith(f"{NAME}.") else rule_of(name, c)

    return rule


def _data(config: GatesConfig, tokenizer: Tokenizer, folder: Path, stream: TextIO | None) -> Built:
    """The token shards. Raises ValueError where they are of another tokenizer."""
    where = Path(config.data_dir) if config.data_dir else folder / "data"
    with Progress(stream) if stream else Silent() as progress:
        built = build(load_data_config(Path(config.data)), where, progress=progress)
    theirs = Tokenizer.from_dir(built.tokenizer_dir).encode(_PROBE)
    if not np.array_equal(theirs, tokenizer.encode(_PROBE)):
        raise ValueError(
            f"gates.data {config.data}: it is built with another tokenizer than the model's; name the model's folder in its "
            "[tokenizer] table"
        )
    return built

"""What an experiment will cost, before it starts: trials, FLOPs, time and yuan on this machine, and how sure that is.

FLOPs are counted exactly. Speed comes from trials that have ended in this folder where there are such, else from a few real steps
of the smallest, the middle and the largest model, each on one thread as a trial has; between them seconds a step go by a straight
line in logs. The end of a trial, where held-out text is read, is added as a third of its training cost a token.

What it gives up: other work on the machine later, and that trials at a time share its memory: the time is good to a factor, which
is said. What pruning saves is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from gangpao import cost
from gangpao.model.config import ModelConfig
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.sandbox.bilingual import Text
from gangpao.sandbox.trials.queue import workers_of
from gangpao.sandbox.trials.random_ids import rows_of
from gangpao.sandbox.trials.search import SearchConfig, fitted, number_of
from gangpao.sandbox.trials.trial import Lab, Result, Spec, cost_of, key_of, read_result, train_config
from gangpao.train import pretrain
from gangpao.train.config import TrainConfig
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Optimizer
from gangpao.units import show_seconds

SURE_MEASURED, SURE_PROBED = 1.5, 2.0  # factor within which the time is expected, with trials in the folder and without
_START_SECONDS = 0.4  # of a trial besides its steps: model, loader, files
_PROBED, _STEPS = 3, 3  # sizes that are timed, and steps of each after a first one


@dataclass(frozen=True, slots=True)
class Estimate:
    """trials: all that were asked for; known: of them those that have a result. flops: of those that are left. seconds: of the
    clock, with `workers` trials at a time; sure: a factor, both ways. how: where the speed comes from."""

    trials: int
    known: int
    flops: float
    seconds: float
    workers: int
    yuan: float
    profile: str
    sure: float
    how: Text

    def said(self, name: str) -> Text:
        """A sentence in English and Chinese."""
        if self.known == self.trials:
            en = f"{name}: all {self.trials:,} trials are known, nothing is trained."
            return Text(en, f"{name}：{self.trials:,} 个试验都已完成，不再训练。")
        low, high = show_seconds(self.seconds / self.sure), show_seconds(self.seconds * self.sure)
        clock, flops, yuan = show_seconds(self.seconds), f"{self.flops:.3g}", f"{self.yuan:.3g}"
        left = self.trials - self.known
        en = (
            f"{name}: {self.trials:,} trials, {self.known:,} known; {left:,} to train: {flops} FLOPs, about {clock} "
            f"({low} to {high}) with {self.workers} at a time, {yuan} yuan on {self.profile}. Speed from {self.how.en}."
        )
        zh = (
            f"{name}：{self.trials:,} 个试验，已完成 {self.known:,} 个；待训练 {left:,} 个：{flops} FLOPs，"
            f"约 {clock}（{low} 到 {high}），同时 {self.workers} 个，在 {self.profile} 上 {yuan} 元。速度依据{self.how.zh}。"
        )
        return Text(en, zh)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        names = ("trials", "known", "flops", "seconds", "workers", "yuan", "profile", "sure")
        return {name: getattr(self, name) for name in names} | {"how": self.how.en}


def estimate(lab: Lab, specs: Sequence[Spec]) -> Estimate:
    """Of the trials of an experiment; stable runs that only branches name count too."""
    every: dict[str, Spec] = {}
    for spec in specs:
        for one in (spec, *([spec.parent] if spec.parent else [])):
            every.setdefault(key_of(lab, one), one)
    results = {key: lab.result(spec) for key, spec in every.items()}
    left = [spec for key, spec in every.items() if results[key] is None]
    workers, flops = workers_of(lab.config), sum(cost_of(lab, spec)[2] for spec in left)
    profile, prices = cost.get_profile(lab.config.cost_profile)
    seconds, sure, how = _seconds(lab, left) if left else (0.0, 1.0, Text("", ""))
    seconds /= min(workers, max(1, len(left)))
    return Estimate(
        len(every), len(every) - len(left), flops, seconds, workers, cost.yuan(prices, seconds), profile, sure, how
    )


class _Asked(Exception):
    """Ends an experiment that was only asked for its trials."""


def asked(experiment: ModuleType, lab: Lab) -> list[Spec]:
    """The trials that an experiment asks for before it knows a result, and those that it is known to ask for later:
    `later(lab)`, where its module has that. Raises what `run` does for a grid from which nothing can come."""
    found: list[Spec] = []

    def submit(specs: Sequence[Spec]) -> list[Result]:
        found.extend(specs)
        raise _Asked

    with suppress(_Asked):
        experiment.run(lab, submit)
    return found + (experiment.later(lab) if hasattr(experiment, "later") else [])


def of_search(lab: Lab, done: int = 0) -> Estimate:
    """Of a search, whose trials are chosen as it goes: as many as it has at the cost of the common trial. done: that have ended."""
    search = fitted(lab.config.table(SearchConfig), lab.config)
    number = number_of(search)
    left = max(0, number - done)
    one = lab.spec(seed=search.seeds[0])
    flops = cost_of(lab, one)[2] * len(search.seeds) * left
    seconds, sure, how = _seconds(lab, [one])
    workers, (profile, prices) = workers_of(lab.config), cost.get_profile(lab.config.cost_profile)
    seconds = seconds * len(search.seeds) * left / min(workers, max(1, left))
    how = Text(
        f"{how.en}; every trial is taken to cost what the common one does",
        f"{how.zh}；假定每个试验与公共试验开销相同",
    )
    yuan = cost.yuan(prices, seconds)
    return Estimate(number, min(done, number), flops, seconds, workers, yuan, profile, 2 * sure, how)


# --- how fast


def _seconds(lab: Lab, left: Sequence[Spec]) -> tuple[float, float, Text]:
    """Of all trials one after the other, how sure, and from what."""
    known, sure = _measured(lab), SURE_MEASURED
    how = Text(f"{len(known)} trials in this folder", f"本文件夹中 {len(known)} 个试验")
    small, large = (pick(cost_of(lab, spec)[2] / spec.steps for spec in left) for pick in (min, max))
    near = [flops for flops, _ in known if small / 4 <= flops <= large * 4]
    if len(near) < 3 or max(near) < large / 4:
        known, sure = _probed(lab, left), SURE_PROBED
        how = Text(f"{_STEPS} steps of {len(known)} sizes just now", f"刚才对 {len(known)} 个尺寸各 {_STEPS} 步的计时")
    line = _Line.through(known)
    whole = 0.0
    for spec in left:
        step = cost_of(lab, spec)[2] / spec.steps
        judged = lab.config.heldout_tokens * max(1, len(lab.built.heldout)) / 3
        whole += _START_SECONDS + line.at(step) * (spec.steps + judged / spec.batch_tokens)
    return whole, sure, how


@dataclass(frozen=True, slots=True)
class _Line:
    """Seconds a step over FLOPs a step, straight in logs."""

    middle: float
    height: float
    slope: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> _Line:
        x, y = np.log(np.array(points, dtype=float)).T
        spread = float(((x - x.mean()) ** 2).sum())
        # A step never costs less than by its FLOPs' root, nor more than by the FLOPs.
        slope = float(np.clip(((x - x.mean()) * y).sum() / spread, 0.0, 1.0)) if spread > 1e-6 else 1.0
        return cls(float(x.mean()), float(y.mean()), slope)

    def at(self, flops: float) -> float:
        return math.exp(self.height + self.slope * (math.log(flops) - self.middle))


def _measured(lab: Lab) -> list[tuple[float, float]]:
    """FLOPs and seconds of a step of the trials that have ended here."""
    found = [result for folder in (lab.out / "trials").glob("*") if (result := read_result(folder)) is not None]
    return [(r.flops / r.spec.steps, r.busy / r.spec.steps) for r in found if r.busy > 0 and r.state == "done"]


def _probed(lab: Lab, left: Sequence[Spec]) -> list[tuple[float, float]]:
    """The same of real steps on made-up ids, of trials that differ most."""
    by_cost = sorted({cost_of(lab, spec)[2] / spec.steps: spec for spec in left}.items(), key=lambda item: item[0])
    at = sorted({round(i * (len(by_cost) - 1) / (_PROBED - 1)) for i in range(_PROBED)})
    return [(by_cost[i][0], _step_seconds(lab, by_cost[i][1])) for i in at]


def _step_seconds(lab: Lab, spec: Spec) -> float:
    """Of one step of a trial: the micro-batches are alike, so one of them is timed."""
    config = pretrain.resolved_precision(train_config(lab, spec).model_copy(update={"branch_from": None}))
    shape = pretrain.model_config(config, lab.built)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or 1)
    try:
        each = _micro_seconds(shape, config)
    finally:
        torch.set_num_threads(threads)
    return each * spec.batch_tokens / (config.micro_batch_size * lab.config.seq_len)


def _micro_seconds(shape: ModelConfig, config: TrainConfig) -> float:
    model = Transformer.build(shape, seed=0, rules=config.rules)
    optimizer = Optimizer(model.named_parameters(), lambda name: rule_of(name, shape, config.rules), config.optimizer)
    objective = NextToken(dtype=torch.bfloat16 if config.precision == "bf16" else None)
    batch = rows_of(None, shape.vocab_size, 0, config.micro_batch_size, config.seq_len)
    times = []
    for _ in range(_STEPS + 1):
        begin = time.perf_counter()
        objective(model, batch, 1.0 / batch.ids.size).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(config.optimizer.lr)
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return min(times[1:])  # other work on the machine only adds

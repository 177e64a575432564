"""One trial: a small training run that is named by what it is, so nothing is ever trained twice.

A `Spec` says everything that an experiment may vary. It becomes a TrainConfig, and that (with the data's fingerprint) a key;
the run lies in trials/<key>, a normal folder of `gangpao train`. `ensure` returns the result if it is there, goes on with the
run if it was interrupted, or trains it. Two processes that want the same trial share it: one trains, the other waits, and
takes over when the first is killed.

A decay that branches off a stable run names that run as its parent; the parent is ensured first. What it gives up: the
checkpoints of finished trials that are no parents are deleted, only metrics and result stay.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from gangpao import cost, machine
from gangpao.atomic import Busy, read_json, write_json
from gangpao.config import Frozen
from gangpao.data.build import Built, build
from gangpao.data.config import load_data_config
from gangpao.model.count import flops_per_token, parameters
from gangpao.progress import Progress
from gangpao.sandbox.reasons import Reason
from gangpao.sandbox.trials.config import Optimizer, SandboxConfig
from gangpao.sandbox.trials.transfer import RULES, resolve
from gangpao.train import pretrain
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import (
    EvaluationConfig,
    GuardConfig,
    ModelChoice,
    OptimizerConfig,
    SaveConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from gangpao.train.loop import TrainingStopped
from gangpao.train.progress import read_metrics
from gangpao.train.run_file import FREE
from gangpao.train.schedule import Kind

RESULT = "result.json"
_POLL_SECONDS = 1.0


class Spec(Frozen):
    """A trial, apart from what the whole sandbox shares.

    steps: optimizer steps of this run; of a branch, those of its decay. marks: steps at which the run keeps a checkpoint to branch
    from (a stable run). mixture: of the decay; none: that of the data. parent, parent_step: what a branch goes on from.
    """

    width: int
    layers: int
    rule: str
    lr: float
    batch_tokens: int
    steps: int = Field(ge=1)
    schedule: Kind
    decay: float
    warmup: float
    weight_decay: float
    optimizer: Optimizer
    seed: int
    marks: tuple[int, ...] = ()
    mixture: dict[str, float] | None = None
    parent: Spec | None = None
    parent_step: int = 0

    @property
    def tokens(self) -> int:
        """D: all tokens that led to the end of this trial."""
        return (self.parent_step + self.steps) * self.batch_tokens


class Result(Frozen):
    """What came out. loss: held-out nats a token; bpb: held-out bits a byte of text. N: non-embedding, N_total: all parameters.

    flops: of this run alone (a branch costs its decay). seconds: of the whole trial, busy: of its steps. workers: trials at a time.
    curve: D -> bpb at the ends of its stages. reason: why it did not end well.
    """

    key: str
    spec: Spec
    state: Literal["done", "diverged", "pruned"]
    N: int
    N_total: int
    D: int
    flops: float
    loss: float | None = None
    bpb: float | None = None
    heldout: dict[str, float] = Field(default={})
    train_loss: float | None = None
    curve: dict[int, float] = Field(default={})
    seconds: float = 0.0
    busy: float = 0.0
    workers: float = Field(gt=0)
    yuan: float = 0.0
    reason: Reason | None = None


class Pruned(Exception):
    """A trial that is stopped because others do better."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text().en)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Lab:
    """A sandbox that is ready for trials: configuration, folder, data."""

    config: SandboxConfig
    out: Path
    built: Built
    stable: dict[str, float]
    decay: dict[str, float]

    @classmethod
    def open(cls, config: SandboxConfig, out: Path, progress: Progress | None = None) -> Lab:
        """Build the data where it is not there yet."""
        wanted = load_data_config(Path(config.data), config.data_set)
        folder = Path(config.data_dir) if config.data_dir else out / "data"
        while True:
            try:
                built = build(wanted, folder, progress=progress)
                break
            except Busy:  # another worker looks whether it is there, or builds it
                time.sleep(_POLL_SECONDS)
        stable = wanted.stages.get("stable", {})
        return cls(config, out, built, stable, wanted.stages.get("decay", stable))

    def spec(self, **changes: Any) -> Spec:
        """The common trial with changes; `tokens` in place of `steps`, rounded to whole ones."""
        values = {**self.config.common.model_dump(), **changes}
        tokens = values.pop("tokens")
        values.setdefault("steps", max(1, round(tokens / values["batch_tokens"])))
        return Spec.model_validate(values)

    def stable_run(self, ends: Collection[int], warmup: int, **changes: Any) -> Spec:
        """A run without a decay that keeps a checkpoint at every end, to branch from; warmup in steps."""
        last = max(ends)
        return self.spec(decay=0.0, steps=last, warmup=warmup / last, marks=tuple(sorted(set(ends))), **changes)

    def branch(self, parent: Spec, start: int, steps: int, **changes: Any) -> Spec:
        """A decay of a stable run from one of its ends on."""
        same = {"width": parent.width, "layers": parent.layers, "seed": parent.seed, "schedule": parent.schedule}
        here = {"parent": parent, "parent_step": start, "steps": steps, "decay": 1.0, "warmup": 0.0}
        return self.spec(**(same | here | changes))

    def folder(self, spec: Spec) -> Path:
        """Where the trial's run lies."""
        return self.out / "trials" / key_of(self, spec)

    def result(self, spec: Spec) -> Result | None:
        """What is known of a trial. Raises ValueError that says what to delete when the file is damaged."""
        return read_result(self.folder(spec))


def read_result(folder: Path) -> Result | None:
    """The result in a trial's folder, None where there is none. Raises ValueError that says what to delete when the file is
    damaged, or of another version."""
    path = folder / RESULT
    if not path.exists():
        return None
    advice = "delete this file, and the same command trains the trial again"
    try:
        return Result.model_validate(read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path}: not a result of a trial ({error.errors()[0]['msg']}); {advice}") from error
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error


def train_config(lab: Lab, spec: Spec) -> TrainConfig:
    """The run that a trial is. Raises ValueError for a shape or batch that does not divide."""
    c = lab.config
    if spec.width % c.head_dim:
        raise ValueError(f"width {spec.width} is not a multiple of head_dim {c.head_dim}")
    if spec.rule not in RULES:
        raise ValueError(f"rule {spec.rule!r:.40}: there are {', '.join(RULES)}")
    resolved = resolve(
        RULES[spec.rule], width=spec.width, layers=spec.layers, batch_tokens=spec.batch_tokens, base=c.base
    )
    heads = spec.width // c.head_dim
    shape = {
        "model_type": "minicpm", "hidden_size": spec.width, "num_hidden_layers": spec.layers, "head_dim": c.head_dim,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": round(c.mlp_ratio * spec.width / 8) * 8,
        "max_position_embeddings": c.seq_len, "tie_word_embeddings": True, **resolved.change,
    }  # fmt: skip
    rows = spec.batch_tokens // c.seq_len
    micro = max(
        n for n in range(1, max(1, rows) + 1) if rows % n == 0 and n * c.seq_len <= max(c.micro_tokens, c.seq_len)
    )
    parent = lab.folder(spec.parent) / "checkpoints" / checkpoint.name_of(spec.parent_step) if spec.parent else None
    return TrainConfig(
        data=c.data,
        data_dir=str(lab.built.path),
        data_set=c.data_set,
        model=ModelChoice(change=shape),
        rules=resolved.rules,
        branch_from=str(parent) if parent else None,
        stages=_stages(lab, spec),
        seq_len=c.seq_len,
        shuffle_rows=c.shuffle_rows,
        batch_tokens=spec.batch_tokens,
        micro_batch_size=micro,
        optimizer=OptimizerConfig(kind=spec.optimizer, lr=spec.lr * resolved.lr_factor, weight_decay=spec.weight_decay),
        schedule=ScheduleConfig(kind=spec.schedule, warmup_steps=0 if spec.parent else round(spec.warmup * spec.steps)),
        precision=c.precision,
        guard=GuardConfig(on_bad_step="stop"),
        save=SaveConfig(every_steps=10**9, every_minutes=2.0, keep_last=1, keep_best=False),
        evaluation=EvaluationConfig(
            every_steps=10**9,
            limit_tokens=c.heldout_tokens,
            stages="all" if spec.marks else "last",
        ),
        seed=spec.seed,
        threads=c.threads,
        cost_profile=c.cost_profile,
        export=False,
    )


def _stages(lab: Lab, spec: Spec) -> tuple[StageConfig, ...]:
    """Stable parts that end at the marks, then the decay. A schedule without a decay has it as well: its data is the same."""
    decaying = spec.steps if spec.parent else round(spec.decay * spec.steps)
    stable = spec.steps - decaying
    ends = sorted({*(m for m in spec.marks if m < stable), *([stable] if stable else [])})
    parts = [
        StageConfig(name=f"stable-{end}", steps=end - begin, mixture=lab.stable)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]
    mixture = lab.decay if spec.mixture is None else spec.mixture
    if decaying:
        parts.append(StageConfig(name="decay", steps=decaying, decay=True, mixture=mixture))
    return tuple(parts)


def key_of(lab: Lab, spec: Spec) -> str:
    """A name that says all that the result depends on."""
    config = train_config(lab, spec).model_dump(mode="json")
    kept = {k: v for k, v in config.items() if k not in FREE and k not in ("data", "data_set", "device", "branch_from")}
    kept |= {"heldout": lab.config.heldout_tokens, "data": lab.built.fingerprint}
    if spec.parent:
        kept["parent"] = [key_of(lab, spec.parent), spec.parent_step]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def cost_of(lab: Lab, spec: Spec) -> tuple[int, int, float]:
    """(N, N_total, FLOPs of this run): known before it starts."""
    config = train_config(lab, spec).model_copy(update={"branch_from": None})  # its run may not be there yet
    shape = pretrain.model_config(config, lab.built)
    count = parameters(shape)
    flops = flops_per_token(shape, lab.config.seq_len, training=True) * spec.steps * spec.batch_tokens
    return count.non_embedding, count.total, flops


def ensure(lab: Lab, spec: Spec, watch: Callable[[dict[str, Any]], None] | None = None) -> Result:
    """The result of a trial: known, waited for, or trained now.

    watch is called with every line of the run's metrics and may raise Pruned. Without it, what a search has pruned is trained to
    its end.
    """
    while True:
        known = lab.result(spec)
        if known is not None and (known.state != "pruned" or watch is not None):
            return known
        if spec.parent is not None and (parent := ensure(lab, spec.parent)).state != "done":
            why = Reason.of(f"parent_{parent.state}", key=parent.key)
            return _record(lab, spec, "diverged", reason=why, begin=time.monotonic())
        try:
            if spec.parent is not None and not checkpoint.checkpoints(lab.folder(spec) / "checkpoints"):
                _branch_point(lab, spec.parent, spec.parent_step)
            return _train(lab, spec, watch)
        except Busy:
            time.sleep(_POLL_SECONDS)  # another process has it


def _branch_point(lab: Lab, parent: Spec, step: int) -> None:
    """Train a finished run again when somebody deleted the checkpoint that a branch is to begin at."""
    folder = lab.folder(parent) / "checkpoints"
    wanted = folder / checkpoint.name_of(step)
    if wanted.is_dir():
        return
    if later := [p for p in checkpoint.checkpoints(folder) if checkpoint.step_of(p) > step]:
        raise ValueError(
            f"{wanted}: a branch is to begin at this checkpoint, which was deleted, and {later[0].name} is still there; "
            f"delete {folder}, and the same command trains the run again"
        )
    _train(lab, parent, None)


def _train(lab: Lab, spec: Spec, watch: Callable[[dict[str, Any]], None] | None) -> Result:
    folder, begin = lab.folder(spec), time.monotonic()
    try:
        outcome = pretrain.run_config(train_config(lab, spec), folder, watch=watch, built=lab.built)
    except TrainingStopped as error:
        return _record(lab, spec, "diverged", reason=_why(error), begin=begin)
    except Pruned as error:
        return _record(lab, spec, "pruned", reason=error.reason, begin=begin)
    if outcome.signal is not None:
        raise KeyboardInterrupt
    return _record(lab, spec, "done", begin=begin)


def _why(error: TrainingStopped) -> Reason:
    """Without what becomes of the checkpoints of a run: those of a trial are deleted."""
    return Reason.of(error.code, **error.values) if error.code else Reason.of("other", text=str(error))


def _record(
    lab: Lab,
    spec: Spec,
    state_: Literal["done", "diverged", "pruned"],
    *,
    begin: float,
    reason: Reason | None = None,
) -> Result:
    """Write result.json from the run's metrics."""
    folder = lab.folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    N, N_total, flops = cost_of(lab, spec)
    lines = _lines(folder)
    steps = [line for line in lines if "loss" in line and "event" not in line]
    helds = [line for line in lines if isinstance(line.get("heldout"), dict)]
    last = helds[-1]["heldout"] if helds and state_ == "done" else {}
    tail = [line["loss"] for line in steps[-max(1, len(steps) // 20) :]]
    busy = sum(spec.batch_tokens / line["tok_s"] for line in steps if line.get("tok_s"))
    seconds = max(busy, time.monotonic() - begin)
    result = Result(
        key=folder.name,
        spec=spec,
        state=state_,
        N=N,
        N_total=N_total,
        D=spec.tokens,
        flops=flops,
        loss=last.get("heldout"),
        bpb=last.get("heldout_bpb"),
        heldout={k: v for k, v in last.items() if k.endswith(("_bpb", "_nats"))},
        train_loss=sum(tail) / len(tail) if tail else None,
        curve={
            h["step"] * spec.batch_tokens: h["heldout"]["heldout_bpb"] for h in helds if "heldout_bpb" in h["heldout"]
        },
        seconds=seconds,
        busy=busy,
        workers=_share(lab.config),
        yuan=cost.yuan(cost.get_profile(lab.config.cost_profile)[1], seconds) / _share(lab.config),
        reason=reason,
    )
    write_json(folder / RESULT, result.model_dump(mode="json"))
    if not spec.marks:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _share(config: SandboxConfig) -> float:
    """How many trials share the machine. A worker that is pinned to its cores sees only those, and is told `workers`."""
    return float(config.workers or max(1, machine.physical_cores() // config.threads))


def _lines(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder) if (folder / "metrics.jsonl").exists() else []

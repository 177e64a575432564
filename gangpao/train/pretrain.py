"""Pretraining from a TOML file: data, model, optimizer and stages put together for the loop, and an export at the end.

A run is a folder:

    run.json          resolved configuration, shape, data fingerprint, git commit, environment
    metrics.jsonl     a line a step, and the held-out losses
    checkpoints/      step-00000400/ ...
    export/           the trained model as a Hugging Face folder with its tokenizer

Running it again goes on where it stopped. `branch_from` begins a new folder at a stable checkpoint of another run, which is only
read: decays of several lengths from one stable run cost no more than the decays. `init_from` begins with the weights of any
checkpoint and a new optimizer.

A source that two stages share goes on in the second where the first left it. Between two stages of one mixture there is no border:
the second sees the rows, in their order, that the first would have seen. A stage of another mixture counts its shares from zero.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from gangpao import cost, machine
from gangpao.atomic import locked, publish
from gangpao.config import explained, merge
from gangpao.data.build import Built, build, open_built
from gangpao.data.config import DataConfig, load_data_config
from gangpao.data.tokens.pack import Batch, Loader, Part, evaluation_batches
from gangpao.model import weights
from gangpao.model.config import PRESETS, ModelConfig
from gangpao.model.count import flops_per_token, parameters
from gangpao.model.init import rule_of
from gangpao.model.transformer import Transformer
from gangpao.progress import Progress, Silent
from gangpao.train.checkpoints import checkpoint
from gangpao.train.config import StageConfig, TrainConfig, load_train_config
from gangpao.train.loop import Job, Outcome, Stage, Training, load_weights
from gangpao.train.memory import admit, is_out_of_memory, rows_are_separable, ways_out
from gangpao.train.progress import Report
from gangpao.train.run_file import RUN, check_folder, facts_of, read_run, same_run, write_run
from gangpao.train.step import parallel
from gangpao.train.step.lanes import Lanes, lanes_for, split_rows
from gangpao.train.step.loss import NextToken
from gangpao.train.step.optim import Average, Optimizer
from gangpao.train.step.parallel import World
from gangpao.train.upcycle import upcycle, upcycled

BUSY = "another process is training here; stop it or choose another folder"


@dataclass(frozen=True, slots=True)
class _Run:
    """What all parts of a run share. known: run.json of earlier calls that saved something, None for a new run. precision_by: who
    chose it: "configured", "auto", or "known" for a run that goes on."""

    config: TrainConfig
    out: Path
    wanted: DataConfig
    built: Built
    world: World
    known: dict[str, Any] | None
    precision_by: str
    watch: Callable[[dict[str, Any]], None] | None = None

    @property
    def fresh(self) -> bool:
        """Nothing is saved yet."""
        return not checkpoint.checkpoints(self.out / "checkpoints")

    @property
    def begin(self) -> int:
        """Steps that were done before this run."""
        return checkpoint.step_of(Path(self.config.branch_from)) if self.config.branch_from else 0


def run(
    path: Path, out: Path, overrides: Sequence[str] = (), *, resume: bool = False, stream: TextIO | None = None
) -> Outcome:
    """Train what the TOML says in the folder `out`, or go on with what is there. resume: insist on the latter.

    Raises ValueError for a wrong configuration, too little memory, or a folder that holds another run.
    """
    return run_config(load_train_config(path, tuple(overrides)), out, resume=resume, stream=stream)


def run_config(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    stream: TextIO | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
    built: Built | None = None,
) -> Outcome:
    """`run` for a configuration that is loaded already (its paths absolute).

    watch: see Report. built: the data, when it is open already.
    """
    check_folder(out, resume=resume)
    if config.init_from:
        config = config.model_copy(update={"init_from": str(_folder_with_weights(Path(config.init_from)))})
    # A start that failed before its first checkpoint leaves nothing that another one would have to go on with.
    known = read_run(out) if checkpoint.checkpoints(out / "checkpoints") else None
    precision_by = "known" if known else "auto" if config.precision == "auto" else "configured"
    if known is not None:
        config = same_run(config, known, out)
    else:
        config = resolved_threads(resolved_precision(config))
        if config.branch_from:
            config = config.model_copy(update={"branch_from": str(stable_checkpoint(Path(config.branch_from)))})
    torch.set_num_threads(config.threads or 1)
    rank = int(os.environ.get("RANK", "0"))
    with locked(out, BUSY) if rank == 0 else contextlib.nullcontext():
        wanted = load_data_config(Path(config.data), config.data_set)
        built = built or _data(wanted, config, out, rank, stream)
        world = parallel.start(config.device, group=config.parallel == "shard" and config.offload)
        try:
            r = _Run(config, out, wanted, built, world, known, precision_by, watch)
            return _train(r, stream if world.rank == 0 else None)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"memory ran out while training. The same command goes on from what is saved in {out}, with less: "
                f"{ways_out(config, world.size)}"
            ) from error
        finally:
            world.close()


def _train(r: _Run, stream: TextIO | None) -> Outcome:
    config, world, fresh = r.config, r.world, r.fresh
    _same_data(r)
    shape = ModelConfig.model_validate(r.known["model"]) if r.known else model_config(config, r.built)
    admit(shape, config, world)
    model = _model(shape, config, fresh)
    shape = model.config  # untied where the weights of init_from have a head of their own
    model = model if config.offload else model.to(world.device)
    if config.parallel == "shard" and (world.size > 1 or config.offload):
        parallel.shard(model, model.model.layers, world, ranks=config.shard_ranks, offload=config.offload)
    rule = functools.partial(rule_of, config=shape, rules=config.rules)
    optimizer = Optimizer(model.named_parameters(), rule, config.optimizer)
    before = None
    if config.branch_from and fresh:
        parent = checkpoint.Checkpoint(Path(config.branch_from))
        load_weights(model, parent.tensors("model"), parent.path)
        optimizer.restore(parent.tensors("optimizer"))
        before = parent.record["source"]
    job = _job(r, shape, model, optimizer, stream)
    job.before = before
    try:
        training = Training(job)
        for line in heading(r, shape):
            job.report.note(line)
        if world.rank == 0 and r.known is None:  # only now: a mistake leaves no run behind
            write_run(r.out, config, shape, facts_of(r.built), world, begin=r.begin)
        outcome = training.fit()
    finally:
        job.report.close()
        job.lanes.close()
    there = outcome.begun == outcome.step and (r.out / "export").is_dir()  # of the call that finished the run
    if outcome.signal is None and config.export and not there:
        values = job.average.values if job.average else dict(model.named_parameters())
        finished = {name: parallel.whole(t.detach()) for name, t in values.items()}
        if world.rank == 0:
            export(r.out / "export", shape, finished, r.built.tokenizer_dir)
    return outcome


def _job(r: _Run, shape: ModelConfig, model: Transformer, optimizer: Optimizer, stream: TextIO | None) -> Job:
    config, world = r.config, r.world
    # Everything that may fail comes before the report opens its file.
    stages, learning_rate = _stages(config, r.built, r.wanted), config.schedule_from(r.begin).learning_rate
    forward = cast(torch.nn.Module, torch.compile(model)) if config.compile else None
    dtype = torch.bfloat16 if config.precision == "bf16" else None
    lanes = _lanes(config, shape, world)
    peak = config.peak_tflops * 1e12 if config.peak_tflops else measured_peak(world.device, dtype or torch.float32)
    report = Report(
        r.out if world.rank == 0 else None,
        stream=stream,
        profile=cost.get_profile(config.cost_profile)[1],
        flops_per_token=flops_per_token(shape, config.seq_len, training=True),
        peak_flops=peak * world.size,
        tensorboard=config.tensorboard,
        watch=r.watch,
    )
    return Job(
        folder=r.out,
        model=model,
        optimizer=optimizer,
        objective=NextToken(dtype=dtype, recompute=config.recompute, z_loss=config.z_loss, device=world.device),
        stages=stages,
        learning_rate=learning_rate,
        rows=config.rows,
        micro_rows=config.micro_batch_size,
        report=report,
        clip=config.optimizer.clip,
        guard=config.guard,
        save=config.save,
        evaluate=evaluator(model, NextToken(dtype=dtype, device=world.device), r.built, config, lanes)
        if r.built.heldout
        else None,
        evaluate_every=config.evaluation.every_steps,
        evaluate_stages=config.evaluation.stages == "all",
        average=Average(model.named_parameters(), config.ema) if config.ema else None,
        world=world,
        begin=r.begin,
        forward=forward,
        no_sync=config.no_sync,
        lanes=lanes,
    )


def _lanes(config: TrainConfig, shape: ModelConfig, world: World) -> Lanes:
    threads, gradients = config.threads or 1, 4 * parameters(shape).total
    separable = rows_are_separable(config, shape, world)
    return lanes_for(threads, config.micro_batch_size, gradients, separable=separable)


# --- data and stages


def _data(wanted: DataConfig, config: TrainConfig, out: Path, rank: int, stream: TextIO | None) -> Built:
    """The token shards; rank 0 makes them where they are not there, the others wait for the files."""
    folder = Path(config.data_dir) if config.data_dir else out / "data"
    while rank:  # no process group yet: its timeout is for lost ranks, and a build takes minutes
        try:
            return open_built(folder)
        except (ValueError, OSError):
            time.sleep(1.0)
    try:
        with Progress(stream) if stream else Silent() as progress:
            return build(wanted, folder, progress=progress)
    except ValueError as error:
        raise ValueError(
            f"the data of this run, {config.data}: {error}. Here a change of it is written "
            f"--set 'data_set=[\"KEY=VALUE\"]'; `gangpao data build` builds it alone, and --set data_dir=FOLDER takes what it built"
        ) from error


def _same_data(r: _Run) -> None:
    if r.known is not None and r.known["data"]["fingerprint"] != r.built.fingerprint:
        raise ValueError(
            f"{r.out}: the data has changed since this run began; begin another one (branch_from goes on from this one)"
        )
    mine = float(int(r.built.fingerprint[:8], 16)) if r.world.size > 1 else 0.0
    if r.world.sums([mine])[0] != mine * r.world.size:
        raise ValueError("the ranks see different data: build it once with `gangpao data build` and set data_dir")


def _stages(config: TrainConfig, built: Built, wanted: DataConfig) -> list[Stage]:
    parts = [
        _parts(stage, built, wanted.stages.get(stage.name, {})) for stage in config.stages
    ]  # all checked before the first one runs

    def make(i: int, before: dict[str, Any] | None) -> Loader:
        loader = Loader(parts[i], seq_len=config.seq_len, seed=config.seed, window=config.shuffle_rows)
        if before is not None and before.get("seed") == config.seed:
            same = {
                n: p
                for n, p in before["parts"].items()
                if n in built.train and p["fingerprint"] == built.train[n].fingerprint
            }
            loader.adopt({**before, "parts": same})
        return loader

    steps = config.stage_steps()
    return [Stage(s.name, steps[i], functools.partial(make, i), s.decay) for i, s in enumerate(config.stages)]


def _parts(stage: StageConfig, built: Built, usual: dict[str, float]) -> list[Part]:
    """The mixture of the run's TOML, else that of the data's for a stage of this name, else every source by its size.

    Conversations are not cut: half of one teaches to answer nothing.
    """
    mixture = stage.mixture or usual or {name: float(shards.num_tokens) for name, shards in built.train.items()}
    if unknown := sorted(mixture.keys() - built.train.keys()):
        raise ValueError(
            f"stage {stage.name}: no source {unknown[0]!r} in the data; there are {', '.join(built.train)}"
        )
    return [
        Part(name, built.train[name], weight, whole=built.train[name].supervised)
        for name, weight in mixture.items()
        if weight > 0
    ]


def evaluator(
    model: Transformer, objective: NextToken, built: Built, config: TrainConfig, lanes: Lanes
) -> Callable[[Callable[[], bool]], dict[str, float] | None]:
    """Held-out nats per token and bits per byte of every source, and of all together ("heldout" and "heldout_bpb")."""
    e = config.evaluation

    @torch.no_grad()
    def loss(batch: Batch) -> float:
        return float(objective(model, batch, 1.0).values["loss"])

    def evaluate(stop: Callable[[], bool]) -> dict[str, float] | None:
        out: dict[str, float] = {}
        total = labels = bits = size = 0.0
        for name, shards in built.heldout.items():
            nats, count = 0.0, 0
            for batch in evaluation_batches(shards, config.seq_len, e.rows, e.limit_tokens):
                if stop():
                    return None
                nats += sum(lanes.map(loss, split_rows(batch, lanes.count)))
                count += objective.measure(batch)[0]
            if count:
                out[f"{name}_nats"] = nats / count
                if not shards.supervised:  # of a conversation only the answers are predicted, and bytes count it all
                    seen = count / shards.num_tokens * shards.num_bytes
                    bits, size = bits + nats / math.log(2), size + seen
                    out[f"{name}_bpb"] = nats / math.log(2) / seen
            total, labels = total + nats, labels + count
        if not labels:
            return None
        return {"heldout": total / labels, **({"heldout_bpb": bits / size} if size else {}), **out}

    return evaluate


# --- model


def model_config(config: TrainConfig, built: Built) -> ModelConfig:
    """The shape: of init_from, of the run that is branched from, else the preset with its changes and the data's vocabulary."""
    if config.init_from:
        shape = ModelConfig.from_file(Path(config.init_from) / "config.json")
        if shape.vocab_size < built.vocab_size:
            raise ValueError(
                f"{config.init_from} has {shape.vocab_size} tokens and the data {built.vocab_size}: "
                "build it with the model's tokenizer"
            )
        u = config.upcycle
        return upcycled(shape, u.num_experts, u.num_experts_per_tok) if u else shape
    if config.branch_from:
        parent = read_run(Path(config.branch_from).parent.parent)
        if parent is None:
            raise ValueError(
                f"branch_from {config.branch_from}: there is no {RUN} beside its checkpoints; give the folder of a run"
            )
        return ModelConfig.model_validate(parent["model"])
    preset = config.model.preset
    if preset is not None and preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"model.preset {preset!r:.60}: there are {', '.join(PRESETS)}{meant}")
    special = {"vocab_size": built.vocab_size, **special_ids(built.tokenizer_dir)}
    base = PRESETS[preset].model_dump() if preset else {}
    try:
        return ModelConfig.model_validate(merge(merge(base, special), config.model.change))
    except ValidationError as error:
        raise ValueError(explained(error, ModelConfig, config.model.change, "model.change")) from error


def special_ids(folder: Path) -> dict[str, int]:
    """bos_token_id and eos_token_id as a tokenizer's files have them; what they lack is left out."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    ids = {token["content"]: int(token["id"]) for token in added}
    out = {}
    for key in ("bos_token", "eos_token"):
        token = config.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            out[f"{key}_id"] = ids[text]
    return out


def _folder_with_weights(path: Path) -> Path:
    """The Hugging Face folder that init_from means: itself, or the export of a run. Raises ValueError where there is none."""
    for folder in (path, path / "export"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"init_from {path}: no config.json here: give a Hugging Face folder, or a run that has its export/"
    )


def _model(shape: ModelConfig, config: TrainConfig, fresh: bool) -> Transformer:
    """The model a run begins with; when it goes on from a checkpoint, the values do not matter yet."""
    if config.init_from is None or not fresh:
        return Transformer.build(shape, seed=config.seed, rules=config.rules)
    folder = Path(config.init_from)
    if config.upcycle is None:
        return weights.load(folder, dtype=torch.float32)
    values = upcycle(shape, dict(weights.tensors(folder)), seed=config.seed)
    with torch.device("meta"):
        model = Transformer(shape)
    weights.fill(model, iter(values.items()), dtype=torch.float32, device="cpu", where=str(folder))
    return model


def stable_checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the newest of a run in which nothing has decayed. Raises ValueError where there is none."""
    if not path.is_dir():
        raise ValueError(
            f"branch_from {path}: there is no such folder, so no checkpoint from before the decay is here; give the folder of a run"
        )
    chosen = [path] if (path / checkpoint.MANIFEST).is_file() else checkpoint.checkpoints(path / "checkpoints")
    for candidate in reversed(chosen):
        if not checkpoint.Checkpoint(candidate).record["decayed"]:
            return candidate
    raise ValueError(
        f"branch_from {path}: no checkpoint from before the decay is here; give a run (or one checkpoint of it) that kept one"
    )


def resolved_precision(config: TrainConfig) -> TrainConfig:
    """`precision = auto` decided once, for all resumptions: bf16 on GPUs and on processors with instructions for it.

    Measured on two cores with AVX512-BF16: 1.6 times the tokens of float32.
    """
    if config.precision != "auto":
        return config
    return config.model_copy(update={"precision": "bf16" if _multiplies_bf16(config.device) else "fp32"})


def _multiplies_bf16(device: str) -> bool:
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    known = [getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("amx_tile", "avx512_bf16")]
    return cuda or any(known)


def heading(r: _Run, shape: ModelConfig) -> list[str]:
    """What is about to be trained, and on what, and why so: the first lines of a run."""
    config, count = r.config, parameters(shape)
    steps = config.stage_steps()
    stages = ", ".join(f"{stage.name} {n:,}" for stage, n in zip(config.stages, steps, strict=True))
    precision = {
        "configured": "as configured", "known": "as when the run began",
        "auto": "the hardware multiplies it" if config.precision == "bf16" else "no instructions for bf16 here",
    }[r.precision_by]  # fmt: skip
    n = torch.get_num_threads()
    threads = f"{n} thread{'s' if n > 1 else ''} (--set threads=N changes it)"
    place = f"{torch.cuda.get_device_name(r.world.device)}" if r.world.device.type == "cuda" else machine.cpu_name()
    ranks = f"{r.world.size} ranks, each with " if r.world.size > 1 else ""
    lines = [
        f"{r.out}: {count.total:,} parameters, {sum(steps):,} steps of {config.batch_tokens:,} tokens ({stages})",
        f"{ranks}{threads}, {config.precision} ({precision}), {place}",
    ]
    if r.known is None and (r.out / RUN).exists():
        lines.append("an earlier start in this folder saved nothing: this one begins anew")
    return lines


def resolved_threads(config: TrainConfig) -> TrainConfig:
    """`threads` decided once, for all resumptions: where sums are parted depends on it. One a core, shared by ranks."""
    if config.threads is not None:
        return config
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return config.model_copy(update={"threads": max(1, machine.physical_cores() // ranks)})


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of one square matrix product, the best of a few: what mfu is a share of."""
    size = size * 8 if device.type == "cuda" else size
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        start = time.perf_counter()
        b = a @ a
        float(b[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf")


def export(folder: Path, shape: ModelConfig, values: dict[str, Tensor], tokenizer_dir: Path) -> Path:
    """The model as a Hugging Face folder with its tokenizer; one from before is replaced when the new one is whole.

    tokenizer_dir may be a model's folder, of which the weights are left out: they are not those of `values`.
    """
    staging = folder.with_name(f".{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    beside = (p for p in tokenizer_dir.iterdir() if p.is_file() and p.name != "config.json")
    extra = {p.name: p.read_bytes() for p in beside if not p.name.endswith(_WEIGHTS)}
    weights.save(staging, shape, {name: t.cpu().contiguous() for name, t in values.items()}, extra=extra)
    publish(staging, folder)
    return folder

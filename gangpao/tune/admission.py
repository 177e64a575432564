"""Whether a tuning run fits: its plan of memory from the headers of its base, what there is, and ways out where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gangpao import machine
from gangpao.config import merge, parse_override
from gangpao.formats.gguf import GGUF
from gangpao.model.config import ModelConfig
from gangpao.model.count import kv_bytes_per_token, parameters
from gangpao.model.weights import weight_files
from gangpao.train.step.lean import BLOCK as LEAN_BLOCK
from gangpao.tune.base.device import compute_dtype, describe
from gangpao.tune.base.load import base_shape, check_length
from gangpao.tune.config import TuneConfig
from gangpao.tune.memory import ADAMW, MUON, STORAGE_BYTES, OptimizerMemory, Plan, Row, Step, mib, plan
from gangpao.tune.methods.table import METHODS
from gangpao.tune.objectives.asking import BATCH
from gangpao.tune.pictures import load as sight
from gangpao.tune.pictures.memory import sight_bytes
from gangpao.tune.sharding import in_parts


def plan_of(config: TuneConfig, model: Path, device: str = "cpu", *, ranks: int = 1) -> Plan:
    """The plan of a run on a base (a folder or a .gguf file), from its headers alone.

    Raises ValueError for a base, or a method on it, that cannot be, and for rows longer than the base's context.
    """
    rows = config.objective.answers if config.objective.kind == "grpo" else config.micro_batch_size
    shape, tokens = base_shape(model), rows * config.seq_len
    check_length(config.seq_len, shape, model)
    dtype = config.dtype or compute_dtype(describe(device))
    plain = config.objective.kind in ("sft", "pretrain") and not config.method.dropout and shape.moe is None
    plain = plain and config.parallel == "replicate"
    lanes = config.threads or machine.physical_cores() if plain and device == "cpu" else 1
    step = Step(
        tokens * (2 if config.data_kind == "pairs" else 1), config.seq_len, dtype, config.recompute,
        packed=config.data_kind in ("answers", "texts"), passes=max(1, config.rows // (config.micro_rows * ranks)),
        lanes=lanes,
    )  # fmt: skip
    storage: str | int = _stored(model, shape) if config.base_storage == "auto" else config.base_storage
    found = plan(shape, config.method, step, storage=storage, optimizer=_optimizer(config))
    if config.parallel == "shard" and ranks > 1:
        found = in_parts(found, shape, storage, config.shard_ranks or ranks)
    if config.objective.kind == "grpo":
        found = Plan((*found.rows, _answering(config, model, shape)), found.moment)
    return _with_sight(found, config, model, tokens) if sight.sees(model) else found


def _answering(config: TuneConfig, model: Path, shape: ModelConfig) -> Row:
    """What the engine takes that gives GRPO's answers: the file once more, packed, and keys and values of those under way."""
    longest = config.seq_len + config.objective.max_answer_tokens
    cache = BATCH * longest * kv_bytes_per_token(shape)
    stored = _stored(model, shape)
    return Row(
        "engine",
        int(cache) + (stored if isinstance(stored, int) else 0),
        "which answers: the file packed, and its cache",
    )


def _with_sight(found: Plan, config: TuneConfig, model: Path, tokens: int) -> Plan:
    """A plan with the tower of a model that sees."""
    vision, text = sight.shapes(model)
    stored = STORAGE_BYTES["fp32" if config.base_storage == "auto" else config.base_storage]
    parts = sight_bytes(vision, text.hidden_size, config.vision, tokens, stored=stored, recompute=config.recompute)
    words = (
        f"of the tower and its pictures: {', '.join(f'{name} {mib(size)}' for name, size in parts.items())} MiB at most"
    )
    return Plan((*found.rows, Row("sight", sum(parts.values()), words)), found.moment)


def _optimizer(config: TuneConfig) -> OptimizerMemory:
    if config.optimizer.kind != "lean":
        return MUON if config.optimizer.kind == "muon" else ADAMW
    moment = 1 + 4 / LEAN_BLOCK  # a byte, and a scale for a block
    moments = moment * (2 if config.lean.second == "blocks" else 1)
    return OptimizerMemory(moments + (config.lean.rounding == "corrected"), released=config.lean.release)


def _stored(model: Path, shape: ModelConfig) -> str | int:
    """Of a GGUF file its tensors' bytes; of a folder the dtype of its files, by their size."""
    if model.is_file():
        with GGUF.open(model) as file:
            return sum(info.nbytes for info in file.tensors.values())
    size = sum(path.stat().st_size for path in weight_files(model))
    return "bf16" if size < 3 * parameters(shape).total else "fp32"


class TooLittle(ValueError):
    """There is less memory than a run needs. Its message has lines of its own, a table among them."""


def device_of(config: TuneConfig) -> torch.device:
    """Where a run of one rank would compute."""
    on_card = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_card else "cpu")


def available(device: torch.device) -> int:
    """Bytes that a device has left."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.available_memory()


def ways_of(
    need: int, have: int, config: TuneConfig, model: Path, device: torch.device, *, ranks: int = 1
) -> list[str]:
    """What takes less memory than the `need` of a run, in words, with what it then needs."""
    ways = []
    for change in changes(config, model):
        less = plan_of(changed(config, change), model, device.type, ranks=ranks).need
        enough = "" if less <= have else ", not enough alone"
        ways += [f"--set {change} (then {mib(less)} MiB{enough})"] if less < need else []
    return [*ways, "a smaller or more strongly quantized base"]


def verdict(found: Plan, config: TuneConfig, model: Path, device: torch.device, *, ranks: int = 1) -> dict[str, Any]:
    """Whether a run with this plan fits on a device: the bytes that there are, and the ways out where it does not."""
    have = available(device)
    fits = found.need <= have
    ways = [] if fits else ways_of(found.need, have, config, model, device, ranks=ranks)
    return {"have": have, "fits": fits, "ways_out": ways}


def verdict_text(found: dict[str, Any]) -> str:
    """A verdict for people."""
    if found["fits"]:
        return f"have {mib(found['have'])} MiB: the run fits"
    return f"have {mib(found['have'])} MiB: the run does not fit. {_listed(found['ways_out'])}"


def _listed(ways: Sequence[str]) -> str:
    return "Ways out:" + "".join(f"\n  {way}" for way in ways)


def admit(config: TuneConfig, model: Path, device: torch.device, *, ranks: int = 1) -> None:
    """Raises TooLittle, a ValueError, when a run needs more memory than there is, with need, have, the table and the ways out."""
    found = plan_of(config, model, device.type, ranks=ranks)
    said = verdict(found, config, model, device, ranks=ranks)
    if not said["fits"]:
        raise TooLittle(
            f"not enough memory to tune {model}: it needs {mib(found.need)} MiB and {mib(said['have'])} MiB are available.\n"
            f"{found.text()}\n{_listed(said['ways_out'])}"
        )


def ways_out(config: TuneConfig) -> str:
    """What takes less memory, as options of the command line."""
    return ", ".join([*(f"--set {change}" for change in changes(config)), "a smaller or more strongly quantized base"])


def changes(config: TuneConfig, model: Path | None = None) -> list[str]:
    """Single options that take less memory than what a run has, as they are typed, the ones that cost least first."""
    fewer = next((n for n in range(config.micro_batch_size // 2, 0, -1) if config.rows % n == 0), None)
    shorter = config.seq_len // 2
    parts = not config.counts_tokens or config.batch_tokens % max(1, shorter) == 0
    folder = model is None or not model.is_file()
    small, adapts = config.storage == "nf4", not METHODS[config.method.kind].trains_base
    return [
        *([] if config.recompute else ["recompute=true"]),
        *([f"micro_batch_size={fewer}"] if fewer else []),
        *(["optimizer.kind=lean"] if not adapts and config.optimizer.kind != "lean" else []),
        *(["method.kind=lora"] if not adapts else []),
        *(["storage=nf4"] if folder and adapts and not small else []),
        *([f"method.rank={config.method.rank // 4}"] if adapts and config.method.rank >= 4 else []),
        *([f"seq_len={shorter}"] if shorter >= 8 and parts else []),
    ]


def changed(config: TuneConfig, change: str) -> TuneConfig:
    """A run's configuration with one option `a.b=c` over it; rows that become shorter become no more at once."""
    return TuneConfig.model_validate(merge(config.model_dump(mode="json"), parse_override(change)))

"""run.json: what a run was told, and what it ran on, so that a result can be traced and a run only goes on as itself.

Resolved configuration, shape, fingerprint of the data, commit of the code, environment. A second call with another
configuration is refused by the names of what differs.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gangpao
from gangpao import machine
from gangpao.atomic import sync
from gangpao.config import Frozen
from gangpao.data.build import Built
from gangpao.model.config import ModelConfig
from gangpao.model.count import parameters
from gangpao.train.checkpoints.checkpoint import checkpoints, step_of
from gangpao.train.config import TrainConfig
from gangpao.train.step.parallel import World
from gangpao.units import utc_now

RUN = "run.json"
# What may differ between two calls that train the same run: none of it changes the results beyond rounding.
FREE = {
    "save",
    "evaluation",
    "threads",
    "cost_profile",
    "peak_tflops",
    "tensorboard",
    "data_dir",
    "micro_batch_size",
    "recompute",
    "compile",
    "export",
    "parallel",
    "shard_ranks",
    "offload",
    "no_sync",
}


def check_folder(out: Path, *, resume: bool) -> None:
    """Raises ValueError where a file is in the way of a run's folder, and with `resume` where no run is in it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: a file is in the way; give the folder of the run, which may not exist yet")
    if resume and not (out / RUN).exists():
        raise ValueError(f"{out}: --resume, and there is no run here; leave it out to begin one")


def read_run(out: Path) -> dict[str, Any] | None:
    """What an earlier call wrote, or None for a folder without a run. Raises ValueError when it is damaged."""
    path = out / RUN
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {"config": dict(data["config"]), "data": dict(data["data"]), **data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}), and {saved_of(out)} belongs to it; choose another folder"
        ) from error


def same_run(config: TrainConfig, known: dict[str, Any], out: Path) -> TrainConfig:
    """The configuration to go on with. Raises ValueError naming what differs in a way that changes the results."""
    # An option that did not exist when the run began has its default there.
    before = type(config).model_construct(data="", stages=()).model_dump(mode="json") | known["config"]
    if config.branch_from and before.get("branch_from"):  # a run was named, and its checkpoint chosen at the start
        config = config.model_copy(update={"branch_from": before["branch_from"]})
    if config.precision == "auto":  # decided when the run began, perhaps on another machine
        config = config.model_copy(update={"precision": before["precision"]})
    if config.threads is None:  # the same
        config = config.model_copy(update={"threads": before["threads"] or machine.physical_cores()})
    refuse_differences(before, config.model_dump(mode="json"), out, free=FREE, paths=_PATHS, branch=True)
    return config


def refuse_differences(
    before: dict[str, Any],
    now: dict[str, Any],
    out: Path,
    *,
    free: Collection[str],
    paths: Collection[str],
    branch: bool = False,
) -> None:
    """Raises ValueError naming what differs between the configuration that a run began with and that of now.

    free: keys that may differ. paths: keys of paths, which may have moved. branch: whether a run can begin at this one.
    """
    now = dict(now)
    for key in paths:
        if _same_path(before.get(key), now.get(key)):
            now[key] = before.get(key)
    differ = sorted(key for key in now.keys() | before.keys() if key not in free and now.get(key) != before.get(key))
    if not differ:
        return
    changes = [change for key in differ for change in _changes(key, before.get(key), now.get(key))]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    there = f" (there, --set branch_from={out} goes on from its last checkpoint before the decay)" if branch else ""
    raise ValueError(
        f"{out} holds {saved_of(out)} of a run with another {', '.join(differ)} ({'; '.join(changes[:_SHOWN])}{more}): take "
        f"the change back to go on with it, give another --out{there}, or delete it and begin anew: rm -r {out}"
    )


# What counts behind these is what the folder of the run has by now: the data by its fingerprint, the weights.
_PATHS = ("data", "init_from")
_SHOWN = 3


def _same_path(before: Any, now: Any) -> bool:
    """Whether two paths mean one thing, or the one before has moved, as with the checkout it lies in."""
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    return not Path(before).exists() or Path(before).resolve() == Path(now).resolve()


def saved_of(out: Path) -> str:
    """What is saved of a run, in words."""
    saved = checkpoints(out / "checkpoints")
    return f"the saved step {step_of(saved[-1]):,}" if saved else "nothing saved"


def _changes(key: str, before: Any, now: Any) -> Iterator[str]:
    """The values that differ below a key, each on its own: `optimizer.lr: 0.01 there, 0.5 now`."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                yield from _changes(f"{key}.{name}", before.get(name), now.get(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                yield from _changes(f"{key}.{i}", old, new)
    else:
        yield f"{key}: {_shown(before)} there, {_shown(now)} now"


def _shown(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = str(value)
    return text if len(text) <= 60 else "..." + text[-57:]  # of a path, the end tells


def write_run(out: Path, config: Frozen, shape: ModelConfig, data: dict[str, Any], world: World, **more: Any) -> None:
    """Write run.json, whole or not at all. data: fingerprint and tokens; more: further entries."""
    count = parameters(shape)
    found = {
        "config": config.model_dump(mode="json"),
        "model": shape.model_dump(mode="json", exclude_none=True),
        "parameters": {"total": count.total, "non_embedding": count.non_embedding},
        **more,
        "started": utc_now(),
        "data": data,
        "git": machine.git_commit(),
        "environment": environment(world),
    }
    staging = out / f".{RUN}"
    staging.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(staging)
    staging.rename(out / RUN)
    sync(out)


def facts_of(built: Built) -> dict[str, Any]:
    """What run.json says of a data build."""
    return {
        "fingerprint": built.fingerprint,
        "train_tokens": {name: shards.num_tokens for name, shards in built.train.items()},
        "heldout_tokens": {name: shards.num_tokens for name, shards in built.heldout.items()},
    }


@functools.cache
def environment(world: World) -> dict[str, Any]:
    """What a result depends on besides the code."""
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else machine.cpu_name()
    return {
        "gangpao": gangpao.__version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version(),
        "platform": platform.platform(), "device": device, "threads": torch.get_num_threads(), "ranks": world.size,
    }  # fmt: skip

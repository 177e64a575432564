"""The whole configuration of a sandbox: the common part, and the table of every experiment under the experiment's name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from pydantic import create_model

from gangpao.config import anchored_overrides, load_toml
from gangpao.data.config import DataConfig
from gangpao.sandbox.experiments import EXPERIMENTS, Row
from gangpao.sandbox.trials.config import SandboxConfig


class _Whole(SandboxConfig):
    """A class that is made when it is needed has no name to pickle by: another process makes its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.model_dump(mode="json"),)


def _restored(values: dict[str, Any]) -> SandboxConfig:
    return config_type().model_validate(values)


def config_type() -> type[SandboxConfig]:
    """The class of a whole configuration, of the experiments that EXPERIMENTS has now."""
    return _config_type(tuple(EXPERIMENTS.items()))


@functools.cache
def _config_type(rows: tuple[tuple[str, Row], ...]) -> type[SandboxConfig]:
    tables: dict[str, Any] = {}
    for name, row in rows:
        table = getattr(row.load(), row.table)
        tables[name] = (table, table())
    return create_model(
        "SandboxConfig", __base__=_Whole, __doc__="A sandbox: its common part and its experiments.", **tables
    )


def load_sandbox_config(path: Path, overrides: tuple[str, ...] = ()) -> SandboxConfig:
    """A sandbox's TOML with `a.b=c` over it, its paths absolute. Raises ValueError naming file, line and key."""
    config = load_toml(path, config_type(), overrides)
    data_set = anchored_overrides(config.data_set, DataConfig, path, "data_set", overrides)
    return config.model_copy(update={"data_set": data_set})


def read_config(path: Path) -> SandboxConfig:
    """A configuration as `queue.write_config` left it for a worker. Raises ValueError where it is none."""
    return config_type().model_validate_json(path.read_text(encoding="utf-8"))

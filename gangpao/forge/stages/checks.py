"""What a stage's command would refuse, found before the first stage runs: a wrong key behind hours of training helps nobody.

Configurations are read as their commands read them, and files that hold rows are opened. What depends on earlier stages is left to
the commands.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gangpao.forge.config import (
    CompressStage,
    DataStage,
    EvaluateStage,
    ExportStage,
    PlanStage,
    SandboxStage,
    TrainStage,
    TuneStage,
)
from gangpao.forge.stages.stage import Context


def of_data(context: Context, stage: DataStage) -> None:
    """Raises ValueError for a description of a corpus that is none."""
    from gangpao.data.config import load_data_config

    load_data_config(context.config_file(stage.config), stage.set).root_dir()


def of_sandbox(context: Context, stage: SandboxStage) -> None:
    """Raises ValueError for a wrong configuration, and for an experiment that there is not."""
    from gangpao.sandbox.experiments import EXPERIMENTS

    for name in stage.experiments:
        if name not in EXPERIMENTS:
            raise ValueError(f"experiments: there is no {name!r:.40}; there are {', '.join(EXPERIMENTS)}")
    _sandbox_config(context, stage)


def of_plan(context: Context, stage: PlanStage) -> None:
    """Raises ValueError for a budget that says nothing."""
    from gangpao.sandbox.plan.budget import parse_budget

    parse_budget(stage.budget)


def of_train(context: Context, stage: TrainStage) -> None:
    """Raises ValueError for a wrong configuration."""
    if stage.config is not None:
        from gangpao.train.config import load_train_config

        load_train_config(Path(context.config_file(stage.config)), (*with_data(context), *stage.set))


def of_tune(context: Context, stage: TuneStage) -> None:
    """Raises ValueError for a wrong configuration, rows that are not there, and rows longer than the plan's model will read."""
    from gangpao.tune.config import load_tune_config

    config = load_tune_config(Path(context.config_file(stage.config)), ('model="-"', *stage.set))
    _open_rows(config.data)
    _reads(context, config.seq_len)


def of_compress(context: Context, stage: CompressStage) -> None:
    """The same of the steps that learn."""
    from gangpao.compress.line.config import load_compress_config

    config = load_compress_config(Path(context.config_file(stage.config)), ('model="-"', *stage.set))
    for number, step in enumerate(config.step):
        data = getattr(step, "data", None)
        if hasattr(data, "files"):
            try:
                _open_rows(data)
            except ValueError as error:
                raise ValueError(f"step {number + 1}, {step.kind}: {error}") from error


def of_evaluate(context: Context, stage: EvaluateStage) -> None:
    """Raises ValueError for texts that are not there, and for suites that there are not."""
    from gangpao.evaluate.run import check_suites

    check_suites(stage.suites)
    for path in text_paths(stage):
        if not path.exists():
            raise ValueError(f"texts: {path}: there is no such file; its path starts at the folder of the line's TOML")


def of_export(context: Context, stage: ExportStage) -> None:
    """Raises ValueError for a type that is not written."""
    from gangpao.formats.blocks import WRITTEN

    if stage.type.upper() not in WRITTEN:
        raise ValueError(f"type: {stage.type!r:.40} is not written; choose one of {', '.join(WRITTEN)}")


def text_paths(stage: EvaluateStage) -> Iterable[Path]:
    """Where the texts of an evaluation lie."""
    return (Path(text.rpartition("=")[2]).expanduser() for text in stage.texts)


def with_data(context: Context, folder: str = "") -> list[str]:
    """key=value with which a command learns from what the data stage built in `folder`."""
    from json import dumps

    stage = context.config.data
    assert stage is not None
    given = [f"data={dumps(context.config_file(stage.config, 'data'))}"]
    given += [f"data_dir={dumps(folder)}"] if folder else []
    return [*given, *([f"data_set={dumps(list(stage.set))}"] if stage.set else [])]


def _sandbox_config(context: Context, stage: SandboxStage) -> Any:
    from gangpao.sandbox.experiments.config import load_sandbox_config

    return load_sandbox_config(Path(context.config_file(stage.config, "sandbox")), (*with_data(context), *stage.set))


def _open_rows(data: Any) -> None:
    from gangpao.tune.data.rows import open_file

    for file in data.files:
        open_file(file, Path(data.root))


def _reads(context: Context, seq_len: int) -> None:
    """Raises ValueError where the plan's model will read fewer tokens than a tuning's rows have."""
    train, sandbox = context.config.train, context.config.sandbox
    if train is None or train.config is not None or sandbox is None:
        return
    most = _sandbox_config(context, sandbox).seq_len
    if seq_len > most:
        raise ValueError(
            f"seq_len is {seq_len:,}, and the model will read {most:,} tokens, which is seq_len of [sandbox]: take {most} or less "
            "here, or more there"
        )

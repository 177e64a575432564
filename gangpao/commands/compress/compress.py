"""`gangpao compress`: a model through the steps of a TOML file: pruned, trained towards what it was, quantized, in any order.

    gangpao compress CONFIG --out RUN

Progress is on stderr; what became of it is on stdout at the end: a row a step, and the pages in RUN. A run that was stopped goes on
with the same command.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gangpao.commands.model.find import find_model, find_weights
from gangpao.long_command import ctrl_c_later, leave, say
from gangpao.page import language_of
from gangpao.progress import Progress
from gangpao.units import show_count

Lang = Annotated[str, typer.Option("--lang", help="Language of the pages: en or zh.")]


def compress(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="TOML with the model and its [[step]] tables.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; one that is there is resumed.")] = Path(
        "compressed"
    ),
    model: Annotated[str | None, typer.Option("-m", "--model", help="Model in place of the TOML's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value over the TOML, for example step.0.layers=0.5; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless there is a run to go on with.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Measure what every step made.")] = True,
    lang: Lang = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Prune, distil, train for few bits, cut into experts, quantize: the steps of a TOML file, resumable, each measured."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # see gangpao.train.command
    language = language_of(lang)
    with ctrl_c_later():
        from gangpao.commands import bench
        from gangpao.compress.line import report as reports
        from gangpao.compress.line.config import load_compress_config
        from gangpao.compress.line.run import run_compression
        from gangpao.compress.step import Stopped
        from gangpao.evaluate.models import load
        from gangpao.train import progress
    typed = (f'model="{model}"', *(overrides or [])) if model else tuple(overrides or [])
    wanted = load_compress_config(config, typed)
    source = find_weights(wanted.model)
    try:
        done = run_compression(wanted, source, out, resume=resume, stream=progress.stderr())
    except Stopped as stop:
        say(f"{out}: {stop}")
        leave(128 + stop.signal)
        return
    except KeyboardInterrupt:
        say(f"{out}: stopped; the same command goes on from what is saved")
        leave(130)
        return
    if not report:
        print(done[-1].path)
        return
    load.use_finder(find_model)
    with Progress() as texts, Progress(show=show_count) as answers:
        found = reports.measured(
            wanted, source, done, out, measure_speed=bench.measure, progress=(texts, answers), language=language
        )
    print(json.dumps(found, ensure_ascii=False, default=str) if as_json else reports.text(found))

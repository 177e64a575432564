"""`gangpao compare`: what a smaller model lost, beside the one it was made from, in one table.

The first model is the reference. Progress is on stderr; with --json the whole result is one object on stdout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gangpao.commands import bench
from gangpao.commands import options as opt
from gangpao.commands.model.find import find_model
from gangpao.compress.compare import page
from gangpao.compress.compare.prompts import read_prompts
from gangpao.compress.compare.run import Settings, as_json, run
from gangpao.engine.memory import EngineOptions
from gangpao.evaluate.models import load
from gangpao.evaluate.report.page.document import as_text
from gangpao.options import command_of
from gangpao.page import language_of
from gangpao.progress import Progress
from gangpao.units import show_count

Models = Annotated[
    list[str], typer.Argument(metavar="A B [C ...]", help=f"The reference, and what to compare with it. {opt.MODEL}.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for a page and all results; a comparison that was stopped goes on there."),
]
Lang = Annotated[str, typer.Option("--lang", help="Language of table and page: en or zh.")]


@command_of()
def compare(
    models: Models,
    out: Out = None,
    lang: Lang = "en",
    as_object: opt.Json = False,
    cost_profile: opt.CostProfile = None,
    *,
    settings: Settings,
    options: EngineOptions,
) -> None:
    """Say what smaller models lost beside the first: texts, answers that end, speed, price."""
    language = language_of(lang)
    load.use_finder(find_model)
    with Progress() as texts, Progress(show=show_count) as answers:
        found = run(
            models,
            settings,
            options,
            measure_speed=bench.measure,
            out=out,
            profile=cost_profile,
            progress=(texts, answers),
        )
    written = page.write(found, language, read_prompts(settings.prompts), out) if out is not None else []
    if as_object:
        print(json.dumps(as_json(found), ensure_ascii=False))
        return
    print(as_text(page.tables(found, language)), end="")
    for path in written:
        print(path)

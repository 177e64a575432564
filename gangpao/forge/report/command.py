"""`gangpao report RUN`: one page of a line: predicted and came, curves, data, scores, quality against bytes, speed, price."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gangpao.page import language_of


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of `gangpao forge`.")],
    lang: Annotated[str, typer.Option("--lang", help="en or zh.")] = "en",
) -> None:
    """Write one page of a run of `gangpao forge`, as HTML without a network and as Markdown."""
    from gangpao.evaluate.report.page import document
    from gangpao.forge.record import read_line
    from gangpao.forge.report.blocks import blocks
    from gangpao.forge.report.words import Words

    language = language_of(lang)
    line = read_line(run)
    title = Words(language)("title", name=line.config.name)
    for path in document.write(run, "report", language, title, blocks(line, language), beside="report"):
        print(path)

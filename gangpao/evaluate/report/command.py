"""`gangpao eval report` and `gangpao eval compare`: runs beside each other and beside published scores.

A run is a folder that `gangpao eval` wrote, or a results file of lm-eval (or the folder it lies in).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[list[Path], typer.Argument(help="Folders of runs, or result files of lm-eval.", metavar="RUN...")]
Lang = Annotated[str, typer.Option("--lang", help="en or zh.")]


def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the page, the Markdown and its pictures.")
    ] = None,
    lang: Lang = "en",
    published: Annotated[
        list[str] | None,
        typer.Option(
            "--published",
            help="A published row or model beside the runs; repeatable; none for no row. [MiniCPM-2B, Mistral-7B, Llama2-13B]",
        ),
    ] = None,
    items: Annotated[int, typer.Option("--items", min=0, max=100, help="Single items to show of each task.")] = 5,
    cost: Annotated[
        str | None, typer.Option("--cost", help="Cost profile for runs that name none; `gangpao cost` lists them.")
    ] = None,
    lm_eval: Annotated[
        Path | None,
        typer.Option(
            "--lm-eval", help="Also write the runs as lm-eval's result files: a folder, or a name ending in .json."
        ),
    ] = None,
) -> None:
    """Write report.<lang>.html and report.<lang>.md, and print their names."""
    from gangpao import cost as prices
    from gangpao.evaluate.report import lm_eval as form
    from gangpao.evaluate.report import published as others
    from gangpao.evaluate.report import runs as reader
    from gangpao.evaluate.report.page import build
    from gangpao.evaluate.report.page.given import Given
    from gangpao.page import language_of

    if out is None and lm_eval is None:
        raise ValueError("--out: name a folder for the report (or --lm-eval for lm-eval's result files)")
    language, known = language_of(lang), others.load_published()
    if cost is not None:
        prices.get_profile(cost)
    found = reader.read(runs)
    own = [key for run in found for key in known.of_model(run.result.model.name)] if not published else []
    keys = known.chosen([*own, *(name for name in (published or others.DEFAULT) if name != "none")])
    if lm_eval is not None:
        for run in found:
            for path in form.write(run.result, run.items, lm_eval):
                print(path)
    if out is not None:
        for path in build.write(Given(found, known, keys, language, items, cost), out):
            print(path)


def compare(
    first: Annotated[Path, typer.Argument(help="A run, or a result file of lm-eval.")],
    second: Annotated[Path, typer.Argument(help="The run to compare with it.")],
    lang: Lang = "en",
) -> None:
    """Print the differences of two runs, item by item where both have items, as a table."""
    from gangpao.evaluate.report import runs as reader
    from gangpao.evaluate.report.page.document import as_text
    from gangpao.evaluate.report.page.given import Given
    from gangpao.evaluate.report.page.scores import of_pair
    from gangpao.evaluate.report.published import load_published
    from gangpao.page import language_of

    found = reader.read([first, second])
    given = Given(found, load_published(), (), language_of(lang))
    print(as_text(of_pair(given, *found)), end="")

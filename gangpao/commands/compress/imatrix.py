"""`gangpao imatrix`: how much each column of a model's weights matters, for `gangpao quantize` and llama-quantize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gangpao.atomic import new_file
from gangpao.commands.model.find import find_weights
from gangpao.compress.find import runnable
from gangpao.compress.importance.calibration import Calibration
from gangpao.compress.importance.run import CollectOptions, collected
from gangpao.compress.importance.show import show
from gangpao.engine.memory import EngineOptions
from gangpao.formats.imatrix import FORMS, Form, read_imatrix, write_imatrix
from gangpao.options import Fields, command_of
from gangpao.progress import Progress
from gangpao.units import show_count


@command_of()
def imatrix(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of the catalog, .gguf file, Hugging Face folder, training run; with --show alone an importance matrix."
        ),
    ],
    out: Annotated[Path | None, typer.Argument(help="The file to write.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Texts, code, chats (.jsonl), folders of them; repeatable. [zh, en and code of our own]"
        ),
    ] = None,
    form: Annotated[str, typer.Option("--form", help="gguf, or dat: the form of older programs.")] = "gguf",
    shown: Annotated[
        bool, typer.Option("--show", help="Say how unequal the columns are, and which stand out most.")
    ] = False,
    *,
    collecting: Annotated[CollectOptions, Fields(CollectOptions)],
    engine: Annotated[EngineOptions, Fields(EngineOptions, ("threads",))],
) -> None:
    """Collect an importance matrix: how much each column of a model's weights matters on texts or chats."""
    if out is None:
        if not shown:
            raise ValueError("no OUT: name the file to write, or give an importance matrix and --show to look at it")
        print(show(read_imatrix(Path(model).expanduser())))
        return
    if out.exists():
        raise ValueError(f"{out} exists already; choose another name or delete it first")
    kept = _form(form)
    file = runnable(find_weights(model))
    with Progress(show=show_count) as progress:
        found = collected(
            file, data or [], collecting, threads=engine.threads, state=out.with_name(f".{out.name}.progress"),
            progress=progress, on_read=_told,
        )  # fmt: skip
    with new_file(out) as staging:
        write_imatrix(staging, found, kept)
    print(f"{out}: {len(found.sums)} tensors, {found.chunks} chunks of {found.chunk_size} tokens")
    if shown:
        print(show(found))


def _form(name: str) -> Form:
    for form in FORMS:
        if form == name.lower():
            return form
    raise ValueError(f"--form {name!r:.20}: choose one of {', '.join(FORMS)}")


def _told(read: Calibration) -> None:
    print(read, file=sys.stderr)
    if read.skipped:
        print(f"note: {read.skipped:,} rows have no text or conversation and were left out", file=sys.stderr)

"""`gangpao data pictures`: pictures with questions and answers, drawn or taken from archives."""

import json
from pathlib import Path
from typing import Annotated

import typer

from gangpao.data.pictures.table import KINDS
from gangpao.data.pictures.write import MOST, pictures, write
from gangpao.units import show_bytes

_KINDS = "; ".join(f"{name}: {kind.what}" for name, kind in KINDS.items())


def pictures_command(
    kind: Annotated[str, typer.Argument(help=f"What is shown. {_KINDS}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder: images/ and rows.jsonl for `gangpao tune`.")],
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, max=MOST, help="How many; of a source all that it has.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn.")] = 0,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="For a test: variations, or pictures of a source, that others never show.")
    ] = False,
    size: Annotated[int | None, typer.Option("--size", help="Pixels of a side of what is drawn.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="A tar archive, or a wheel of easy-vqa.")] = None,
    fonts: Annotated[
        list[Path] | None, typer.Option("--font", help="Font with Chinese characters for strings; may be repeated.")
    ] = None,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="About each picture, at most.")] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Only what asks for everything that is there: shapes and hands.")
    ] = False,
    lengths: Annotated[
        tuple[int, int] | None,
        typer.Option("--lengths", metavar="FROM TO", help="Characters of the shortest and the longest string. [8 8]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")] = False,
) -> None:
    """Write a folder of pictures and print what it holds."""
    found = write(out, pictures(
        kind, count=count, seed=seed, unseen=unseen, size=size, source=source, fonts=fonts or (), questions=questions,
        describe=describe, lengths=lengths,
    ))  # fmt: skip
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print(
        f"{found['path']}: {found['pictures']:,} pictures, {found['questions']:,} questions, {show_bytes(found['bytes'])}"
    )
    print(f"Tune on them with: gangpao tune -m MODEL --data {found['path']} --out RUN")

"""`gangpao pull`, `list` and `rm`: the models of the store, seen from the command line.

The work is done by gangpao.pull and gangpao.catalog; here are only the options and what is printed. Paths and JSON go
to stdout, progress to stderr.
"""

import json
from typing import Annotated, Any

import typer

from gangpao import catalog
from gangpao.log import Progress, show_bytes
from gangpao.serve import options as opt

Name = Annotated[str, typer.Argument(help="A name of the catalog; `gangpao list` shows them.")]


def pull(
    name: Name,
    source: Annotated[
        list[str] | None, typer.Option("--source", help="Try only this kind of source, in the order given; repeatable.")
    ] = None,
    from_path: Annotated[
        str | None, typer.Option("--from", help="Take this file, which is checked, then kept.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Accept a file nobody announces a hash for.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=32, help="Downloads at once.")] = catalog.DEFAULT_JOBS,
) -> None:
    """Download a model of the catalog, verified and resumable."""
    from gangpao.pull import pull as fetch

    with Progress() as progress:
        path = fetch(name, sources=source, from_path=from_path, unverified=unverified, progress=progress, jobs=jobs)
    print(path)


def list_(as_json: opt.Json = False) -> None:
    """Show the catalog and what is installed."""
    rows = catalog.listing()
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    print(table(["", "name", "size", "licence", "what it is"], [_row(row) for row in rows]))
    print(f"\n* installed in {catalog.models_dir()}   d a default, the best that fits is taken   - not run by us yet")


def _row(row: dict[str, Any]) -> list[str]:
    marks = ("*" if row["path"] else " ") + ("d" if row["default"] else " " if row["engine"] else "-")
    size = show_bytes(row["bytes"]) if row["bytes"] else "?"
    return [marks, row["name"], size, row["licence"], f"{row['title']} {row['quantization']}".strip()]


def rm(name: Name) -> None:
    """Delete an installed model."""
    freed = catalog.remove(name)
    print(f"removed {name}, {show_bytes(freed)} freed")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the last one is not padded."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

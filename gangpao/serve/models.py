"""`gangpao pull`, `list` and `rm`: the models of the store, seen from the command line.

pull asks before it fetches what the engine does not run; list says which those are.

The work is done by gangpao.pull and gangpao.catalog; here are only the options and what is printed. Paths and JSON go
to stdout, progress to stderr.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gangpao import catalog
from gangpao.log import Progress, show_bytes
from gangpao.serve import find
from gangpao.serve import options as opt

if TYPE_CHECKING:
    from gangpao.pull import Offer

Name = Annotated[str, typer.Argument(help="A name of the catalog (`gangpao list`), or hf.co/owner/repo[:Q4_K_M].")]


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
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Pull also what our engine does not run.")] = False,
) -> None:
    """Download a model of the catalog or of a hub, verified and resumable."""
    from gangpao.pull import pull as fetch
    from gangpao.pull import pull_ref, refs

    ref = refs.parse(name) if "/" in name else None
    if ref is not None and (source or from_path):
        raise ValueError(f"{name}: --source and --from are for names of the catalog")
    with Progress() as progress:
        if ref is not None and (found := refs.match(ref, catalog.records())):
            path = catalog.installed()[found]
        elif ref is not None:
            path = pull_ref(
                ref, agree=lambda offer: _agree_ref(ref, offer, yes), unverified=unverified, progress=progress, jobs=jobs
            )[1]  # fmt: skip
        else:
            _agree(name, yes)
            path = fetch(name, sources=source, from_path=from_path, unverified=unverified, progress=progress, jobs=jobs)
    print(path)


def _agree(name: str, yes: bool) -> None:
    entry = catalog.entry(name)
    if entry.state == "cannot run" and name not in catalog.installed():
        _ask(name, entry.note or "our engine does not run it", entry.bytes, yes)


def _agree_ref(ref: object, offer: "Offer", yes: bool) -> None:
    reason = find.cannot_run(offer.architecture, offer.quantization)
    find.say(f"{ref}: {offer.quantization}, {show_bytes(offer.bytes)}, becomes {offer.name}")
    if reason:
        _ask(str(ref), reason, offer.bytes, yes)


def _ask(name: str, reason: str, size: int, yes: bool) -> None:
    """Ask before something is fetched that does not run here; leaves with 1 after a no."""
    what = f"{name} cannot run here: {reason.rstrip('.')}. {show_bytes(size) if size else 'Unknown size'} to download"
    if not find.agreed(what, yes, f"{what}, so it is not pulled; --yes pulls it nevertheless"):
        raise typer.Exit(1)


def list_(as_json: opt.Json = False) -> None:
    """Show the catalog, what is installed, and what runs."""
    rows = [row | {"state": row["state"] or find.file_state(Path(row["path"]))} for row in catalog.listing()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    print(table(["", "name", "size", "state", "licence", "what it is"], [_row(row) for row in rows]))
    print(
        f"\n* installed in {catalog.models_dir()}   d a default: the best that is here is taken, else the best that fits\n"
        "runs: run by us, this very file   untested: our engine has all it needs   cannot run: not here, other programs may\n"
        "for training: weights of the lab, `gangpao export` makes a file to run   any other: gangpao pull hf.co/OWNER/REPOSITORY"
    )


def _row(row: dict[str, Any]) -> list[str]:
    marks = ("*" if row["path"] else " ") + ("d" if row["default"] else " ")
    size = show_bytes(row["bytes"]) if row["bytes"] else "?"
    return [marks, row["name"], size, row["state"], row["licence"], f"{row['title']} {row['quantization']}".strip()]


def rm(name: Name) -> None:
    """Delete an installed model."""
    name = find.installed_name(name)
    freed = catalog.remove(name)
    print(f"removed {name}, {show_bytes(freed)} freed")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell; the last one is not padded."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

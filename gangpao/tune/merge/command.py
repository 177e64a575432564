"""`gangpao merge`: adapters put into the weights of a base, with proof that the result answers as the adapter does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gangpao.formats.adapters.typed import split_scale
from gangpao.formats.blocks import WRITTEN
from gangpao.tune.merge.check import MAX_DIFFERENCE
from gangpao.tune.merge.merge import Different, Options
from gangpao.tune.merge.merge import merge as merge_files
from gangpao.units import show_bytes


def merge(
    base: Annotated[
        str, typer.Argument(help="The base: a Hugging Face folder, a .gguf file, or an installed model's name.")
    ],
    adapter: Annotated[
        list[str],
        typer.Option(
            "--adapter", help="An adapter, PEFT folder or .gguf file, with its strength: PATH[:SCALE]. Several add up."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="A new folder, or a new .gguf file, as the base is.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help=f"Type of the changed matrices of a .gguf file: {', '.join(WRITTEN)}. Default: as they are, else Q8_0.",
        ),
    ] = None,
    max_difference: Annotated[
        float,
        typer.Option(
            "--max-difference",
            help="Refuse a result of which a larger share of the adapter's effect went wrong (mean KL divergence of merged from "
            "adapter over that of base from adapter).",
        ),
    ] = MAX_DIFFERENCE,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Compare base, adapter and result on a few texts before it appears."),
    ] = True,
) -> None:
    """Merge adapters onto a base; the result appears only if it answers as the adapter does."""
    options = Options(kind.upper() if kind else None, max_difference, check)
    try:
        found = merge_files(
            _base(base), [split_scale(one) for one in adapter], out, options, progress=_show, on_note=_note
        )
    except Different as error:
        print(f"refused: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    if found is not None:
        print(found)
    size = sum(path.stat().st_size for path in out.iterdir()) if out.is_dir() else out.stat().st_size
    print(f"{out} ({show_bytes(size)})")


def _base(name: str) -> Path:
    """A path that is there, or the file of an installed model. Raises ValueError."""
    from gangpao import catalog

    path = Path(name).expanduser()
    return path if path.exists() else catalog.resolve(name)


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{100 * done // total} %", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)

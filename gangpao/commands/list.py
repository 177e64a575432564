"""`gangpao list`: the catalog, what is installed, and what of it runs here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gangpao import catalog
from gangpao.commands import options as opt
from gangpao.commands.model import find
from gangpao.units import show_bytes, table


def list_(as_json: opt.Json = False) -> None:
    """Show the catalog, what is installed, and what runs."""
    rows = [row | {"state": row["state"] or find.file_state(Path(row["path"]))} for row in catalog.listing()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    print(table(["", "name", "size", "state", "licence", "what it is", "sampling"], [_row(row) for row in rows]))
    print(
        f"\n* installed in {catalog.models_dir()}   d a default: the best that is here is taken, else the best that fits\n"
        "runs: run by us, this very file   untested: our engine has all it needs   cannot run: not here, other programs may\n"
        "sampling: what its publisher recommends; taken where you say nothing else\n"
        "for training: weights of the lab, `gangpao export` makes a file to run   any other: gangpao pull hf.co/OWNER/REPOSITORY"
    )


def _row(row: dict[str, Any]) -> list[str]:
    marks = ("*" if row["path"] else " ") + ("d" if row["default"] else " ")
    size = show_bytes(row["bytes"]) if row["bytes"] else "?"
    title = f"{row['title']} {row['quantization']}".strip()
    return [marks, row["name"], size, row["state"], row["licence"], title, sampling_line(row["sampling"])]


def sampling_line(values: Mapping[str, float]) -> str:
    """Recommended settings in a line: temperature 0.7, top_k 20."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())

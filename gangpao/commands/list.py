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
    rows = [row | {"state": row["state"] or find.file_state(Path(row["path"]))} for row in listing()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return
    print(table(["", "name", "size", "state", "licence", "what it is", "sampling"], [_row(row) for row in rows]))
    print(
        f"\n* installed in {catalog.models_dir()}   d a default: the best that is here is taken, else the best that fits\n"
        "runs: run by us, this very file   untested: our engine has all it needs   cannot run: not here, other programs may\n"
        "sampling: what its publisher recommends; taken where you say nothing else\n"
        "for pictures: what another model sees with\n"
        "for training: weights of the lab, `gangpao export` makes a file to run   any other: gangpao pull hf.co/OWNER/REPOSITORY"
    )


def listing() -> list[dict[str, Any]]:
    """One row a model for `gangpao list`: name, path (None if not installed), bytes, licence, what it is, and its state;
    of an installed file that the catalog does not know, the state is None: its header tells."""
    known, here = catalog.load(), catalog.installed()
    rows = []
    for name in [*known.models, *(name for name in here if name not in known.models)]:
        model, path = known.models.get(name), here.get(name)
        record = catalog.read_record(name) if model is None else {}
        rows.append(
            {
                "name": name,
                "path": str(path) if path else None,
                "bytes": catalog.bytes_of(path) if path else model.bytes if model else 0,
                "licence": model.licence if model else "",
                "title": model.title if model else str(record.get("title") or "not in the catalog"),
                "quantization": model.quantization if model else str(record.get("quantization") or ""),
                "format": model.format if model else "",
                "languages": list(model.languages) if model else [],
                "engine": bool(model and model.engine),
                "state": model.state if model else None,
                "default": name in known.defaults,
                "note": model.note if model else "",
                "sampling": catalog.sampling_of(name),
            }
        )
    return rows


def _row(row: dict[str, Any]) -> list[str]:
    marks = ("*" if row["path"] else " ") + ("d" if row["default"] else " ")
    size = show_bytes(row["bytes"]) if row["bytes"] else "?"
    title = f"{row['title']} {row['quantization']}".strip()
    return [marks, row["name"], size, row["state"], row["licence"], title, sampling_line(row["sampling"])]


def sampling_line(values: Mapping[str, float]) -> str:
    """Recommended settings in a line: temperature 0.7, top_k 20."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())

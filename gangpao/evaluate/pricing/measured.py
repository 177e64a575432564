"""Speeds out of what was measured: the last line of `gangpao bench`, the folder of a suite, or of a run.

Each has its figures under the names of results.Speed: prefill_tps, decode_tps, batch_tps at `batch`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gangpao.evaluate import results


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens a second of one answer, of prompts, and of `batch` answers together; ranges are the least and the most of the
    repetitions, where the file has them. what: where this is from, in words."""

    what: str
    decode_tps: float | None
    prefill_tps: float | None = None
    batch_tps: float | None = None
    batch: int | None = None
    decode_range: tuple[float, float] | None = None
    batch_range: tuple[float, float] | None = None


def read(path: Path, *, model: str | None = None, context: int | None = None, batch: int | None = None) -> Measured:
    """The speeds in a file, or in the folder of a suite or a run. model, context, batch choose a row of a suite.

    Raises ValueError naming the file and what is missing.
    """
    if path.is_dir():
        path = path / ("suite.json" if (path / "suite.json").is_file() else "results.json")
    if path.name == "results.json":
        return of_run(results.read_run(path), str(path))
    data = _last_object(path)
    if "schema_version" in data:
        return of_run(results.read_run(path), str(path))
    if isinstance(data.get("rows"), list):
        return _of_suite(path, [row for row in data["rows"] if isinstance(row, dict)], model, context, batch)
    return _of_mapping(data, str(path))


def of_run(run: results.RunResult, where: str) -> Measured:
    """The speeds in a run. Raises ValueError where it has none."""
    if run.speed is None:
        raise ValueError(
            f"{where}: this run of {run.model.name} has no speed; measure one: gangpao bench {run.model.name}"
        )
    return _of_mapping(run.speed.model_dump(), f"{where}, {run.model.name}")


def _last_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object, or text whose last line is one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text: give what `gangpao bench` printed") from error
    lines = text.strip().splitlines() or [""]
    for part in (text, lines[-1]):
        try:
            data = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            return data
    raise ValueError(f"{path}: its last line is no JSON object: give what `gangpao bench` printed, or a results.json")


def _of_mapping(data: Mapping[str, Any], where: str) -> Measured:
    found: dict[str, float | None] = {}
    for name in ("decode_tps", "prefill_tps", "batch_tps"):
        value = data.get(name)
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{where}: {name} is {value!r:.40}, and a speed is a number above 0")
        found[name] = value
    if found["decode_tps"] is None and found["batch_tps"] is None:
        raise ValueError(f"{where}: neither decode_tps nor batch_tps is there: no speed of answers was measured")
    batch = data.get("batch")
    return Measured(
        where,
        found["decode_tps"],
        found["prefill_tps"],
        found["batch_tps"],
        batch if isinstance(batch, int) and not isinstance(batch, bool) else None,
        _range(data.get("decode_range")),
        _range(data.get("batch_range")),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(value: Any) -> tuple[float, float] | None:
    if isinstance(value, list) and len(value) == 2 and all(_is_number(v) and v > 0 for v in value):
        return float(value[0]), float(value[1])
    return None


def _of_suite(
    path: Path, rows: Sequence[dict[str, Any]], model: str | None, context: int | None, batch: int | None
) -> Measured:
    """One row of a suite: the shortest context and the largest batch where nothing else is said."""
    names = list(dict.fromkeys(str(row.get("model")) for row in rows))
    if model is None and len(names) > 1:
        raise ValueError(f"{path} has several models: choose one with --model: {', '.join(names)}")
    for number, row in enumerate(rows, 1):
        for key in ("context", "batch"):
            if row.get(key) is not None and (not isinstance(row[key], int) or isinstance(row[key], bool)):
                raise ValueError(
                    f"{path}: row {number}: {key} is {row[key]!r:.40}, and has to be a whole number; measure again"
                )
    for key, wanted in (("model", model), ("context", context), ("batch", batch)):
        there = list(dict.fromkeys(row.get(key) for row in rows))
        rows = rows if wanted is None else [row for row in rows if row.get(key) == wanted]
        if not rows:
            raise ValueError(f"{path}: no row with {key} {wanted}; there are {', '.join(map(str, there)) or 'none'}")
    row = min(rows, key=lambda r: (int(r.get("context") or 0), -int(r.get("batch") or 0)))
    return _of_mapping(row, f"{path}, {row.get('model')} behind {row.get('context')} tokens, batch {row.get('batch')}")

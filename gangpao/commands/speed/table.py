"""Samples of a suite -> rows of medians with their ranges, as data and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = ("prefill_tps", "decode_tps", "batch_tps")


def summary(
    samples: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], left_out: Sequence[str]
) -> dict[str, Any]:
    """rows: one a model, context and batch size, with medians under the names of results.Speed and [least, most] of each.

    The speeds of one answer alone are the same in the rows of all batch sizes.
    """
    cells: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for one in samples:
        cells.setdefault((one["model"], one["context"], one["batch"]), []).append(one)
    notes = [*left_out]
    rows = []
    for (model, context, batch), those in cells.items():
        reasons = {one["left_out"] for one in those if "left_out" in one}
        if reasons:
            notes.append(f"{model}, {context} tokens, {batch} at once: {min(reasons)}")
        if batch and not reasons:
            rows.append(_row(model, context, batch, those, cells.get((model, context, 0), [])))
    order = {name: place for place, name in enumerate(conditions["models"])}
    rows.sort(key=lambda row: (row["context"], row["batch"], order.get(row["model"], 0)))
    return {"suite": 1, "conditions": dict(conditions), "rows": rows, "left_out": notes}


def _row(
    model: str, context: int, batch: int, those: Sequence[Mapping[str, Any]], alone: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"model": model, "context": context, "batch": batch, "samples": len(those)}
    for name, source in zip(FIGURES, (alone, alone, those), strict=True):
        values = [one[name] for one in source]
        if values:
            row[name] = round(statistics.median(values), 3)
            row[name.replace("_tps", "_range")] = [round(min(values), 3), round(max(values), 3)]
    every = [*those, *alone]
    others = [one["others_cpus"] for one in every if one["others_cpus"] is not None]
    return row | {
        "rss_mb": round(statistics.median(one["rss_mb"] for one in those), 1),
        "cache_mb": round(those[0]["cache_bytes"] / 1e6, 1),
        "others_cpus": round(max(others), 2) if others else None,
        "quiet": all(one["quiet"] for one in every),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The rows with hardware, commit and settings, for a person or a page."""
    conditions = found["conditions"]
    models = "; ".join(
        f"{name} ({m['architecture']}, {m['type']}, {m['bytes'] / 1e6:,.0f} MB)"
        for name, m in conditions["models"].items()
    )
    head = (
        "| model | context | at once | prefill tok/s | decode tok/s | all together tok/s | resident MB | others' CPUs |"
    )
    lines = [
        f"{conditions['cpu']}, {conditions['cores']} cores, {conditions['memory_bytes'] / 1e9:.1f} GB, "
        f"{conditions['kernels']}, {conditions['threads']} threads. gangpao {conditions['gangpao']}, "
        f"commit {conditions['commit'] or 'unknown'}.",
        "",
        f"Models: {models}. Cache {conditions['kv']}, {conditions['decode_tokens']} tokens written in each answer; "
        "medians, in brackets the least and the most.",
        "",
        head,
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in found["rows"]:
        others = "?" if row["others_cpus"] is None else f"{row['others_cpus']:.1f}"
        cells = [
            row["model"], str(row["context"]), str(row["batch"]), *(_figure(row, name) for name in FIGURES),
            f"{row['rss_mb']:,.0f}", others if row["quiet"] else f"{others}, BUSY",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    if not all(row["quiet"] for row in found["rows"]):
        lines += ["", "BUSY: others used the processors meanwhile; repeat when the machine is quiet."]
    lines += ["", *(f"- left out: {note}" for note in found["left_out"])] if found["left_out"] else []
    return "\n".join(lines)


def _figure(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    low, high = row[name.replace("_tps", "_range")]
    return f"{row[name]:.1f} ({low:.1f} to {high:.1f})"

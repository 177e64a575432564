"""Curves of several runs side by side: loss, learning rate and gradient norm, as one PNG and one HTML page.

The page is a single file that needs no network: the picture, and a table of what the runs were told differently and where
they ended. Held-out losses are dots on the training loss; a step that was repeated counts as it was the last time.

What it gives up: zooming; metrics.jsonl is there for other tools.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gangpao.train.progress import read_metrics
from gangpao.train.run_file import read_run
from gangpao.units import show_seconds

PANELS = (("loss", "loss, nats per token"), ("lr", "learning rate"), ("grad_norm", "gradient norm"))
SMOOTH = 20  # steps that the drawn loss is averaged over; the raw one is a shadow behind it


def draw(runs: Sequence[Path], out: Path) -> tuple[Path, Path]:
    """Write <out>.png and <out>.html. Raises ValueError for folders that are not runs, and without matplotlib."""
    curves = _curves(runs)
    drawn = _picture(curves)
    png, page = out.with_suffix(".png"), out.with_suffix(".html")
    png.parent.mkdir(parents=True, exist_ok=True)
    png.write_bytes(drawn)
    page.write_text(_page(curves, runs, drawn), encoding="utf-8")
    return png, page


Curves = dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def steps_of(lines: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Steps in order, each once, and held-out losses likewise. Events and numbers that are none are left out."""
    steps: dict[int, dict[str, Any]] = {}
    heldout: dict[int, dict[str, Any]] = {}
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int) or "event" in line:
            continue
        if isinstance(line.get("heldout"), dict):
            heldout[step] = line
        elif isinstance(line.get("loss"), float):
            steps[step] = line
    return [steps[s] for s in sorted(steps)], [heldout[s] for s in sorted(heldout)]


def _names(runs: Sequence[Path]) -> list[str]:
    """A short name for each run: its folder's, with the one above where two are alike."""
    short = [run.resolve().name for run in runs]
    return [
        s if short.count(s) == 1 else f"{run.resolve().parent.name}/{s}" for s, run in zip(short, runs, strict=True)
    ]


def _curves(runs: Sequence[Path]) -> Curves:
    if not runs:
        raise ValueError("give the folder of at least one run")
    curves = {name: steps_of(read_metrics(run)) for name, run in zip(_names(runs), runs, strict=True)}
    for name, (steps, _) in curves.items():
        if not steps:
            raise ValueError(f"{name}: no step in metrics.jsonl yet")
    return curves


def picture(runs: Sequence[Path]) -> bytes:
    """The curves of runs as a PNG. Raises ValueError as draw does."""
    return _picture(_curves(runs))


def _picture(curves: Curves) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'gangpao[lab]', or pip install matplotlib") from error
    figure = Figure(figsize=(9, 10), layout="constrained")
    axes = figure.subplots(len(PANELS), 1, sharex=True)
    for name, (steps, heldout) in curves.items():
        x = [line["step"] for line in steps]
        for axis, (key, label) in zip(axes, PANELS, strict=True):
            y = [line[key] if isinstance(line.get(key), int | float) else float("nan") for line in steps]
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
            if key != "loss":
                axis.plot(x, y, label=name, linewidth=1)
                continue
            (line,) = axis.plot(x, _smoothed(y), label=name, linewidth=1.2)
            axis.plot(x, y, color=line.get_color(), alpha=0.2, linewidth=0.6)
            points = [(h["step"], h["heldout"]["heldout"]) for h in heldout if "heldout" in h["heldout"]]
            if points:
                axis.plot(
                    *zip(*points, strict=True), "o", color=line.get_color(), markersize=4, label=f"{name} held-out"
                )
    axes[0].legend(fontsize="small")
    axes[-1].set_xlabel("step")
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png")
    return out.getvalue()


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean of the last SMOOTH values at every point."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i + 1 - SMOOTH) : i + 1])]


def _page(curves: Curves, runs: Sequence[Path], picture: bytes) -> str:
    rows = {name: _summary(*curves[name]) for name in curves}
    told = {name: _flat((read_run(run) or {}).get("config", {})) for name, run in zip(curves, runs, strict=True)}
    keys = sorted({key for t in told.values() for key in t})
    differing = [key for key in keys if len({str(t.get(key)) for t in told.values()}) > 1]
    for name, row in rows.items():
        row.update({key: str(told[name].get(key, "")) for key in differing})
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows)
    labels = list(next(iter(rows.values())))
    body = "\n".join(
        f"<tr><td>{html.escape(label)}</td>"
        + "".join(f"<td>{html.escape(row[label])}</td>" for row in rows.values())
        + "</tr>"
        for label in labels
    )
    style = "body{font:15px sans-serif;margin:2em;max-width:60em}td,th{padding:.2em .8em;text-align:left}img{max-width:100%}"
    data = base64.b64encode(picture).decode()
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(", ".join(rows))}</title>'
        f'<style>{style}</style>\n<img alt="loss, learning rate and gradient norm over steps" src="data:image/png;base64,{data}">\n'
        f"<table><tr><th></th>{head}</tr>\n{body}\n</table></html>\n"
    )


def _summary(steps: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> dict[str, str]:
    last = steps[-1]
    tail = [line["loss"] for line in steps[-SMOOTH:]]
    speeds = sorted(line["tok_s"] for line in steps if line.get("tok_s"))
    out = {
        "steps": str(last["step"]),
        "tokens": f"{last.get('tokens', 0):,}",
        "loss, mean of the last steps": f"{sum(tail) / len(tail):.4f}",
        "held-out": f"{heldout[-1]['heldout'].get('heldout', float('nan')):.4f}" if heldout else "none",
        "tokens/s, median": f"{speeds[len(speeds) // 2]:,.0f}" if speeds else "none",
        "yuan": f"{last['yuan']:.4g}" if "yuan" in last else "none",
    }
    if speeds:
        out["time at that speed"] = show_seconds(last.get("tokens", 0) / speeds[len(speeds) // 2])
    else:
        out["time at that speed"] = "none"
    return out


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as a.b.c -> value."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out

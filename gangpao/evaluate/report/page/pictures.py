"""Pictures of scores as SVG: a radar and bars over tasks, a radar over categories of conversations, quality against price.

What it gives up: tooltips; the numbers are in the tables.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.evaluate.fonts import chinese_font
from gangpao.evaluate.report import compare
from gangpao.evaluate.report.page import facts, scores
from gangpao.evaluate.report.page.document import Block, Paragraph, Picture, line
from gangpao.evaluate.report.page.drawing import COLOURS, INK, MARKERS, known, legend, picture
from gangpao.evaluate.report.page.given import Given
from gangpao.evaluate.report.page.words import WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SERIES = 8
Series = tuple[str, Sequence[float | None], Sequence[float | None]]  # label, values, standard errors


def drawn(given: Given) -> list[Block]:
    """All pictures that the scores give, or why there are none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [Paragraph(given.say("no_matplotlib"))]
    tasks, series = _shares(given)
    blocks: list[Block] = []
    names, round_ = _around(tasks, series, len(given.runs))
    if names:
        blocks.append(_picture(given, "radar", given.say("radar"), lambda f: _radar(f, names, round_, 100)))
    else:
        blocks.append(Paragraph(given.say("no_picture")))
    if tasks:
        blocks.append(_picture(given, "bars", given.say("bars"), lambda f: _bars(f, tasks, series)))
    for number, (task, categories, judged) in enumerate(_judged(given)):
        title = given.say("categories", task=line(given.title(task)))
        draw = functools.partial(_radar, names=categories, series=judged, top=10)
        blocks.append(_picture(given, f"categories-{number}" if number else "categories", title, draw))
    if points := _priced(given):
        blocks.append(_picture(given, "prices", given.say("prices"), lambda f: _scatter(f, given, *points)))
    return blocks


# --- what is drawn


def _shares(given: Given) -> tuple[list[str], list[Series]]:
    """Tasks whose share all runs have, in percent by run and by published row; a row without any of them is left out."""
    found = {}
    for row in scores.rows(given):
        share = all(cell is not None and compare.is_share(cell) and cell.higher_is_better for cell in row.cells)
        if share and (row.larger or row.task not in found or any(cell and cell.main for cell in row.cells)):
            found[row.task] = row
    rows = list(found.values())
    series: list[Series] = []
    for place, run in enumerate(given.runs):
        cells = [row.cells[place] for row in rows]
        errors = [None if cell is None else compare.stderr_of(run, cell) for cell in cells]
        series.append(
            (line(run.label, 40), _percent([None if cell is None else cell.value for cell in cells]), _percent(errors))
        )
    for key in given.keys:
        known = [given.published.cell(key, row.task) for row in rows]
        if any(known):
            values = [None if cell is None else cell.value for cell in known]
            errors = [None if cell is None else cell.stderr for cell in known]
            series.append((given.published.rows[key].model, _percent(values), _percent(errors)))
    return [line(given.title(task), 24) for task in found], series[:MOST_SERIES]


def _around(tasks: Sequence[str], series: Sequence[Series], runs: int) -> tuple[list[str], list[Series]]:
    """At least three tasks that all have, for a radar. Published rows that would leave fewer are left out, the emptiest first."""
    kept = list(series)
    while kept:
        whole = [i for i in range(len(tasks)) if all(values[i] is not None for _, values, _ in kept)]
        if len(whole) >= 3:
            return [tasks[i] for i in whole], [(label, [v[i] for i in whole], e) for label, v, e in kept]
        if len(kept) <= runs:
            break
        kept.remove(min(kept[runs:], key=lambda s: sum(v is not None for v in s[1])))
    return [], []


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _judged(given: Given) -> list[tuple[str, list[str], list[Series]]]:
    """For judged tasks their categories and each run's marks out of ten, where at least three categories are common."""
    tasks: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for run in given.runs:
        for s in compare.shown(run):
            if s.mode == "judge" and s.parts:
                tasks.setdefault(s.task, []).append((run.label, {k: 10 * v / s.scale for k, v in s.parts.items()}))
    out = []
    for task, found in tasks.items():
        names = [name for name in found[0][1] if all(name in marks for _, marks in found)]
        if len(names) >= 3:
            series: list[Series] = [(line(label, 40), [m[n] for n in names], [None] * len(names)) for label, m in found]
            out.append((task, [line(name, 24) for name in names], series[:MOST_SERIES]))
    return out


def _priced(given: Given) -> tuple[int, list[tuple[str, float, float]]] | None:
    """How many tasks all runs have, and label, yuan per million tokens, mean share in percent of each run with a speed."""
    tasks, series = _shares(given)
    points = []
    for run, (label, values, _) in zip(given.runs, series, strict=False):
        price = facts.per_million(given, run, run.result.speed.decode_tps if run.result.speed else None)
        if price and values:
            points.append((label, price, sum(filter(None, values)) / len(values)))
    return (len(tasks), points) if points else None


# --- drawing


def _radar(figure: Figure, names: Sequence[str], series: Sequence[Series], top: float) -> None:
    axes: Any = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    for (label, values, _), colour, marker in zip(series, COLOURS, MARKERS, strict=False):
        closed = [*values, values[0]]
        axes.plot(
            [*angles, angles[0]], closed, color=colour, marker=marker, markersize=4, linewidth=1.6, label=known(label)
        )
        axes.fill([*angles, angles[0]], closed, color=colour, alpha=0.07)
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [known(name) for name in names])
    axes.set_ylim(
        0,
        top
        if top <= 10
        else min(100.0, 10 * math.ceil(1 + max(v for _, values, _ in series for v in values if v) / 10)),
    )
    axes.set_rlabel_position(180 / len(names))
    axes.grid(alpha=0.35)
    legend(figure, axes)


def _bars(figure: Figure, names: Sequence[str], series: Sequence[Series]) -> None:
    figure.set_size_inches(7.2, max(2.5, 0.8 + 0.26 * len(names) * (len(series) + 0.8)))
    axes = figure.add_subplot()
    high = 0.8 / len(series)
    for i, ((label, values, errors), colour) in enumerate(zip(series, COLOURS, strict=False)):
        places = [place + (i - (len(series) - 1) / 2) * high for place in range(len(names))]
        bars, lengths = [e or 0.0 for e in errors], [v or 0.0 for v in values]
        axes.barh(
            places,
            lengths,
            high * 0.92,
            xerr=bars,
            color=colour,
            label=known(label),
            error_kw={"ecolor": INK, "lw": 0.9},
        )
    axes.set_yticks(range(len(names)), [known(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.35)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    legend(figure, axes)


def _scatter(figure: Figure, given: Given, tasks: int, points: Sequence[tuple[str, float, float]]) -> None:
    axes = figure.add_subplot()
    for (label, price, quality), colour, marker in zip(points, COLOURS, MARKERS, strict=False):
        axes.scatter([price], [quality], color=colour, marker=marker, s=60, label=known(label), zorder=3)
    prices, qualities = [p for _, p, _ in points], [q for _, _, q in points]
    if max(prices) > 5 * min(prices):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.15 * max(prices))
    axes.set_ylim(max(0, min(qualities) - 5), min(100, max(qualities) + 5))
    language = given.language if chinese_font() else "en"
    axes.set_xlabel(WORDS[language]["price_axis"])
    axes.set_ylabel(WORDS[language]["quality_axis"].format(n=tasks))
    axes.grid(alpha=0.35)
    legend(figure, axes)


def _picture(given: Given, name: str, alt: str, draw: Callable[[Figure], None]) -> Picture:
    return picture(given.language, name, alt, draw)

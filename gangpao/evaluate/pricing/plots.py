"""Two pictures: which assumption moves the price most (a tornado), and quality against price with the best of each price marked.

matplotlib draws them; it is imported here and nowhere before. An SVG keeps its text as text, so that a browser sets it in
its own fonts, Chinese names too.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gangpao.evaluate.pricing.workload import UNITS, Swing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[str, float, float]
_LOW, _HIGH, _FRONT, _REST = "#4c78a8", "#e4812b", "#c23b22", "#7f7f7f"
_WORDS = {
    "en": {"price": "yuan per million tokens", "score": "score", "front": "none is better for as much"},
    "zh": {"price": "每百万 token 的价格（元）", "score": "得分", "front": "同样价格下没有更好的"},
}


def pareto(points: Sequence[Point]) -> list[bool]:
    """For each (name, score, price) whether no other has at least its score for at most its price, and is better in one."""
    return [
        not any(s >= score and p <= price and (s > score or p < price) for _, s, p in points)
        for _, score, price in points
    ]


def quality_price(points: Sequence[Point], *, score_name: str = "", language: str = "en") -> str:
    """Quality against price as an SVG document.

    points: (name, score, yuan per million tokens), the higher score the better. The price axis is logarithmic, so prices must be
    above 0. score_name: label of the score axis. language: "en" or "zh". Raises ValueError naming a point that cannot be drawn.
    """
    with _figure(8.0, 5.0) as figure:
        _draw_quality(figure, points, score_name, language)
        return _svg(figure)


def save_quality_price(points: Sequence[Point], path: Path, *, score_name: str = "", language: str = "en") -> None:
    """The same picture as a file, .svg or .png."""
    with _figure(8.0, 5.0) as figure:
        _draw_quality(figure, points, score_name, language)
        _save(figure, path)


def save_tornado(swings: Sequence[Swing], base: float, path: Path, *, title: str = "") -> None:
    """The sensitivity of a price as a file, .svg or .png. base: the price with all assumptions as they are, yuan per million."""
    if not swings:
        raise ValueError("no assumption can be varied: give --range NAME=LOW:HIGH")
    with _figure(8.0, 1.2 + 0.5 * len(swings)) as figure:
        axes = figure.subplots()
        for place, swing in enumerate(reversed(swings)):
            for end, value, colour in (
                (swing.at_low, swing.low, _LOW),
                (swing.at_high, swing.high, _HIGH),
            ):
                if end == base:
                    continue
                axes.barh(place, end - base, left=base, color=colour, height=0.6)
                axes.annotate(
                    f"{value:g}", (end, place), xytext=(3 if end >= base else -3, 0), textcoords="offset points",
                    ha="left" if end >= base else "right", va="center", fontsize=8,
                )  # fmt: skip
        axes.axvline(base, color="black", linewidth=0.8)
        axes.set_yticks(range(len(swings)), [f"{label(s.name)}, {UNITS[s.name]}" for s in reversed(swings)])
        axes.set_xlabel(f"{_WORDS['en']['price']} (as assumed: {base:.3g})")
        axes.set_title(title)
        axes.margins(x=0.12)
        _save(figure, path)


def label(name: str) -> str:
    """An assumption's name in words: price yuan -> price."""
    unit = {"price_yuan": "price", "lifetime_years": "life", "power_watts": "power", "rent_yuan_per_hour": "rent"}
    return unit.get(name, "electricity" if name.startswith("electricity") else name)


def check_format(path: Path) -> None:
    """Raises ValueError for a file name that says no picture we draw."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"{path}: a plot is written as .svg or .png")


def _draw_quality(figure: Figure, points: Sequence[Point], score_name: str, language: str) -> None:
    if language not in _WORDS:
        raise ValueError(f"language {language!r:.20}: there are {', '.join(_WORDS)}")
    if not points:
        raise ValueError("nothing to draw: no model has both a score and a price")
    for name, score, price in points:
        if not 0 < price < float("inf") or score != score:
            raise ValueError(f"{name}: score {score:g} at {price:g} yuan: a price above 0 and a score are needed")
    words = _WORDS[language]
    axes = figure.subplots()
    front = pareto(points)
    for (name, score, price), best in zip(points, front, strict=True):
        axes.plot(price, score, "o" if best else "s", color=_FRONT if best else _REST, markersize=7 if best else 5)
        axes.annotate(name, (price, score), xytext=(6, 4), textcoords="offset points", fontsize=8)
    line = sorted((p, s) for (_, s, p), best in zip(points, front, strict=True) if best)
    axes.plot(*zip(*line, strict=True), color=_FRONT, linewidth=1, drawstyle="steps-post", label=words["front"])
    axes.set_xscale("log")
    axes.set_xlabel(words["price"])
    axes.set_ylabel(score_name or words["score"])
    axes.grid(True, which="major", alpha=0.3)
    axes.margins(x=0.15, y=0.12)
    axes.legend(loc="lower right", fontsize=8)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches. Its font may lack signs of a name: that is no news in an SVG, and a box in a PNG."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'gangpao[lab]', or pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    # In an SVG text stays text, and the bytes are the same every time; a $ in a name is no formula.
    context = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gangpao", "text.parse_math": False})
    with context, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield figure


def _svg(figure: Figure) -> str:
    """From <svg on, so that it can stand in a page as well as alone."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    document = out.getvalue()
    return document[document.index("<svg") :]


def _save(figure: Figure, path: Path) -> None:
    check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".svg":
        path.write_text(_svg(figure), encoding="utf-8")
    else:
        figure.savefig(path, format="png", dpi=150)

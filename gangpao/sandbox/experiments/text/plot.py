"""What the pictures of experiments share: labels in two languages, a font that has the signs, colours by size, axes.

matplotlib's own font has no Chinese. Where the machine has a font that does, Chinese labels are set in it; where it has
none, they are English, because a row of empty boxes helps nobody. Nothing global is changed.

What it gives up: the first Chinese picture of a process looks through the installed fonts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gangpao.evaluate.fonts import chinese_font as chinese_font
from gangpao.sandbox.bilingual import Language, Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def words(table: Mapping[str, Text], language: Language) -> dict[str, str]:
    """Labels in a language, or in English where the machine cannot draw it."""
    drawn: Language = "zh" if language == "zh" and chinese_font() else "en"
    return {key: text.of(drawn) for key, text in table.items()}


def set_font(figure: Figure, language: Language) -> None:
    """Everything written in the figure so far in a font that has its signs; call it last."""
    from matplotlib.text import Text as Label

    if language == "zh" and (font := chinese_font()):
        for label in figure.findobj(Label):
            assert isinstance(label, Label)
            label.set_fontfamily([font, "DejaVu Sans"])


def colours(count: int) -> list[str]:
    """One for each size, light to dark as sizes grow: the order is seen without the legend, and in grey too."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shade = colormaps["viridis_r"]
    return [to_hex(shade(0.15 + 0.8 * i / max(1, count - 1))) for i in range(count)]


def log_ticks(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis whose ticks are the values that were tried, thinned where they would run into one another."""
    axes.set_xscale("log")
    tried = sorted(set(values))
    shown = tried[:: 1 + len(tried) // 9]
    axes.set_xticks(shown, [_short(v) for v in shown], fontsize=8)
    axes.set_xticks([], minor=True)


def _short(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:,.4g}" if value < 1 else f"{value:,.0f}"


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The legend of one panel under the figure: there it hides no curve."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def keep_minima_in_view(axes: Axes, curves: Sequence[Sequence[float]]) -> None:
    """End the y axis where the curves' walls begin: a run that nearly diverged would press all minima to one line."""
    finite = [[v for v in curve if v < float("inf")] for curve in curves]
    minima = [min(curve) for curve in finite if curve]
    if not minima:
        return
    low, top = min(minima), max(max(curve) for curve in finite if curve)
    room = max(2.5 * (max(minima) - low), 0.15 * low)
    axes.set_ylim(low - 0.1 * min(room, top - low) - 1e-9, min(top + 0.05 * (top - low) + 1e-9, low + room))

"""The frame of every picture on a page: an SVG that takes its ink from the page, with labels in signs that the fonts have.

Pictures are drawn on nothing, in ink that is dark on a light page and light on a dark one. Letters are outlines, so a picture looks
the same everywhere; labels are Chinese only where the machine that draws has a font with the signs.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gangpao.evaluate.fonts import chinese_font
from gangpao.evaluate.report.page.document import Picture
from gangpao.page import Language

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # becomes the colour of the page's text
COLOURS = (
    "#3b82f6",
    "#f59e0b",
    "#10b981",
    "#ef4444",
    "#8b5cf6",
    "#06b6d4",
    "#ec4899",
    "#84cc16",
)  # on black and on white
MARKERS = "osD^vP*X"
_LIGHT_AND_DARK = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6e8eb}}</style>"


def legend(figure: Figure, axes: Axes) -> None:
    """Below the axes, in up to three columns."""
    handles, labels = axes.get_legend_handles_labels()
    found = figure.legend(
        handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9
    )
    for text in found.get_texts():
        text.set_parse_math(False)


def picture(language: Language, name: str, alt: str, draw: Callable[[Figure], None]) -> Picture:
    """A figure as SVG that takes its ink from the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    family = [*([chinese_font()] if chinese_font() else []), "DejaVu Sans"]
    style: Any = {**dict.fromkeys(ink, INK), "font.family": family, "text.parse_math": False}
    style |= {"svg.hashsalt": name, "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        for text in figure.findobj(Text):
            text.set_parse_math(False)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue().decode().replace(INK, "currentColor")
    start = svg.index("<svg")
    head, _, rest = svg[start:].partition(">")
    return Picture(f"{name}.{language}", alt, f"{head}>{_LIGHT_AND_DARK}{rest}")


def known(text: str) -> str:
    """A label in signs that the fonts have; "?" stands for others."""
    return "".join(c if any(ord(c) in signs for signs in _signs()) else "?" for c in text)


@functools.cache
def _signs() -> list[frozenset[int]]:
    from matplotlib import font_manager

    names = [name for name in (chinese_font(), "DejaVu Sans") if name]
    return [frozenset(font_manager.get_font(font_manager.findfont(name)).get_charmap()) for name in names]

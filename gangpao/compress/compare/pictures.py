"""Two pictures of a comparison: divergence against size, and the share of answers that end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gangpao.compress.compare.run import Comparison, Model
from gangpao.compress.compare.words import WORDS
from gangpao.evaluate.fonts import chinese_font
from gangpao.evaluate.report.page.document import Block, Paragraph, line
from gangpao.evaluate.report.page.drawing import COLOURS, INK, MARKERS, known, legend, picture
from gangpao.evaluate.statistics import Z95
from gangpao.page import Language

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(comparison: Comparison, language: Language) -> list[Block]:
    """Those that there is something to see on, or why there are none."""
    words = WORDS[language]
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return [Paragraph(words["no_matplotlib"])]
    found: list[Block] = []
    apart = [model for model in comparison.models if model.quality[-1].divergence is not None]
    signs = language if chinese_font() else "en"
    if apart:
        title = words["picture.divergence"]
        found.append(picture(language, "divergence", title, lambda figure: _divergence(figure, apart, signs)))
    answered = [model for model in comparison.models if model.said]
    if answered:
        found.append(picture(language, "ends", words["picture.ends"], lambda figure: _ends(figure, answered, signs)))
    return found


def _divergence(figure: Figure, models: Sequence[Model], language: Language) -> None:
    axes = figure.add_subplot()
    for model, colour, marker in zip(models, COLOURS, MARKERS, strict=False):
        value = model.quality[-1].divergence
        assert value is not None
        axes.errorbar(
            [model.facts.bytes / 1e6], [value.value], yerr=[Z95 * (value.error or 0)], color=colour, marker=marker, markersize=8,
            linestyle="", ecolor=INK, label=known(line(model.facts.name, 40)),
        )  # fmt: skip
    axes.set_xlabel(WORDS[language]["axis.size"])
    axes.set_ylabel(WORDS[language]["axis.divergence"])
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.35)
    legend(figure, axes)


def _ends(figure: Figure, models: Sequence[Model], language: Language) -> None:
    figure.set_size_inches(7.2, 1.4 + 0.5 * len(models))
    axes = figure.add_subplot()
    hows = [summary.how for summary in models[0].answers]
    high = 0.8 / len(hows)
    for i, (how, colour) in enumerate(zip(hows, COLOURS, strict=False)):
        shares = [100 * one.ended / one.asked for model in models for one in model.answers if one.how == how]
        places = [place + (i - (len(hows) - 1) / 2) * high for place in range(len(models))]
        axes.barh(places, shares, high * 0.92, color=colour, label=WORDS[language][how])
    axes.set_yticks(range(len(models)), [known(line(model.facts.name, 40)) for model in models])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(axis="x", alpha=0.35)
    axes.set_axisbelow(True)
    legend(figure, axes)

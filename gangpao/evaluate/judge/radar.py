"""Scores by category as a radar plot, in an SVG that needs no fonts where it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gangpao import atomic
from gangpao.evaluate.fonts import chinese_font
from gangpao.optional import need

Language = Literal["en", "zh"]
_CHINESE = {
    "writing": "写作", "roleplay": "角色扮演", "reasoning": "推理", "math": "数学", "coding": "代码", "extraction": "信息抽取",
    "stem": "理工", "humanities": "人文",
}  # fmt: skip
FEWEST = 3  # axes of a plot that is one


def draw(path: Path, models: Mapping[str, Mapping[str, float]], scale: float, language: Language = "en") -> None:
    """models: name -> score by category. Chinese where the machine has a font for it; a sign without a glyph is a question mark.

    Raises ValueError for fewer than three categories, and where matplotlib is missing.
    """
    categories = list(dict.fromkeys(name for scores in models.values() for name in scores))
    if len(categories) < FEWEST:
        raise ValueError(f"a radar plot needs {FEWEST} categories, and there are {len(categories)}")
    need("matplotlib", "drawing a radar plot")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    font = chinese_font()
    say = _CHINESE if language == "zh" and font else {}
    with mpl.rc_context({"svg.hashsalt": "gangpao", "font.family": [*([font] if font else []), "DejaVu Sans"]}):
        figure = Figure(figsize=(6, 6), layout="constrained")
        axes = figure.add_subplot(projection="polar")
        _axes(axes, [_drawable(say.get(name, name), font) for name in categories], scale)
        turns = [2 * math.pi * i / len(categories) for i in range(len(categories))]
        for name, scores in models.items():
            values = [scores.get(category, math.nan) for category in categories]
            (line,) = axes.plot([*turns, turns[0]], [*values, values[0]], marker="o", label=_drawable(name, font))
            axes.fill(turns, [0 if math.isnan(v) else v for v in values], color=line.get_color(), alpha=0.12)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.22), frameon=False)
        with atomic.new_file(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _axes(axes: Any, labels: list[str], scale: float) -> None:
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks([2 * math.pi * i / len(labels) for i in range(len(labels))], labels)
    axes.set_ylim(0, scale)
    axes.set_yticks([scale * part / 5 for part in range(1, 6)])
    axes.tick_params(axis="y", labelsize=8, colors="0.5")


def _drawable(text: str, font: str | None) -> str:
    return text if font else text.encode("latin-1", "replace").decode("latin-1")

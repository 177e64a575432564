"""The coordinate check in words: one line, a table of slopes, a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language
from gangpao.sandbox.experiments.check import COORDINATES, CheckResult, Coordinate, Slope
from gangpao.sandbox.experiments.text import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 4  # failures in a verdict; the table has all

_WORDS: dict[str, dict[str, str]] = {
    "en": {
        "passed": "{rule} passes: nothing grows or shrinks with {axis} beyond the tolerance.",
        "failed": "{rule} fails: ", "unsure": "{rule}: cannot tell, more seeds would help: ",
        "and": "; ", "more": "; and {count} more", "stop": ".",
        "grows": "{what} grows like {axis}^{slope:.2f} (step {step})",
        "shrinks": "{what} shrinks like {axis}^{slope:.2f} (step {step})",
        "lost": "{what} is not a finite number above zero (step {step})",
        "value": "{coordinate} at the start", "change": "change of {coordinate}",
        "embedding": "embedding output", "attention": "attention output", "mlp": "MLP output", "stream": "residual stream",
        "final": "final hidden state", "answer": "logits of the next ids", "logits": "all logits",
        "width": "width", "layers": "depth",
        "coordinate": "slope of", "start": "value at the start", "after": "change after step {step}",
        "title": "Coordinate check over {axis}: RMS", "yes": "{rule} passes", "no": "{rule} fails",
        "cannot tell": "{rule}: cannot tell", "out": "(out)",
        "table": "Slopes of log RMS against log {axis} ({sizes}) with 95 % intervals; bold: beyond ±{tolerance:g} and what "
        "theory lets shrink; ?: the interval holds both.",
    },
    "zh": {
        "passed": "{rule} 通过：没有任何量随{axis}的增减超出容差。",
        "failed": "{rule} 未通过：", "unsure": "{rule}：无法判断，增加种子会有帮助：",
        "and": "；", "more": "；另有 {count} 项", "stop": "。",
        "grows": "{what}按 {axis}^{slope:.2f} 增长（第 {step} 步）",
        "shrinks": "{what}按 {axis}^{slope:.2f} 缩小（第 {step} 步）",
        "lost": "{what}不是正的有限数（第 {step} 步）",
        "value": "{coordinate}的初始值", "change": "{coordinate}的变化",
        "embedding": "嵌入输出", "attention": "注意力输出", "mlp": "MLP 输出", "stream": "残差流",
        "final": "最终隐藏态", "answer": "下一个 id 的 logit 值", "logits": "全部 logit 值",
        "width": "宽度", "layers": "深度",
        "coordinate": "斜率", "start": "初始值", "after": "第 {step} 步后的变化",
        "title": "沿{axis}的坐标检验：RMS", "yes": "{rule} 通过", "no": "{rule} 未通过",
        "cannot tell": "{rule}：无法判断", "out": "（超出）",
        "table": "log RMS 对 log {axis}（{sizes}）的斜率及其 95 % 区间；粗体：超出 ±{tolerance:g}，且不属于"
        "理论允许的缩小；?：区间两者都含。",
    },
}  # fmt: skip


def verdict(result: CheckResult, language: Language = "en") -> str:
    """One line: passed, or what failed (or may, where it cannot tell) and how, each at its worst step and the worst first."""
    worst: dict[tuple[str, str], Slope] = {}
    unsure = [slope for slope in result.slopes if slope.answer == "cannot tell"]
    for slope in sorted(result.failures or unsure, key=_off, reverse=True):
        worst.setdefault((slope.coordinate, slope.quantity), slope)
    words = _WORDS[language]
    if not worst:
        return words["passed"].format(rule=result.rule, axis=words[result.axis])
    opening = words["failed" if result.failures else "unsure"].format(rule=result.rule)
    parts = []
    for s in list(worst.values())[:_NAMED]:
        how = "lost" if not math.isfinite(s.slope) else "grows" if s.slope > 0 else "shrinks"
        what = words[s.quantity].format(coordinate=words[s.coordinate])
        parts.append(words[how].format(what=what, axis=result.axis, slope=s.slope, step=s.step))
    more = words["more"].format(count=len(worst) - _NAMED) if len(worst) > _NAMED else ""
    return opening + words["and"].join(parts) + more + words["stop"]


def markdown(result: CheckResult, language: Language = "en") -> str:
    """Verdict and table of slopes."""
    words = _WORDS[language]
    steps = sorted({s.step for s in result.slopes if s.quantity == "change"})
    head = [words["coordinate"], words["start"], *(words["after"].format(step=step) for step in steps)]
    lines = [
        f"**{verdict(result, language)}**",
        "",
        words["table"].format(
            axis=words[result.axis], sizes=", ".join(map(str, result.sizes)), tolerance=result.tolerance
        ),
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    found = {(s.coordinate, s.step): s for s in result.slopes}
    for coordinate in COORDINATES:
        cells = [_cell(found[coordinate, step]) for step in (0, *steps)]
        lines.append("| " + " | ".join([words[coordinate], *cells]) + " |")
    return "\n".join(lines) + "\n"


def _off(slope: Slope) -> float:
    distance = max(slope.low - slope.slope, slope.slope - slope.high)
    return distance if math.isfinite(distance) else math.inf


def _cell(slope: Slope) -> str:
    text = f"{slope.slope:+.2f} ± {slope.half:.2f}"
    return {"yes": text, "no": f"**{text}**", "cannot tell": f"{text} ?"}[slope.answer]


# --- the picture


def draw(result: CheckResult, out: Path | Figure, language: Language = "en") -> None:
    """RMS against size, a panel for each coordinate and a line for each step, into a PNG (a path) or a matplotlib figure.

    Raises ValueError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as NewFigure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'gangpao[lab]', or pip install matplotlib") from error
    figure = NewFigure(figsize=(13, 6.5), layout="constrained") if isinstance(out, Path) else out
    words = _WORDS["zh" if language == "zh" and plot.chinese_font() else "en"]
    panels = list(figure.subplots(2, 4).flat)
    for panel, coordinate in zip(panels, COORDINATES, strict=False):
        _panel(result, coordinate, panel, words)
    panels[-1].set_axis_off()
    verdict = words[result.answer].format(rule=result.rule)
    panels[-1].text(0.0, 0.9, verdict, fontsize="large", va="top")
    figure.suptitle(words["title"].format(axis=words[result.axis]))
    plot.set_font(figure, language)
    if isinstance(out, Path):
        FigureCanvasAgg(figure)
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png")


def _panel(result: CheckResult, coordinate: Coordinate, panel: Any, words: dict[str, str]) -> None:
    slopes = [s for s in result.slopes if s.coordinate == coordinate]
    for slope in slopes:
        rms: dict[int, list[float]] = {}
        for p in result.points:
            if (p.coordinate, p.step) == (coordinate, slope.step):
                rms.setdefault(p.size, []).append(p.rms)
        what = words["after"].format(step=slope.step) if slope.step else words["start"]
        label = f"{what}: {slope.slope:+.2f} {words['out'] if slope.answer == 'no' else ''}"
        style = "-o" if slope.step else "k--"
        panel.plot(list(rms), [sum(v) / len(v) for v in rms.values()], style, linewidth=1.2, markersize=3, label=label)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(result.sizes, [str(size) for size in result.sizes])
    panel.set_title(words[coordinate], color="tab:red" if any(s.answer == "no" for s in slopes) else "black")
    panel.set_xlabel(words[result.axis])
    panel.grid(alpha=0.3)
    panel.legend(fontsize="x-small", framealpha=0.6)

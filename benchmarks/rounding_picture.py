"""Draws quality against bytes from the committed table of results, method by method, in English and Chinese.

    python benchmarks/rounding_picture.py

Each `| model | method | type | bytes | KL |` row of the results is a point: KL divergence from the float model, the mean over zh,
en and code, over the size of the file. One panel a model. The last line is JSON.
"""

import json
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gangpao.evaluate.fonts import chinese_font
from gangpao.evaluate.report.page.drawing import COLOURS, MARKERS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "rounding_amd-epyc-zen5-avx512-2c_2026-12-01.md"
COLUMNS = ["model", "method", "type", "bytes", "KL"]
WORDS = {
    "en": {
        "bytes": "size of the file, MB",
        "KL": "KL divergence from the float model, nats",
        "llama-quantize": "llama-quantize, importance matrix",
        "plain": "gangpao, plain",
        "gptq": "gangpao, gptq",
        "learned": "gangpao, learned",
        "budget": "gangpao, budget with gptq",
        "qat": "gangpao, qat",
    },
    "zh": {
        "bytes": "文件大小（MB）",
        "KL": "与浮点模型的 KL 散度（nat）",
        "llama-quantize": "llama-quantize（重要性矩阵）",
        "plain": "gangpao plain",
        "gptq": "gangpao gptq",
        "learned": "gangpao learned",
        "budget": "gangpao 预算 + gptq",
        "qat": "gangpao qat",
    },
}
METHODS = [key for key in WORDS["en"] if key not in COLUMNS]


def rows() -> list[dict[str, str]]:
    """Of the table of points."""
    lines = [line for line in RESULTS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    begin = cells.index(COLUMNS)
    found = []
    for row in cells[begin + 2 :]:
        if len(row) != len(COLUMNS) or row[1] not in METHODS:
            break
        found.append(dict(zip(COLUMNS, row, strict=True)))
    return found


def panel(axes: Axes, points: list[dict[str, str]], words: dict[str, str]) -> None:
    """One model: a line a method, in the order of sizes."""
    for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
        mine = sorted(
            (float(p["bytes"].replace(",", "")) / 1e6, float(p["KL"])) for p in points if p["method"] == method
        )
        if mine:
            x, y = zip(*mine, strict=True)
            axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.2, label=words[method])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(points[0]["model"])
    axes.set_xlabel(words["bytes"])
    axes.grid(alpha=0.35, which="both")


def picture(found: list[dict[str, str]], words: dict[str, str], out: Path) -> None:
    """A panel a model."""
    models = list(dict.fromkeys(row["model"] for row in found))
    figure = Figure(figsize=(4.8 * len(models), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, model in zip(panels, models, strict=True):
        panel(axes, [row for row in found if row["model"] == model], words)
    panels[0].set_ylabel(words["KL"])
    handles = {text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(out, format="png", dpi=110)
    print(out.name)


def main() -> None:
    """Draw in both languages; in Chinese where a font has its signs."""
    found, images = rows(), HERE.parent / "docs" / "images"
    picture(found, WORDS["en"], images / "compression.png")
    if font := chinese_font():
        with rc_context({"font.family": [font, "DejaVu Sans"]}):
            picture(found, WORDS["zh"], images / "compression.zh.png")
    else:
        print("no font with Chinese signs: the Chinese picture stays as it is")
    print(json.dumps({"points": len(found)}))


if __name__ == "__main__":
    main()

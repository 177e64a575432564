"""The best learning rate across numbers of tokens, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.experiments.text.sweeps import good, interval, losses, noise_said

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = Text("The best learning rate across horizons", "不同训练长度下的最佳学习率")
_COLUMNS = {
    "D": Text("D, tokens", "D（token）"),
    "lr": Text("best rate", "最佳学习率"),
    "interval": Text("95 % interval", "95 % 区间"),
    "bpb": Text("bpb there, fitted", "该处 bpb（拟合）"),
    "measured": Text("lowest bpb measured", "测得的最低 bpb"),
}
_QUESTIONS = {
    "stays": Text(
        "Does the best rate stay within a step of the grid from {first:,} to {last:,} tokens?",
        "从 {first:,} 到 {last:,} token，最佳学习率是否保持在网格一步之内？",
    ),
    "flat": Text(
        "Is the exponent of the best rate over tokens between -0.1 and 0.1?",
        "最佳学习率对 token 数的指数是否在 -0.1 与 0.1 之间？",
    ),
}


def asked(verdict: Facts) -> Text:
    """The question of a verdict."""
    return _QUESTIONS[verdict["asks"]].fill(verdict["about"])


def words(facts: Facts) -> Words:
    """All of it."""
    said = [_law_said(facts["law"]), *_edges_said(facts["sweeps"])]
    return Words(
        _TITLE,
        _COLUMNS,
        [_row(sweep) for sweep in facts["sweeps"]],
        join([*said, noise_said(facts["noise"], "horizon")]),
        lambda figure, language: _draw(figure, language, facts),
    )


def _row(sweep: Facts) -> dict[str, Any]:
    best = sweep["optimum"] or {"best": None, "loss": None}
    own = {"lr": best["best"], "bpb": best["loss"], "interval": interval(sweep), "measured": sweep["measured"]}
    return {"D": sweep["D"], **own}


def _law_said(law: Facts | None) -> Text:
    if law is None:
        return Text(
            "Fewer than three best rates are known, so no law can be told.", "已知的最佳学习率不足三个，得不出规律。"
        )
    wide = f"{law['low']:.2f} .. {law['high']:.2f}"
    en = f"The best rate goes as tokens^-{law['value']:.2f} ({wide}); it is {law['rate']:.3g} at {law['at']:,.0f} tokens."
    zh = f"最佳学习率随 token 数的 -{law['value']:.2f} 次方变化（{wide}）；在 {law['at']:,.0f} token 处为 {law['rate']:.3g}。"
    return Text(en, zh)


def _edges_said(sweeps: list[Facts]) -> list[Text]:
    said = []
    for sweep in sweeps:
        if sweep["more"]:
            count, add = f"{sweep['D']:,}", f"{sweep['more'][0]:.2g}"
            en = f"At {count} tokens the best rate is at the edge of the grid: add {add} to horizon.rates."
            said.append(Text(en, f"{count} token 处最佳学习率在网格边缘：请在 horizon.rates 中加入 {add}。"))
    return said


_WORDS = {
    "D": Text("D, tokens", "D（token）"),
    "lr": Text("learning rate", "学习率"),
    "bpb": Text("bits per byte", "每字节比特"),
    "best": Text("best rate", "最佳学习率"),
}


def _draw(figure: Figure, language: Language, facts: Facts) -> None:
    """Left: the sweeps, a line for each number of tokens. Right: the best rates with their intervals, and the law."""
    word, sweeps, law = plot.words(_WORDS, language), facts["sweeps"], facts["law"]
    left, right = figure.subplots(1, 2)
    for sweep, colour in zip(sweeps, plot.colours(len(sweeps)), strict=True):
        left.plot(*good(sweep), "o-", color=colour, markersize=3, label=f"{sweep['D']:,}")
        if best := sweep["optimum"]:
            left.plot(best["best"], best["loss"], "*", color=colour, markersize=12, markeredgecolor="k")
            right.plot([sweep["D"]] * 2, sweep["closed"], "-", color=colour)
            right.plot(sweep["D"], best["best"], "*", color=colour, markersize=12, markeredgecolor="k")
    if law:
        ends = [float(sweeps[0]["D"]), float(sweeps[-1]["D"])]
        right.plot(ends, [law["rate"] * (D / law["at"]) ** -law["value"] for D in ends], "k--", linewidth=1)
    left.set(xlabel=word["lr"], ylabel=word["bpb"])
    plot.log_ticks(left, [x for sweep in sweeps for x in sweep["x"]])
    plot.keep_minima_in_view(left, [losses(sweep) for sweep in sweeps])
    right.set(xlabel=word["D"], ylabel=word["best"], yscale="log")
    plot.log_ticks(right, [float(sweep["D"]) for sweep in sweeps])
    plot.legend_below(figure, left)
    plot.set_font(figure, language)

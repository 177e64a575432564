"""The best batch and its laws, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.experiments.text.sweeps import good, interval, losses, noise_said
from gangpao.sandbox.laws.verdict import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = Text("The best batch size", "最佳批大小")
_COLUMNS = {
    "size": Text("size", "尺寸"),
    "check": Text("fitted", "参与拟合"),
    "D": Text("D, tokens", "D（token）"),
    "batch": Text("best batch, tokens", "最佳批大小（token）"),
    "interval": Text("95 % interval", "95 % 区间"),
    "bpb": Text("bpb there, fitted", "该处 bpb（拟合）"),
    "measured": Text("lowest bpb measured", "测得的最低 bpb"),
    "grid": Text("batch measured there", "对应的批大小"),
    "law": Text("law of loss", "损失规律给出"),
    "noise": Text("noise of a difference in bpb (95 %)", "bpb 差的噪声（95 %）"),
}
_FITTED = {True: Text("yes", "是"), False: Text("no", "否")}
_QUESTIONS = {
    "grows": Text(
        "Does the best batch grow as the loss falls (exponent below 0)?",
        "最佳批大小是否随损失下降而增大（指数小于 0）？",
    ),
    "good": Text(
        "Does the batch of the {law} cost {size}, which was not fitted, at most {goal:g} % of its loss?",
        "{law}给出的批大小，在未参与拟合的 {size} 上，损失增量是否不超过 {goal:g} %？",
    ),
}
_LAWS = {"loss": Text("law of loss", "损失规律"), "tokens": Text("law of tokens", "token 规律")}
_ENDS: dict[Answer, Text] = {
    "yes": Text("is met", "达到"),
    "no": Text("is missed", "未达到"),
    "cannot tell": Text("may be met or missed", "无法判断是否达到"),
}


def asked(verdict: Facts) -> Text:
    """The question of a verdict."""
    about = verdict["about"]
    return _QUESTIONS[verdict["asks"]].fill({**about, "law": _LAWS.get(about.get("law", ""))})


def words(facts: Facts) -> Words:
    """All of it."""
    said = [*_edges_said(facts), *_laws_said(facts), *_tests_said(facts), noise_said(facts["noise"], "batch")]
    rows = [_row(sweep, facts["error"]) for sweep in facts["sweeps"]]
    return Words(_TITLE, _COLUMNS, rows, join(said), lambda figure, language: _draw(figure, language, facts))


def _row(sweep: Facts, error: float | None) -> dict[str, Any]:
    best = sweep["optimum"] or {"best": None, "loss": None}
    return {
        "size": sweep["size"], "check": _FITTED[not sweep["check"]], "D": sweep["D"], "batch": best["best"],
        "interval": interval(sweep, ",.0f"), "bpb": best["loss"], "measured": sweep["measured"], "grid": sweep["grid"],
        "law": sweep["law"], "noise": error,
    }  # fmt: skip


def _edges_said(facts: Facts) -> list[Text]:
    """The best batch of each size."""
    said, row = [], facts["row_tokens"]
    for sweep in facts["sweeps"]:
        where, more = sweep["size"], sweep["more"]
        if sweep["optimum"] is None:
            en = f"{where} has no best batch: too few trials ended well."
            said.append(Text(en, f"{where} 正常结束的试验太少，没有最佳批大小。"))
        elif more and more[0] < row:
            en = f"At {where} the best batch is the smallest that there can be, near one row of {row} tokens: shorten seq_len."
            said.append(Text(en, f"{where} 的最佳批大小已接近最小值，即一行 {row} 个 token：请减小 seq_len。"))
        elif more:
            add = f"{more[0]:.0f}"
            en = f"At {where} the best batch is at the edge of the grid: add {add} to batch.batches."
            said.append(Text(en, f"{where} 的最佳批大小在网格边缘：请在 batch.batches 中加入 {add}。"))
        else:
            numbers = f"{sweep['optimum']['best']:,.0f} ({interval(sweep, ',.0f')})"
            en = f"At {where} and {sweep['D']:,} tokens the best batch is {numbers} tokens."
            said.append(Text(en, f"{where}、{sweep['D']:,} token 时最佳批大小为 {numbers} token。"))
    return said


def _laws_said(facts: Facts) -> list[Text]:
    laws = facts["laws"]
    return [*_loss_law_said(laws["loss"], facts["paper"]), *_tokens_law_said(laws)]


def _loss_law_said(law: Facts | None, paper: float) -> list[Text]:
    """paper: the exponent that MiniCPM found."""
    if law is None:
        en = "Fewer than three sizes have a best batch inside the grid, so there is no law over the loss: add sizes or batches."
        zh = "最佳批大小在网格之内的尺寸不足三个，得不到随损失的规律：请增加尺寸或批大小。"
        return [Text(en, zh)]
    low, high = sorted(-v for v in law["exponent"])
    formula = f"{law['a']:.3g} / L^{-law['b']:.2f} ({low:.2f} .. {high:.2f})"
    inside = Text("inside", "内") if low <= paper <= high else Text("outside", "外")
    en = (
        f"Over the loss L in bits per byte: batch = {formula}; the paper's exponent {paper:.2f} lies {inside.en} the interval "
        "(its factor is for nats a token on C4, so only the exponents compare)."
    )
    zh = (
        f"随损失 L（每字节比特）：批大小 = {formula}；论文的指数 {paper:.2f} 在区间{inside.zh}"
        "（其系数针对 C4 上每 token 的 nat，只有指数可比）。"
    )
    said = [Text(en, zh)]
    if low <= 0 <= high:
        en = (
            "The interval holds 0, so not even the direction is known and a plan will not use the law: add sizes that are "
            "farther apart, or seeds."
        )
        said.append(Text(en, "区间包含 0，连方向都不确定，规划不会使用它：请加入相差更大的尺寸，或更多种子。"))
    return said


def _tokens_law_said(laws: Mapping[str, Facts | None]) -> list[Text]:
    if (law := laws["tokens"]) is not None:
        low, high = law["exponent"]
        formula = f"{law['a']:.3g} D^{law['b']:.2f} ({low:.2f} .. {high:.2f})"
        return [Text(f"Over the tokens: batch = {formula}.", f"随 token 数：批大小 = {formula}。")]
    if laws["loss"] is None:
        return []
    en = "Fewer than three token counts were seen, so there is no law over D: give batch.tokens."
    return [Text(en, "token 数不足三种，得不到随 D 的规律：请给出 batch.tokens。")]


def _tests_said(facts: Facts) -> list[Text]:
    if not any(sweep["check"] for sweep in facts["sweeps"]):
        return [Text("No size tests the law: give batch.check.", "没有检验规律的尺寸：请给出 batch.check。")]
    return [_test_said(t, facts["goal"]) for t in facts["checks"]]


def _test_said(t: Facts, goal: float) -> Text:
    law, numbers = _LAWS[t["law"]], f"{t['batch']:,.0f} ({t['low']:,.0f} .. {t['high']:,.0f})"
    en = f"At {t['size']}, which was not fitted, the {law.en} says {numbers}"
    zh = f"未参与拟合的 {t['size']}：{law.zh}给出 {numbers}"
    if t["lost"] is None:
        return Text(f"{en}, which was not measured: widen batch.batches.", f"{zh}，没有测过：请扩大 batch.batches。")
    lost, ends = f"{t['lost']:+.2f} %" + ("" if t["error"] is None else f" ± {t['error']:.2f}"), _ENDS[t["answer"]]
    en = f"{en}: {lost} against the best of its grid; the goal of {goal:g} % {ends.en}."
    return Text(en, f"{zh}：比其网格最优 {lost}；目标 {goal:g} % {ends.zh}。")


# --- the picture

_WORDS = {
    "batch": Text("batch, tokens", "批大小（token）"),
    "best": Text("best batch, tokens", "最佳批大小（token）"),
    "bpb": Text("bits per byte", "每字节比特"),
    "law": Text("law of loss", "损失规律"),
    "check": Text("not fitted", "未参与拟合"),
}


def _draw(figure: Figure, language: Language, facts: Facts) -> None:
    """Left: a valley for each size, the law through their bottoms. Right: the best batch over the loss, with the law's interval."""
    word, sweeps = plot.words(_WORDS, language), facts["sweeps"]
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_sweeps(left, right, sweeps, word)
    if facts["curve"]:
        grid, line, low, high = zip(*facts["curve"], strict=True)
        left.plot(line, grid, "k--", linewidth=1, label=word["law"])
        right.plot(grid, line, "k--", linewidth=1)
        right.fill_between(grid, low, high, color="0.85", zorder=0)
    tried = [x for sweep in sweeps for x in sweep["x"]]
    left.set(xlabel=word["batch"], ylabel=word["bpb"])
    plot.log_ticks(left, tried)
    left.set_xlim(min(tried) / 1.3, 1.3 * max(tried))
    plot.keep_minima_in_view(left, [losses(sweep) for sweep in sweeps])
    plot.legend_below(figure, left, 3)
    right.set(xlabel=word["bpb"], ylabel=word["best"], yscale="log", ylim=(min(tried) / 1.3, 1.3 * max(tried)))
    plot.set_font(figure, language)


def _draw_sweeps(left: Axes, right: Axes, sweeps: Sequence[Facts], word: Mapping[str, str]) -> None:
    for sweep, colour in zip(sweeps, plot.colours(len(sweeps)), strict=True):
        check, best = sweep["check"], sweep["optimum"]
        name = f"{sweep['size']}, {sweep['D']:,}" + (f" ({word['check']})" if check else "")
        left.plot(*good(sweep), "s--" if check else "o-", color=colour, markersize=3, label=name)
        if best is None:
            continue
        x, loss, (low, high) = best["best"], best["loss"], sweep["closed"]
        left.plot(x, loss, "*", color=colour, markersize=13, markeredgecolor="k")
        bars, mark = [[max(0.0, x - low)], [max(0.0, high - x)]], "s" if check else "*"
        right.errorbar([loss], [x], yerr=bars, fmt=mark, color=colour, markersize=9, capsize=3)

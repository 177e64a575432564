"""Optimizers at equal loss, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.experiments.text.sweeps import good, interval, losses, noise_said

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = Text("Optimizers at equal loss", "同等损失下的优化器")
_COLUMNS = {
    "optimizer": Text("optimizer", "优化器"),
    "D": Text("D, tokens", "D（token）"),
    "lr": Text("best rate", "最佳学习率"),
    "interval": Text("95 % interval", "95 % 区间"),
    "bpb": Text("bpb there, fitted", "该处 bpb（拟合）"),
    "measured": Text("lowest bpb measured", "测得的最低 bpb"),
    "difference": Text("to the first", "与第一个之差"),
    "noise": Text("noise of a difference (95 %)", "差的噪声（95 %）"),
    "seconds": Text("seconds", "秒"),
}
_SHOWN = {"adamw": "AdamW", "muon": "Muon", "adamh": "AdamH", "muonh": "MuonH"}
_WHAT = {"tokens": Text("tokens", " token"), "seconds": Text("seconds of steps", "步的秒数")}


def asked(verdict: Facts) -> Text:
    """The question of a verdict: does an optimizer need less than the first?"""
    about = verdict["about"]
    one, other, what = _SHOWN[about["first"]], _SHOWN[about["other"]], _WHAT[about["what"]]
    return Text(
        f"Does {other} need fewer {what.en} than {one} for the same loss (ratio below 1)?",
        f"同等损失下，{other} 所需{what.zh}是否少于 {one}（比值小于 1）？",
    )


def words(facts: Facts) -> Words:
    """All of it."""
    said = _edges_said(facts["sweeps"])
    for other in facts["tokens"]:
        said += _ratio_said(other, facts)
    return Words(
        _TITLE,
        _COLUMNS,
        _rows(facts),
        join([*said, noise_said(facts["noise"], "optim")]),
        lambda figure, language: _draw(figure, language, facts),
    )


def _rows(facts: Facts) -> list[dict[str, Any]]:
    first, sweeps = facts["first"], {(s["optimizer"], s["D"]): s for s in facts["sweeps"]}
    curves = {c["optimizer"]: dict(zip(c["D"], c["loss"], strict=True)) for c in facts["curves"]}
    rows = []
    for c in facts["curves"]:
        name, other = c["optimizer"], c["optimizer"] != first
        for D, loss in curves[name].items():
            sweep, base = sweeps[name, D], curves[first].get(D)
            rows.append({
                "optimizer": _SHOWN[name], "D": D, "lr": sweep["optimum"] and sweep["optimum"]["best"],
                "interval": interval(sweep), "bpb": loss, "measured": sweep["measured"],
                "difference": loss - base if other and base is not None else None,
                "noise": facts["error"] if other else None,
                "seconds": None if c["seconds"] is None else c["seconds"] * D,
            })  # fmt: skip
    return rows


def _edges_said(sweeps: Sequence[Facts]) -> list[Text]:
    said = []
    groups: dict[tuple[str, str], list[str]] = {}
    for sweep in sorted(sweeps, key=lambda s: (s["optimizer"], s["D"])):
        if sweep["optimum"] is None or sweep["more"]:
            add = f"{sweep['more'][0]:.2g}" if sweep["more"] else ""
            groups.setdefault((_SHOWN[sweep["optimizer"]], add), []).append(f"{sweep['D']:,}")
    for (where, add), counts in groups.items():
        count = " / ".join(counts)
        if not add:
            en = f"{where} at {count} tokens: too few trials ended well for a best rate."
            said.append(Text(en, f"{where} 在 {count} token 处正常结束的试验太少，定不出最佳学习率。"))
        else:
            en = f"{where} at {count} tokens: the best rate is at the edge of the grid and may do better: add {add} to optim.rates."
            zh = f"{where} 在 {count} token 处最佳学习率在网格边缘，也许还能更好：请在 optim.rates 中加入 {add}。"
            said.append(Text(en, zh))
    return said


def _ratio_said(name: str, facts: Facts) -> list[Text]:
    """An optimizer against the first."""
    one, other = _SHOWN[facts["first"]], _SHOWN[name]
    tokens, seconds = facts["tokens"][name], facts["seconds"][name]
    if tokens["value"] is None:
        return [_apart_said(one, other, tokens["bound"])]
    at, ends = "{:.4f} .. {:.4f}".format(*tokens["losses"]), [f"{end:.2f}" for end in tokens["ends"]]
    number, call = _shown(tokens), _call(tokens, name, facts)
    en = (
        f"For the same loss ({at} bits per byte) {other} needs {number} times the tokens of {one}: {ends[0]} times at the highest "
        f"of these losses, {ends[1]} at the lowest{call.en}."
    )
    zh = (
        f"同等损失（每字节 {at} 比特）下，{other} 所需 token 为 {one} 的 {number} 倍："
        f"其中损失最高处 {ends[0]} 倍，最低处 {ends[1]} 倍{call.zh}。"
    )
    said = [Text(en, zh)]
    if seconds["value"] is not None:
        number, call = _shown(seconds), _call(seconds, name, facts)
        en = f"In seconds of steps on this machine it needs {number} times as much{call.en}."
        said.append(Text(en, f"按本机上各步的秒数，为 {number} 倍{call.zh}。"))
    return said


def _apart_said(one: str, other: str, bound: float | None) -> Text:
    """Two curves without a common loss."""
    if bound is None:
        en = f"{one} and {other} cannot be compared: trials are missing, or all that keeps their losses apart may be noise."
        return Text(en, f"{one} 与 {other} 无法比较：缺少试验，或损失之差可能只是噪声。")
    side = Text("less", "小于") if bound < 1 else Text("more", "大于")
    en = (
        f"{one} and {other} reach no loss in common: for equal loss {other} needs {side.en} than {bound:.3g} times the tokens. "
        "Add token counts to optim.tokens so that the curves overlap."
    )
    zh = (
        f"{one} 与 {other} 没有共同达到的损失：同等损失下 {other} 所需 token {side.zh} {one} 的 {bound:.3g} 倍。"
        "请增加 optim.tokens，使两条曲线重叠。"
    )
    return Text(en, zh)


def _shown(r: Facts) -> str:
    known = "" if r["low"] is None or r["high"] is None else f" ({r['low']:.2f} .. {r['high']:.2f})"
    return f"{r['value']:.2f}{known}"


def _call(r: Facts, name: str, facts: Facts) -> Text:
    """Which needs less, or why that cannot be told."""
    if r["answer"] != "cannot tell":
        return Text("; less", "；更少") if r["answer"] == "yes" else Text("; more", "；更多")
    # Optimizers whose best rate may lie beyond those that were tried.
    edges = [_SHOWN[one] for one in (facts["first"], name) if one in facts["edges"]]
    if edges:
        names = " / ".join(edges)
        return Text(
            f"; which needs less cannot be told, as {names} may do better at the rates to add",
            f"；{names} 用待加入的学习率可能更好，因此无法判断哪个更少",
        )
    if r["low"] is None:
        return Text("; the interval is not known, so which needs less cannot be told", "；区间未知，无法判断哪个更少")
    return Text("; which needs less cannot be told", "；无法判断哪个更少")


# --- the picture

_WORDS = {
    "D": Text("D, tokens", "D（token）"),
    "lr": Text("learning rate", "学习率"),
    "bpb": Text("bits per byte", "每字节比特"),
    "best": Text("at the best rate", "最佳学习率处"),
}


def _draw(figure: Figure, language: Language, facts: Mapping[str, Any]) -> None:
    """Left: loss over tokens at the best rates. Right: the sweeps over the rate, lighter for fewer tokens."""
    word, curves, sweeps = plot.words(_WORDS, language), facts["curves"], facts["sweeps"]
    left, right = figure.subplots(1, 2)
    for i, c in enumerate(curves):
        name = _SHOWN[c["optimizer"]]
        left.plot(c["D"], c["loss"], "os^"[i % 3] + "-", color=f"C{i}", label=name)
        here = sorted((s for s in sweeps if s["optimizer"] == c["optimizer"]), key=lambda s: int(s["D"]))
        for j, sweep in enumerate(here):
            alpha, label = 0.3 + 0.7 * (j + 1) / len(here), f"{name} {sweep['D']:,}"
            right.plot(*good(sweep), ".-", color=f"C{i}", alpha=alpha, label=label)
            if best := sweep["optimum"]:
                right.plot(best["best"], best["loss"], "*", color=f"C{i}", markersize=11, markeredgecolor="k")
    left.set(title=word["best"], xlabel=word["D"], ylabel=word["bpb"])
    plot.log_ticks(left, [float(d) for c in curves for d in c["D"]])
    right.set(xlabel=word["lr"], ylabel=word["bpb"])
    plot.log_ticks(right, [x for sweep in sweeps for x in sweep["x"]])
    plot.keep_minima_in_view(right, [losses(sweep) for sweep in sweeps])
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    plot.legend_below(figure, right)
    plot.set_font(figure, language)

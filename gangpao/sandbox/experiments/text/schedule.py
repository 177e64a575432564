"""WSD against cosine, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import ANSWERS, Facts, Words
from gangpao.sandbox.laws.verdict import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = Text("WSD against cosine", "WSD 与余弦学习率的比较")
_COLUMNS = {
    "D": Text("D, tokens", "D（token）"),
    "schedule": Text("schedule", "学习率曲线"),
    "decay": Text("decay share", "退火比例"),
    "factor": Text("rate ×", "学习率倍数"),
    "before": Text("bpb before decay", "退火前 bpb"),
    "bpb": Text("bpb", "bpb"),
    "difference": Text("to the best cosine", "与最佳余弦之差"),
    "noise": Text("noise of a difference (95 %)", "差的噪声（95 %）"),
    "flops": Text("FLOPs", "FLOPs"),
}
_QUESTIONS = {
    "against": Text(
        "At {D:,} tokens, does {shape} with a decay of {share:.3g} end at or below the best cosine?",
        "{D:,} token 处，{shape}（退火比例 {share:.3g}）是否不高于最佳余弦？",
    ),
    "enough": Text(
        "{shape}: does a decay of {share:.1%} cost at most {margin:.1%} of the loss against the best share?",
        "{shape}：退火比例 {share:.1%} 与最佳比例相比，损失增量是否不超过 {margin:.1%}？",
    ),
}
_CALLS: dict[Answer, Text] = {
    "yes": Text("better than cosine", "优于余弦"),
    "no": Text("worse than cosine", "不如余弦"),
    "cannot tell": Text("no difference beyond noise, so it cannot tell", "没有超出噪声的差异，无法判断"),
}


def asked(verdict: Facts) -> Text:
    """The question of a verdict."""
    return _QUESTIONS[verdict["asks"]].fill(verdict["about"])


def words(facts: Facts) -> Words:
    """All of it."""
    said = [*_ends(facts), *_rates_said(facts), *_shares(facts), *_cost_said(facts["cost"])]
    if facts["wide"] is None:
        en = (
            "With one seed the noise between seeds is not known, so no difference is called real and no share sufficient: "
            "give schedule.seeds two values or more."
        )
        zh = "只有一个种子，种子间的噪声未知，因此不判定任何差异为真，也不判定哪个比例足够：请给 schedule.seeds 两个以上的值。"
        said.append(Text(en, zh))
    return Words(_TITLE, _COLUMNS, _rows(facts), join(said), lambda figure, language: _draw(figure, language, facts))


def _rows(facts: Facts) -> list[dict[str, Any]]:
    cosines = {h["D"]: h["cosine"] for h in facts["horizons"]}
    rows = []
    for cell in facts["cells"]:
        best = cosines[cell["D"]]
        rows.append({
            **cell, "schedule": cell["kind"], "decay": cell["share"] or None,
            "factor": cell["factor"] if cell["kind"] == "cosine" else None,
            "difference": None if best is None else cell["bpb"] - best, "noise": facts["wide"],
        })  # fmt: skip
    return rows


def _ends(facts: Facts) -> list[Text]:
    """Where WSD with the usual share ends against the best cosine, horizon by horizon."""
    share, shape, wide = facts["usual"], facts["shapes"][0], facts["wide"]
    said = []
    for h in facts["horizons"]:
        if (against := h["against"]) is None:
            en = f"At {h['D']:,} tokens there is nothing to compare: trials are missing."
            said.append(Text(en, f"{h['D']:,} token 处缺少试验，无法比较。"))
            continue
        call = _CALLS[against["answer"]]
        noise = Text("", "") if wide is None else Text(f" ± {wide:.4f}, {call.en}", f" ± {wide:.4f}，{call.zh}")
        bpb, difference = against["bpb"], f"{against['difference']:+.4f}"
        en = (
            f"At {h['D']:,} tokens {shape} with {share:.3g} of them for the decay ends at {bpb:.4f} bits per byte, the best "
            f"cosine (rate × {h['cosine_factor']:g}) at {h['cosine']:.4f}: {difference}{noise.en}."
        )
        zh = (
            f"{h['D']:,} token 处，{shape}（退火比例 {share:.3g}）为每字节 {bpb:.4f} 比特，最佳余弦"
            f"（学习率 × {h['cosine_factor']:g}）为 {h['cosine']:.4f}：相差 {difference}{noise.zh}。"
        )
        said.append(Text(en, zh))
    return said


def _rates_said(facts: Facts) -> list[Text]:
    """Was the cosine tuned?"""
    factors, used = facts["cosine_rates"], {h["cosine_factor"] for h in facts["horizons"]}
    if len(factors) == 1:
        en = "The cosine runs had one rate only and are not tuned: add schedule.cosine_rates."
        return [Text(en, "余弦只试了一个学习率，未经调优：请增加 schedule.cosine_rates。")]
    if not used & {factors[0], factors[-1]}:
        return []
    low, high = factors[0] in used, factors[-1] in used
    more = [f"{factors[0] ** 2 / factors[1]:.3g}"] * low + [f"{factors[-1] ** 2 / factors[-2]:.3g}"] * high
    en = f"A best cosine lies at the edge of the rates, so a better one may exist: add {', '.join(more)} to schedule.cosine_rates."
    zh = f"有的最佳余弦位于所试学习率的边缘，可能还有更好的：请在 schedule.cosine_rates 中加入 {'、'.join(more)}。"
    return [Text(en, zh)]


def _shares(facts: Facts) -> list[Text]:
    """Which share of decay is enough, for each shape, and what becomes of the paper's two."""
    said: list[Text] = []
    for shape in facts["shapes"]:
        costs = facts["shares"][shape]
        here = [h["shapes"][shape] for h in facts["horizons"] if shape in h["shapes"]]
        for share in facts["paper"]:
            above = [s["above_best"][str(share)] for s in here if str(share) in s["above_best"]]
            if above:
                answer, most = ANSWERS[costs["answers"].get(str(share), "cannot tell")], f"{max(above):.4f}"
                en = f"{shape}: a decay of {share:.1%} is at most {most} above the best share; enough: {answer.en}."
                zh = f"{shape}：退火比例 {share:.1%} 比最佳比例最多高 {most}；是否足够：{answer.zh}。"
                said.append(Text(en, zh))
        said += _enough_said(shape, costs, facts["seeds"], facts["margin"])
        largest = max(facts["decays"])
        if here and all(s["best_share"] == largest for s in here) and facts["enough"][shape] in (None, largest):
            add = f"{min(0.8, 2 * largest):g}"
            en = (
                f"{shape}: the longest decay, {largest:.1%}, was the best everywhere, so a longer one may be better still: "
                f"add {add} to schedule.decays."
            )
            zh = f"{shape}：最长的退火 {largest:.1%} 处处最好，更长的也许更好：请在 schedule.decays 中加入 {add}。"
            said.append(Text(en, zh))
    return said


def _enough_said(shape: str, costs: Facts, seeds: int, margin: float) -> list[Text]:
    enough, noise = costs["enough"], costs["noise"]
    if enough is not None:
        en = f"{shape}: the smallest share that surely costs less than {margin:.1%} of the loss, in the mean over the horizons, is"
        zh = f"{shape}：对各长度取平均，可以确定损失增量小于 {margin:.1%} 的最小比例是"
        return [Text(f"{en} {enough:.1%}.", f"{zh} {enough:.1%}。")]
    if noise is None or noise < margin:
        return []
    more = math.ceil(seeds * (noise / margin) ** 2) + 1
    en = (
        f"{shape}: the noise between seeds, {noise:.2%} of the loss, is too large to tell which share costs less than "
        f"{margin:.1%}, so none is called enough; more seeds would help, about {more}."
    )
    zh = (
        f"{shape}：种子间的噪声为损失的 {noise:.2%}，太大，无法分辨哪个比例的代价小于 {margin:.1%}，"
        f"因此不判定任何比例足够；增加种子会有帮助，约需 {more} 个。"
    )
    return [Text(en, zh)]


def _cost_said(cost: Facts) -> list[Text]:
    if not (cost["wsd"] and cost["cosine"]):
        return []
    ratio = cost["cosine"] / cost["wsd"]
    en = (
        f"One stable run with a decay for each horizon costs {cost['wsd']:.3g} FLOPs, one cosine run for each "
        f"{cost['cosine']:.3g}: {ratio:.2f} times as much, before any cosine is tuned."
    )
    zh = (
        f"一条稳定段加每个长度各一次退火共 {cost['wsd']:.3g} FLOPs，每个长度各跑一条余弦共 {cost['cosine']:.3g}："
        f"是前者的 {ratio:.2f} 倍，还没有算调余弦的开销。"
    )
    return [Text(en, zh)]


# --- the picture

_WORDS = {
    "D": Text("D, tokens", "D（token）"),
    "bpb": Text("bits per byte", "每字节比特"),
    "share": Text("share of the tokens that decay", "退火所占 token 比例"),
    "above": Text("bpb above the best cosine", "高出最佳余弦的 bpb"),
    "cosine": Text("best cosine", "最佳余弦"),
    "before": Text("stable, before the decay", "稳定段，退火之前"),
    "noise": Text("noise (95 %)", "噪声（95 %）"),
}


def _draw(figure: Figure, language: Language, facts: Facts) -> None:
    """Left: loss against the horizon. Right: what each share of decay costs against the best cosine."""
    word = plot.words(_WORDS, language)
    left, right = figure.subplots(1, 2)
    horizons, cells, share = facts["horizons"], facts["cells"], facts["usual"]
    cosine = {h["D"]: h["cosine"] for h in horizons if h["cosine"] is not None}
    left.plot(list(cosine), list(cosine.values()), "k^--", label=word["cosine"])
    for i, shape in enumerate(facts["shapes"]):
        here = sorted((c["D"], c["bpb"], c["before"]) for c in cells if (c["kind"], c["share"]) == (shape, share))
        left.plot([d for d, _, _ in here], [b for _, b, _ in here], f"C{i}o-", label=f"{shape} {share:.3g}")
        if i == 0 and here and all(b is not None for _, _, b in here):
            left.plot([d for d, _, _ in here], [b for _, _, b in here if b is not None], "C7.:", label=word["before"])
        for h, marker in zip(horizons, "osDv^<>P*X" * len(horizons), strict=False):
            if h["D"] in cosine:
                line = _line(cells, h["D"], shape, cosine[h["D"]])
                label = f"{shape} {h['D']:,}"
                right.plot([s for s, _ in line], [b for _, b in line], f"C{i}{marker}-", label=label, alpha=0.8)
    if facts["wide"] is not None:
        right.axhspan(-facts["wide"], facts["wide"], color="0.85", label=word["noise"])
    right.axhline(0.0, color="k", linewidth=0.8)
    for axes, x, y in ((left, "D", "bpb"), (right, "share", "above")):
        axes.set_xscale("log")
        axes.set(xlabel=word[x], ylabel=word[y])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    right.set_xticks(facts["decays"], [f"{s:g}" for s in facts["decays"]])
    right.minorticks_off()
    plot.set_font(figure, language)


def _line(cells: Sequence[Facts], D: int, shape: str, cosine: float) -> list[tuple[float, float]]:
    """What each share costs against the best cosine of a horizon."""
    return sorted((c["share"], c["bpb"] - cosine) for c in cells if (c["D"], c["kind"]) == (D, shape))

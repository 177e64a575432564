"""What goes into the decay, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join, same
from gangpao.sandbox.experiments.outcome import LeftOut
from gangpao.sandbox.experiments.text import page, plot
from gangpao.sandbox.experiments.text.page import Facts, Words
from gangpao.sandbox.laws.verdict import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = Text("What goes into the decay", "退火阶段用什么数据")
_COLUMNS = {
    "mixture": Text("mixture of the decay", "退火配比"),
    "group": Text("held-out text", "留出文本"),
    "sources": Text("sources", "来源数"),
    "bpb": Text("bpb", "bpb"),
    "difference": Text("to the first", "与第一个之差"),
    "error": Text("± (95 %)", "±（95 %）"),
    "verdict": Text("verdict", "结论"),
    "noise": Text("noise between seeds", "种子间噪声"),
}
_OWN_MIXTURES = {  # the data's, where none are configured
    "stable": Text("without supervised data", "不含监督数据"),
    "decay": Text("with supervised data", "含监督数据"),
}
_GROUPS = {
    "total": Text("total", "总计"),
    "zh": Text("Chinese (zh-)", "中文（zh-）"),
    "en": Text("English (en-)", "英文（en-）"),
    "code": Text("code (code-)", "代码（code-）"),
    "other": Text("others", "其他"),
    "answers": Text("answers, nats a token", "回答（每 token 的 nat）"),
}
_CALLS: dict[Answer, Text] = {
    "yes": Text("lower", "更低"), "no": Text("higher", "更高"), "cannot tell": Text("cannot tell", "无法判断"),
}  # fmt: skip


def _name(mixture: str, configured: bool) -> Text:
    return same(mixture) if configured else _OWN_MIXTURES[mixture]


def asked(verdict: Facts) -> Text:
    """The question of a verdict: is a mixture better than the first on a group of held-out text?"""
    about = verdict["about"]
    own, base = (_name(about[key], about["configured"]) for key in ("mixture", "first"))
    group = _GROUPS[about["group"]]
    return Text(
        f"{group.en.capitalize()}: does the decay {own.en} end lower than the one {base.en}?",
        f"{group.zh}：退火配比“{own.zh}”是否低于“{base.zh}”？",
    )


def named(one: LeftOut) -> Text:
    """A branch says its mixture."""
    mixture, name = one.values.get("mixture"), page.named(one)
    if mixture is None:
        return name
    own = _name(mixture, one.values["configured"])
    return Text(f"{own.en}: {name.en}", f"{own.zh}：{name.zh}")


def words(facts: Facts) -> Words:
    """All of it."""
    rows = [_row(c, facts["configured"]) for c in facts["cells"]]
    return Words(_TITLE, _COLUMNS, rows, _said(facts), lambda figure, language: _draw(figure, language, facts))


def _row(c: Facts, configured: bool) -> dict[str, Any]:
    answer = c.get("verdict")
    return {
        **c, "mixture": _name(c["mixture"], configured), "group": _GROUPS[c["group"]], "bpb": c["loss"],
        "verdict": _CALLS[answer] if answer else None,
    }  # fmt: skip


def _said(facts: Facts) -> Text:
    configured, cells, kept = facts["configured"], facts["cells"], facts["kept"]
    shares = {_name(n, configured): f"{share:.0%}" for n, share in facts["supervised"].items()}
    en = ", ".join(f"{name.en} {share}" for name, share in shares.items())
    zh = "，".join(f"{name.zh} {share}" for name, share in shares.items())
    said = [Text(f"Share of supervised data in the decay: {en}.", f"退火中监督数据的比例：{zh}。")]
    first = next(iter(facts["mixtures"]))
    if first not in kept or not cells or len(kept) < 2:
        missing = Text("Too few trials ended well, so there is nothing to compare.", "正常结束的试验太少，无法比较。")
        return join([*said, missing])
    base = _name(first, configured)
    for mixture in kept[1:]:
        parts, own = [_compared(c) for c in cells if c["mixture"] == mixture], _name(mixture, configured)
        en = f"{own.en}, against {base.en}, in bits per byte: {'; '.join(t.en for t in parts)}."
        said.append(Text(en, f"{own.zh}，与“{base.zh}”相比（每字节比特）：{'；'.join(t.zh for t in parts)}。"))
    return join([*said, *_caveats(facts)])


def _compared(c: Facts) -> Text:
    """A group's difference with its noise, and what to make of it."""
    group, value = _GROUPS[c["group"]], f"{c['difference']:+.4f}"
    if c["error"] is None:
        return Text(f"{group.en} {value} (cannot tell)", f"{group.zh} {value}（无法判断）")
    value, call = f"{value} ± {c['error']:.4f}", _CALLS[c["verdict"]]
    return Text(f"{group.en} {value} ({call.en})", f"{group.zh} {value}（{call.zh}）")


def _caveats(facts: Facts) -> list[Text]:
    cells, seeds, said = facts["cells"], facts["seeds"], []
    noise = cells[0]["noise"]
    if noise is None:
        en = "With one seed nothing tells noise from a result: give mix.seeds two values, better three."
        said.append(Text(en, "只有一个种子，无法分辨噪声与结果：请给 mix.seeds 两个以上的值，最好三个。"))
    else:
        en = f"Seeds scatter by {noise:.4f}; a difference is taken within each of {seeds} seeds, from the same stable run."
        said.append(Text(en, f"种子间离散 {noise:.4f}；差值在 {seeds} 个种子内各自从同一条稳定段计算。"))
        if seeds == 2:
            en = "Of two seeds the interval is wide: a third one narrows it most."
            said.append(Text(en, "两个种子的区间很宽：加第三个收窄最多。"))
    if facts["lost_seeds"]:
        which = ", ".join(map(str, facts["lost_seeds"]))
        en = f"A seed for which a mixture did not end well is left out of all of them: {which}."
        said.append(Text(en, f"某个配比没有正常结束的种子，在所有配比中都不计入：{which}。"))
    return [*said, _answers_said(cells)]


def _answers_said(cells: Sequence[Facts]) -> Text:
    if any(c["group"] == "answers" for c in cells):
        en = "Supervised sources have no bits per byte; their answers are judged in nats a token and are not in the total."
        return Text(en, "监督数据没有每字节比特；其回答按每 token 的 nat 评判，不计入总计。")
    en = (
        "Supervised sources have no bits per byte, only nats a token, and the results keep none: whether the model answers "
        "better is not said here, the total is plain text."
    )
    zh = "监督数据没有每字节比特，只有每 token 的 nat，而结果中没有保存：这里不说明回答是否更好，总计只含普通文本。"
    return Text(en, zh)


# --- the picture

_WORDS = {
    "change": Text("bits per byte to the first mixture (left is better)", "与第一个配比的每字节比特之差（左侧更好）"),
    "noise": Text("bars: 95 % within seeds", "误差线：种子内 95 %"),
}


def _draw(figure: Figure, language: Language, facts: Mapping[str, Any]) -> None:
    """A bar for each group of sources and mixture: how much its loss changes."""
    word, drawn = plot.words(_WORDS, language), plot.words(_GROUPS, language)
    axes, cells = figure.subplots(), facts["cells"]
    groups = list(dict.fromkeys(c["group"] for c in cells))
    mixtures = list(dict.fromkeys(c["mixture"] for c in cells if "difference" in c))
    height = 0.8 / max(1, len(mixtures))
    for i, mixture in enumerate(mixtures):
        here = [c for c in cells if c["mixture"] == mixture and "difference" in c]
        at = [groups.index(c["group"]) + (i - (len(mixtures) - 1) / 2) * height for c in here]
        values, errors = [c["difference"] for c in here], [c["error"] or 0.0 for c in here]
        label = plot.words({"name": _name(mixture, facts["configured"])}, language)["name"]
        axes.barh(at, values, 0.9 * height, xerr=errors, capsize=3, color=f"C{i}", label=label)
    axes.axvline(0.0, color="k", linewidth=0.8)
    axes.set_yticks(range(len(groups)), [drawn[g] for g in groups])
    axes.invert_yaxis()
    axes.set(xlabel=f"{word['change']}; {word['noise']}")
    if mixtures:
        axes.legend(fontsize=8)
    plot.set_font(figure, language)

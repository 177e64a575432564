"""What a search found, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gangpao.sandbox.bilingual import Language, Text, join, same
from gangpao.sandbox.experiments.text import plot
from gangpao.sandbox.experiments.text.page import STATES, Facts, Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = Text("A search", "搜索")
_QUESTION = Text("Is the best trial better than the second?", "最好的试验是否优于第二名？")


def asked(verdict: Facts) -> Text:
    """The one question."""
    return _QUESTION


def words(facts: Facts) -> Words:
    """All of it."""
    columns = {
        "number": Text("trial", "试验"),
        **{name: same(name) for name in facts["space"]},
        "bpb": Text("bpb", "bpb"),
        "above": Text("above the best", "高于最好"),
        "noise": Text("noise of a difference (95 %)", "差的噪声（95 %）"),
        "state": Text("ended", "结束状态"),
    }
    rows = [_row(t, facts["bpb"], facts["wide"]) for t in facts["tried"]]
    return Words(_TITLE, columns, rows, join(_said(facts)), lambda figure, language: _draw(figure, language, facts))


def _row(t: Facts, best: float, wide: float | None) -> dict[str, Any]:
    above = None if t["bpb"] is None else t["bpb"] - best
    own = {"number": t["number"], "bpb": t["bpb"], "above": above, "noise": None if above is None else wide}
    return {**t["values"], **own, "state": STATES[t["state"]]}


def _said(facts: Facts) -> list[Text]:
    tried, best = facts["tried"], facts["best"]
    pruned, bpb = sum(t["state"] == "pruned" for t in tried), f"{facts['bpb']:.4f}"
    values = ", ".join(f"{name} {_shown(value)}" for name, value in best.items())
    en = f"Of {len(tried)} trials, {pruned} pruned, the best measured {bpb} bits per byte, with {values}."
    said = [Text(en, f"{len(tried)} 个试验（剪枝 {pruned} 个）中，测得最好为每字节 {bpb} 比特：{values}。")]
    if facts["noise"] is None:
        en = "With one seed nothing tells the best from the others: give search.seeds two values or more."
        said.append(Text(en, "只有一个种子，无法分辨最好与其他：请给 search.seeds 两个以上的值。"))
    else:
        noise, near = f"{facts['noise']:.4f}", len(facts["as_good"])
        en = f"Noise between seeds: {noise}; so {near} of them may be as good as the best."
        said.append(Text(en, f"种子间噪声：{noise}；因此有 {near} 个可能与最好的一样好。"))
    for name in facts["at_end"]:
        shown, field = _shown(best[name]), f"search.space.{name}"
        en = f"The best {name}, {shown}, lies at an end of its range, and a better one may lie beyond: widen {field}."
        said.append(Text(en, f"最好的 {name}（{shown}）位于范围的一端，更好的可能在其外：请扩大 {field}。"))
    return said


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the picture

_WORDS = {
    "bpb": Text("bits per byte", "每字节比特"),
    "best": Text("best", "最好"),
    "bad": Text("pruned or diverged", "剪枝或发散"),
}


def _draw(figure: Figure, language: Language, facts: Facts) -> None:
    """A panel for each field: loss over its values, the best marked, crosses above for what did not end well."""
    word, space, tried = plot.words(_WORDS, language), facts["space"], facts["tried"]
    panels = figure.subplots(1, len(space), squeeze=False, sharey=True)[0]
    good, bad = [t for t in tried if t["bpb"] is not None], [t for t in tried if t["bpb"] is None]
    for axes, (name, r) in zip(panels, space.items(), strict=True):
        numeric = all(isinstance(t["values"][name], int | float) for t in tried)

        def place(t: Facts, name: str = name, numeric: bool = numeric) -> Any:
            return t["values"][name] if numeric else str(t["values"][name])

        axes.plot([place(t) for t in good], [t["bpb"] for t in good], "o", color="C0", markersize=4)
        best = {"color": "C1", "markersize": 13, "markeredgecolor": "k", "label": word["best"]}
        axes.plot(place(good[0]), good[0]["bpb"], "*", **best)
        if bad:
            above = axes.get_xaxis_transform()
            axes.plot([place(t) for t in bad], [0.97] * len(bad), "x", color="C7", transform=above, label=word["bad"])
        if numeric and r["log"] and not r["choices"]:
            axes.set_xscale("log")
        axes.set_xlabel(name)
    panels[0].set_ylabel(word["bpb"])
    panels[0].legend(fontsize=8)
    plot.set_font(figure, language)

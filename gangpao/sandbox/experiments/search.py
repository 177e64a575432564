"""What a search found: the best trial, which others noise does not tell from it, and how loss goes with each field.

The best of many trials is lucky: its loss is measured with the noise of its seeds, and so is that of all others. So the one
question is whether the best is better than the second by more than noise, and the trials that may be as good are counted. A
best value at the end of its range is said, as a better one may lie beyond.

What it gives up: how fields act together; a sampler looks where it hopes for much, so a picture of one field is not a fair sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import TrialState

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.assumptions import conditions
from gangpao.sandbox.experiments.lr import excluded
from gangpao.sandbox.experiments.outcome import Language, Outcome, Text, join
from gangpao.sandbox.laws import fit, verdict
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.trials.search import SEARCH, Range, SearchConfig, fitted
from gangpao.sandbox.trials.trial import Lab, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial of a search: its number, the values that were chosen, a result for each seed; bpb: their mean where it ended well."""

    number: int
    values: dict[str, Any]
    results: list[Result]
    bpb: float | None
    state: str


def tried(lab: Lab, study: Study) -> list[Tried]:
    """Trials that ended, the best first, then those that did not end well."""
    out = []
    for trial in study.get_trials(deepcopy=False):
        values = trial.user_attrs.get("values")
        if values is None or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
            continue
        specs = [lab.spec(**values, seed=seed) for seed in lab.config.table(SearchConfig).seeds]
        results = [r for r in map(lab.result, specs) if r is not None] or [
            Result.model_validate(r) for r in [trial.user_attrs.get("result")] if r is not None
        ]
        good = trial.state == TrialState.COMPLETE and trial.values
        bpb = float(trial.values[0]) if good and trial.values else None
        state = "done" if good else next((r.state for r in results if r.state != "done"), "pruned")
        out.append(Tried(trial.number, values, results, bpb, state))
    return sorted(out, key=lambda t: (math.inf if t.bpb is None else t.bpb, t.number))


def outcome_of(lab: Lab, study: Study) -> Outcome:
    """Table, answers and picture. Raises ValueError where no trial has ended well."""
    search, found = fitted(lab.config.table(SearchConfig), lab.config), tried(lab, study)
    good = [t for t in found if t.bpb is not None]
    if not good:
        raise ValueError(f"study {study.study_name}: no trial has ended well, all diverged or were pruned")
    noise = fit.seed_noise([[r.bpb for r in t.results if r.bpb is not None] for t in good])
    wide = noise and noise.between(len(search.seeds))
    near = [t for t in good if wide is not None and t.bpb is not None and t.bpb - (good[0].bpb or 0.0) <= wide]
    results = [r for t in found for r in t.results]
    return Outcome(
        name=SEARCH,
        title={"en": "A search", "zh": "搜索"},
        columns=_columns(search),
        rows=[_row(t, good[0], wide) for t in found],
        verdicts=[_asked(good, wide)],
        verdict=join(_said(search, found, good, near, noise)),
        draw=lambda figure, language: _draw(figure, language, search, found),
        facts={
            "conditions": conditions(lab), "study": study.study_name, "sampler": search.sampler, "pruner": search.pruner,
            "best": good[0].values, "bpb": good[0].bpb, "as_good": [t.number for t in near], "noise": noise and noise.sigma,
            "space": {name: r.model_dump(mode="json") for name, r in search.space.items()},
            "tried": [{"number": t.number, "values": t.values, "bpb": t.bpb, "state": t.state} for t in found],
        },
        excluded=excluded([r for r in results if r.state == "diverged"]),
        results=results,
    )  # fmt: skip


def _asked(good: Sequence[Tried], wide: float | None) -> Verdict:
    question = "Is the best trial better than the second?", "最好的试验是否优于第二名？"
    if len(good) < 2:
        return Verdict(question, None, verdict.UNKNOWN, (0.0, math.inf))
    d = (good[1].bpb or 0.0) - (good[0].bpb or 0.0)
    low, high = verdict.about(d, wide)
    return Verdict(question, d, (low, max(high, 1e-12)), (0.0, math.inf))


def _columns(search: SearchConfig) -> dict[str, Text]:
    fields: dict[str, Text] = {name: {"en": name, "zh": name} for name in search.space}
    return {
        "number": {"en": "trial", "zh": "试验"},
        **fields,
        "bpb": {"en": "bpb", "zh": "bpb"},
        "above": {"en": "above the best", "zh": "高于最好"},
        "noise": {"en": "noise of a difference (95 %)", "zh": "差的噪声（95 %）"},
        "state": {"en": "ended", "zh": "结束状态"},
    }


_STATES: dict[str, Text] = {
    "done": {"en": "done", "zh": "完成"},
    "pruned": {"en": "pruned", "zh": "已剪枝"},
    "diverged": {"en": "diverged", "zh": "发散"},
}


def _row(t: Tried, best: Tried, wide: float | None) -> dict[str, Any]:
    above = None if t.bpb is None or best.bpb is None else t.bpb - best.bpb
    own = {"number": t.number, "bpb": t.bpb, "above": above, "noise": None if above is None else wide}
    return {**t.values, **own, "state": _STATES[t.state]}


def _said(
    search: SearchConfig, found: Sequence[Tried], good: Sequence[Tried], near: Sequence[Tried], noise: fit.Noise | None
) -> list[tuple[str, str]]:
    best, pruned = good[0], sum(t.state == "pruned" for t in found)
    values = ", ".join(f"{name} {_shown(value)}" for name, value in best.values.items())
    en = f"Of {len(found)} trials, {pruned} pruned, the best measured {best.bpb:.4f} bits per byte, with {values}."
    said = [(en, f"{len(found)} 个试验（剪枝 {pruned} 个）中，测得最好为每字节 {best.bpb:.4f} 比特：{values}。")]
    if noise is None:
        en = "With one seed nothing tells the best from the others: give search.seeds two values or more."
        said.append((en, "只有一个种子，无法分辨最好与其他：请给 search.seeds 两个以上的值。"))
    else:
        en = f"Noise between seeds: {noise.sigma:.4f}; so {len(near)} of them may be as good as the best."
        said.append((en, f"种子间噪声：{noise.sigma:.4f}；因此有 {len(near)} 个可能与最好的一样好。"))
    for name, value in best.values.items():
        if _at_end(search.space[name], value):
            shown, field = _shown(value), f"search.space.{name}"
            en = f"The best {name}, {shown}, lies at an end of its range, and a better one may lie beyond: widen {field}."
            said.append((en, f"最好的 {name}（{shown}）位于范围的一端，更好的可能在其外：请扩大 {field}。"))
    return said


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _at_end(r: Range, value: Any) -> bool:
    """Within a twentieth of an end of the range, or the first or last of several numbers."""
    if r.choices:
        numbers = [v for v in r.choices if isinstance(v, int | float) and not isinstance(v, bool)]
        return len(numbers) > 1 and len(numbers) == len(r.choices) and value in (min(numbers), max(numbers))
    assert r.low is not None
    assert r.high is not None
    low, high, at = (math.log(v) for v in (r.low, r.high, value)) if r.log else (r.low, r.high, value)
    return not 0.05 * (high - low) < at - low < 0.95 * (high - low)


# --- the picture

_WORDS: dict[str, Text] = {
    "bpb": {"en": "bits per byte", "zh": "每字节比特"},
    "best": {"en": "best", "zh": "最好"},
    "bad": {"en": "pruned or diverged", "zh": "剪枝或发散"},
}


def _draw(figure: Figure, language: Language, search: SearchConfig, found: Sequence[Tried]) -> None:
    """A panel for each field: loss over its values, the best marked, crosses above for what did not end well."""
    word = plot.words(_WORDS, language)
    panels = figure.subplots(1, len(search.space), squeeze=False, sharey=True)[0]
    good, bad = [t for t in found if t.bpb is not None], [t for t in found if t.bpb is None]
    for axes, (name, r) in zip(panels, search.space.items(), strict=True):
        numeric = all(isinstance(t.values[name], int | float) for t in found)

        def place(t: Tried, name: str = name, numeric: bool = numeric) -> Any:
            return t.values[name] if numeric else str(t.values[name])

        axes.plot([place(t) for t in good], [t.bpb for t in good], "o", color="C0", markersize=4)
        axes.plot(place(good[0]), good[0].bpb, "*", color="C1", markersize=13, markeredgecolor="k", label=word["best"])
        if bad:
            above = axes.get_xaxis_transform()
            axes.plot([place(t) for t in bad], [0.97] * len(bad), "x", color="C7", transform=above, label=word["bad"])
        if numeric and r.log and not r.choices:
            axes.set_xscale("log")
        axes.set_xlabel(name)
    panels[0].set_ylabel(word["bpb"])
    panels[0].legend(fontsize=8)
    plot.set_font(figure, language)

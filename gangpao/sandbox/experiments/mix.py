"""What goes into the decay stage: the same stable run goes on with one mixture and with another.

MiniCPM's recipe (arXiv:2404.06395, section 5) puts supervised and other choice data into the decay, and not only into tuning
afterwards. Here a stable run for each seed ends where the decay would begin, and every mixture is a decay that branches off there.
Mixtures are compared within a seed: what one stable run has better luck than another falls out of the difference. Judged is the
held-out text of each source, by language, and all of it.

What it gives up: a source of conversations has no bits per byte (only the answers are predicted, while bytes count it all), so
whether the model answers better is seen only where nats a token are known, and the total holds plain text alone. Text
that is thinned out to make room is a difference too: the data's own two mixtures differ in more than supervised data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from gangpao.sandbox.experiments import plot
from gangpao.sandbox.experiments.chinese import chinese
from gangpao.sandbox.experiments.lr import excluded, finite
from gangpao.sandbox.experiments.outcome import Language, Outcome, Submit, Text, join
from gangpao.sandbox.laws import fit
from gangpao.sandbox.laws.scaling_law import student
from gangpao.sandbox.laws.verdict import BELOW_ZERO, Answer, Verdict, about, decide
from gangpao.sandbox.trials.config import ExperimentTable
from gangpao.sandbox.trials.field_types import Seed, Some
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mixtures = dict[str, dict[str, float]]

_NAMES: dict[str, Text] = {
    "stable": {"en": "without supervised data", "zh": "不含监督数据"},
    "decay": {"en": "with supervised data", "zh": "含监督数据"},
}
_PREFIXES = ("zh", "en", "code")
_GROUPS: dict[str, Text] = {
    "total": {"en": "total", "zh": "总计"},
    "zh": {"en": "Chinese (zh-)", "zh": "中文（zh-）"},
    "en": {"en": "English (en-)", "zh": "英文（en-）"},
    "code": {"en": "code (code-)", "zh": "代码（code-）"},
    "other": {"en": "others", "zh": "其他"},
    "answers": {"en": "answers, nats a token", "zh": "回答（每 token 的 nat）"},
}


class MixConfig(ExperimentTable):
    """What goes into the decay stage."""

    mixtures: dict[str, dict[str, float]] = Field(
        default={}, description="Name -> source -> weight; empty: the data's stable mixture against its decay mixture."
    )
    seeds: Some[Seed] = (0, 1)


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of a less mean of b. error: half the 95 % interval, infinite where nothing tells it."""

    value: float
    error: float

    @property
    def answer(self) -> Answer:
        """Is it lower?"""
        return decide(*about(self.value, self.error), BELOW_ZERO)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A mixture on a group of sources. change: against the first mixture; None for that one."""

    mixture: str
    group: str
    sources: int
    loss: float
    noise: float | None
    change: Difference | None


def run(lab: Lab, submit: Submit) -> Outcome:
    """See the module. Raises ValueError for mixtures that cannot be made, or that are the same."""
    mixtures = _mixtures(lab)
    stables = [_stable(lab, seed) for seed in dict.fromkeys(lab.config.table(MixConfig).seeds)]
    branches = {name: [_branch(lab, parent, weights) for parent in stables] for name, weights in mixtures.items()}
    found = submit([*stables, *(spec for group in branches.values() for spec in group)])
    rest = iter(found[len(stables) :])
    results = {name: [next(rest) for _ in group] for name, group in branches.items()}
    kept, seeds = _complete(results)
    table = {name: [_groups(results[name][i]) for i in seeds] for name in kept}
    cells = _cells(table)
    left = [stables[i].seed for i in range(len(stables)) if i not in seeds]
    return _outcome(lab, mixtures, cells, kept, seeds, left, found)


def _mixtures(lab: Lab) -> Mixtures:
    """Those that are configured, else the data's own two. The first is what the others are compared to."""
    plain = dict(lab.stable) or {name: float(shards.num_tokens) for name, shards in lab.built.train.items()}
    chosen = dict(lab.config.table(MixConfig).mixtures)
    if not chosen:
        if not lab.decay or _shares(plain) == _shares(lab.decay):
            raise ValueError(
                "mix: the data has no decay mixture of its own and there is nothing to compare: give mix.mixtures"
            )
        return {"stable": plain, "decay": dict(lab.decay)}
    if len(chosen) < 2:
        raise ValueError(
            "mix.mixtures: one mixture has nothing to be compared to; give two or more, the usual one first"
        )
    for name, weights in chosen.items():
        if unknown := [source for source in weights if source not in lab.built.train]:
            known = ", ".join(lab.built.train)
            raise ValueError(f"mix.mixtures.{name}: no source {unknown[0]!r:.60} in the data; there are {known}")
        if not all(0 <= w < math.inf for w in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(
                f"mix.mixtures.{name}: weights are numbers from zero up, and one is above it; they are {weights}"
            )
    names = list(chosen)
    for i, name in enumerate(names):
        if same := [other for other in names[:i] if _shares(chosen[other]) == _shares(chosen[name])]:
            raise ValueError(f"mix.mixtures: {same[0]} and {name} are the same shares")
    return chosen


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    whole = sum(weights.values())
    return {name: round(w / whole, 9) for name, w in weights.items() if w > 0}


def _steps(lab: Lab) -> tuple[int, int]:
    """Where the decay begins, and how long it is."""
    common, steps = lab.config.common, lab.spec().steps
    decay = round(common.decay * steps)
    if not 1 <= decay < steps:
        raise ValueError(
            f"common.decay: {common.decay:g} of {steps} steps leaves no decay or no stable run; take 0.1 and more tokens"
        )
    if round(common.warmup * steps) >= steps - decay:
        raise ValueError(
            f"common.warmup: its {round(common.warmup * steps)} steps leave no stable run before the decay"
        )
    return steps - decay, decay


def _kind(lab: Lab) -> str:
    kind = lab.config.common.schedule
    return kind if kind.startswith("wsd") else "wsd"


def _stable(lab: Lab, seed: int) -> Spec:
    start, decay = _steps(lab)
    warmup = round(lab.config.common.warmup * (start + decay))
    return lab.stable_run([start], warmup, schedule=_kind(lab), seed=seed)


def _branch(lab: Lab, parent: Spec, weights: dict[str, float]) -> Spec:
    start, decay = _steps(lab)
    return lab.branch(parent, start, decay, mixture=weights)


def _complete(results: Mapping[str, Sequence[Result]]) -> tuple[list[str], list[int]]:
    """Mixtures of which any trial ended well, and places of the seeds for which all of those did: a difference is within a seed.
    No seeds without the first mixture, to which all differences are."""
    kept = [name for name, group in results.items() if any(r.bpb is not None for r in group)]
    first = next(iter(results))
    if first not in kept:
        return kept, []
    return kept, [i for i in range(len(results[first])) if all(results[name][i].bpb is not None for name in kept)]


def _groups(r: Result) -> dict[str, tuple[float, int]]:
    """Group -> mean over its sources, and their number. Every source weighs the same: the same tokens of each are held out."""
    texts = {k.removesuffix("_bpb"): v for k, v in r.heldout.items() if k.endswith("_bpb") and k != "heldout_bpb"}
    found: dict[str, list[float]] = {}
    for source, bpb in texts.items():
        prefix = source.partition("-")[0]
        found.setdefault(prefix if "-" in source and prefix in _PREFIXES else "other", []).append(bpb)
    nats = {k.removesuffix("_nats"): v for k, v in r.heldout.items() if k.endswith("_nats")}
    answers = [v for source, v in nats.items() if source not in texts]
    if answers:
        found["answers"] = answers
    assert r.bpb is not None
    means = {name: (sum(found[name]) / len(found[name]), len(found[name])) for name in _GROUPS if name in found}
    return {"total": (r.bpb, len(texts)), **means}


def _cells(table: Mapping[str, Sequence[Mapping[str, tuple[float, int]]]]) -> list[_Cell]:
    """Every mixture on every group."""
    rows = [row for group in table.values() for row in group]
    names = list(table)
    out = []
    for group in [name for name in _GROUPS if rows and all(name in row for row in rows)]:
        losses = np.array([[row[group][0] for row in table[name]] for name in names])
        changes = _paired(losses)
        scatter = fit.seed_noise([list(row) for row in losses])
        noise = scatter and scatter.sigma
        for i, name in enumerate(names):
            number = table[name][0][group][1]
            out.append(_Cell(name, group, number, float(losses[i].mean()), noise, changes[i - 1] if i else None))
    return out


def _paired(losses: np.ndarray[Any, np.dtype[np.float64]]) -> list[Difference]:
    """Each mixture (row) less the first, over the same seeds (columns). The noise is what is left when every seed's own level
    and every mixture's mean are taken away, and has as few degrees of freedom as that leaves."""
    mixtures, seeds = losses.shape
    rest = losses - losses.mean(1, keepdims=True) - losses.mean(0, keepdims=True) + losses.mean()
    dof = (mixtures - 1) * (seeds - 1)
    error = student(dof) * math.sqrt(float((rest**2).sum()) / dof * 2 / seeds) if dof else math.inf
    out = []
    for row in losses[1:]:
        value = float((row - losses[0]).mean())
        out.append(Difference(value, max(error, 1e-12 * float(np.abs(losses).max()))))
    return out


# --- the outcome


def _name(lab: Lab, mixture: str) -> Text:
    if not lab.config.table(MixConfig).mixtures:
        return _NAMES[mixture]
    return {"en": mixture, "zh": mixture}


def _outcome(
    lab: Lab, mixtures: Mixtures, cells: Sequence[_Cell], kept: Sequence[str], seeds: Sequence[int], left: Sequence[int],
    results: list[Result],
) -> Outcome:  # fmt: skip
    rows = [
        {
            "mixture": _name(lab, c.mixture), "group": _GROUPS[c.group], "sources": c.sources, "bpb": c.loss,
            "difference": c.change and c.change.value, "error": None if c.change is None else finite(c.change.error),
            "verdict": _CALLS[c.change.answer] if c.change else None, "noise": c.noise,
        }
        for c in cells
    ]  # fmt: skip
    return Outcome(
        name="mix",
        title={"en": "What goes into the decay", "zh": "退火阶段用什么数据"},
        columns=_COLUMNS,
        rows=rows,
        verdicts=[_asked(lab, mixtures, c) for c in cells if c.change is not None],
        verdict=_verdict(lab, mixtures, cells, kept, seeds, left),
        draw=lambda figure, language: _draw(figure, language, lab, cells),
        facts={
            "mixtures": {name: _shares(weights) for name, weights in mixtures.items()},
            "supervised": {name: _supervised(lab, weights) for name, weights in mixtures.items()},
            "seeds": len(seeds),
            "begins": _steps(lab)[0] * lab.config.common.batch_tokens,
            "noise": next((c.noise for c in cells if c.group == "total"), None),
            "cells": [
                {"mixture": c.mixture, "group": c.group, "sources": c.sources, "loss": c.loss, "noise": c.noise, **_change(c)}
                for c in cells
            ],
        },
        excluded=_excluded(lab, mixtures, results),
        results=results,
    )  # fmt: skip


def _asked(lab: Lab, mixtures: Mixtures, c: _Cell) -> Verdict:
    """Is a mixture better than the first on a group of held-out text?"""
    assert c.change is not None
    own, base, group = _name(lab, c.mixture), _name(lab, next(iter(mixtures))), _GROUPS[c.group]
    en = f"{group['en'].capitalize()}: does the decay {own['en']} end lower than the one {base['en']}?"
    zh = f"{group['zh']}：退火配比“{own['zh']}”是否低于“{base['zh']}”？"
    return Verdict((en, zh), c.change.value, about(c.change.value, c.change.error), BELOW_ZERO)


def _change(c: _Cell) -> dict[str, Any]:
    """Against the first mixture; empty for that one."""
    if c.change is None:
        return {}
    return {"difference": c.change.value, "error": finite(c.change.error), "verdict": c.change.answer}


def _excluded(lab: Lab, mixtures: Mixtures, results: Sequence[Result]) -> list[tuple[str | Text, str | Text]]:
    """Names of branches say their mixture."""
    names = {tuple(sorted(weights.items())): _name(lab, name) for name, weights in mixtures.items()}
    out: list[tuple[str | Text, str | Text]] = []
    for r in results:
        for name, why in excluded([r]):
            mixture = names.get(tuple(sorted(r.spec.mixture.items()))) if r.spec.mixture else None
            both: Text = {"en": name, "zh": chinese(name)}
            if mixture:
                both = {"en": f"{mixture['en']}: {both['en']}", "zh": f"{mixture['zh']}：{both['zh']}"}
            out.append((both, why))
    return out


def _supervised(lab: Lab, weights: Mapping[str, float]) -> float:
    """Share of a mixture that is conversations."""
    return sum(share for name, share in _shares(weights).items() if lab.built.train[name].supervised)


_COLUMNS: dict[str, Text] = {
    "mixture": {"en": "mixture of the decay", "zh": "退火配比"},
    "group": {"en": "held-out text", "zh": "留出文本"},
    "sources": {"en": "sources", "zh": "来源数"},
    "bpb": {"en": "bpb", "zh": "bpb"},
    "difference": {"en": "to the first", "zh": "与第一个之差"},
    "error": {"en": "± (95 %)", "zh": "±（95 %）"},
    "verdict": {"en": "verdict", "zh": "结论"},
    "noise": {"en": "noise between seeds", "zh": "种子间噪声"},
}
_LISTS: tuple[tuple[Language, str], ...] = (("en", ", "), ("zh", "，"))
_CALLS: dict[Answer, Text] = {
    "yes": {"en": "lower", "zh": "更低"},
    "no": {"en": "higher", "zh": "更高"},
    "cannot tell": {"en": "cannot tell", "zh": "无法判断"},
}


def _verdict(
    lab: Lab, mixtures: Mixtures, cells: Sequence[_Cell], kept: Sequence[str], seeds: Sequence[int], left: Sequence[int],
) -> Text:  # fmt: skip
    first = next(iter(mixtures))
    base = _name(lab, first)
    said = []
    shares = {name: f"{_supervised(lab, weights):.0%}" for name, weights in mixtures.items()}
    en, zh = (sep.join(f"{_name(lab, n)[la]} {s}" for n, s in shares.items()) for la, sep in _LISTS)
    said.append((f"Share of supervised data in the decay: {en}.", f"退火中监督数据的比例：{zh}。"))
    if first not in kept or not cells or len(kept) < 2:
        en, zh = "Too few trials ended well, so there is nothing to compare.", "正常结束的试验太少，无法比较。"
        return join([*said, (en, zh)])
    for name in kept[1:]:
        parts = [_compared(c) for c in cells if c.mixture == name]
        own = _name(lab, name)
        en = f"{own['en']}, against {base['en']}, in bits per byte: {'; '.join(en for en, _ in parts)}."
        said.append((en, f"{own['zh']}，与“{base['zh']}”相比（每字节比特）：{'；'.join(zh for _, zh in parts)}。"))
    said += _caveats(cells, seeds, left)
    return join(said)


def _compared(c: _Cell) -> tuple[str, str]:
    """A group's difference with its noise, and what to make of it."""
    assert c.change is not None
    group, value = _GROUPS[c.group], f"{c.change.value:+.4f}"
    if not math.isfinite(c.change.error):
        return f"{group['en']} {value} (cannot tell)", f"{group['zh']} {value}（无法判断）"
    value, word = f"{value} ± {c.change.error:.4f}", _CALLS[c.change.answer]
    return f"{group['en']} {value} ({word['en']})", f"{group['zh']} {value}（{word['zh']}）"


def _caveats(cells: Sequence[_Cell], seeds: Sequence[int], left: Sequence[int]) -> list[tuple[str, str]]:
    noise, said = cells[0].noise, []
    if noise is None:
        en = "With one seed nothing tells noise from a result: give mix.seeds two values, better three."
        said.append((en, "只有一个种子，无法分辨噪声与结果：请给 mix.seeds 两个以上的值，最好三个。"))
    else:
        en = f"Seeds scatter by {noise:.4f}; a difference is taken within each of {len(seeds)} seeds, from the same stable run."
        said.append((en, f"种子间离散 {noise:.4f}；差值在 {len(seeds)} 个种子内各自从同一条稳定段计算。"))
        if len(seeds) == 2:
            en = "Of two seeds the interval is wide: a third one narrows it most."
            said.append((en, "两个种子的区间很宽：加第三个收窄最多。"))
    if left:
        which = ", ".join(map(str, left))
        en = f"A seed for which a mixture did not end well is left out of all of them: {which}."
        said.append((en, f"某个配比没有正常结束的种子，在所有配比中都不计入：{which}。"))
    if any(c.group == "answers" for c in cells):
        en = "Supervised sources have no bits per byte; their answers are judged in nats a token and are not in the total."
        said.append((en, "监督数据没有每字节比特；其回答按每 token 的 nat 评判，不计入总计。"))
    else:
        en = (
            "Supervised sources have no bits per byte, only nats a token, and the results keep none: whether the model answers "
            "better is not said here, the total is plain text."
        )
        zh = "监督数据没有每字节比特，只有每 token 的 nat，而结果中没有保存：这里不说明回答是否更好，总计只含普通文本。"
        said.append((en, zh))
    return said


# --- the picture

_WORDS: dict[str, Text] = {
    "change": {
        "en": "bits per byte to the first mixture (left is better)",
        "zh": "与第一个配比的每字节比特之差（左侧更好）",
    },
    "noise": {"en": "bars: 95 % within seeds", "zh": "误差线：种子内 95 %"},
}


def _draw(figure: Figure, language: Language, lab: Lab, cells: Sequence[_Cell]) -> None:
    """A bar for each group of sources and mixture: how much its loss changes."""
    word, drawn = plot.words(_WORDS, language), plot.words(_GROUPS, language)
    axes = figure.subplots()
    groups = list(dict.fromkeys(c.group for c in cells))
    names = list(dict.fromkeys(c.mixture for c in cells if c.change is not None))
    height = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        here = {c.group: c.change for c in cells if c.mixture == name and c.change is not None}
        at = [groups.index(g) + (i - (len(names) - 1) / 2) * height for g in here]
        errors = [c.error if math.isfinite(c.error) else 0.0 for c in here.values()]
        label = plot.words({"name": _name(lab, name)}, language)["name"]
        axes.barh(
            at, [c.value for c in here.values()], 0.9 * height, xerr=errors, capsize=3, color=f"C{i}", label=label
        )
    axes.axvline(0.0, color="k", linewidth=0.8)
    axes.set_yticks(range(len(groups)), [drawn[g] for g in groups])
    axes.invert_yaxis()
    axes.set(xlabel=f"{word['change']}; {word['noise']}")
    if names:
        axes.legend(fontsize=8)
    plot.set_font(figure, language)

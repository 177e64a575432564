"""The page of an outcome: title, answers, sentences, table, plot and what was left out, from the facts alone.

So a page can be made again from outcome.json, and a wrong sentence is mended without judging anything again.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gangpao.atomic import write_json
from gangpao.sandbox.bilingual import Language, Text
from gangpao.sandbox.experiments import EXPERIMENTS
from gangpao.sandbox.experiments.outcome import LeftOut, Outcome
from gangpao.sandbox.laws.verdict import Answer
from gangpao.sandbox.trials import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts = Mapping[str, Any]

ANSWERS: dict[Answer, Text] = {
    "yes": Text("yes", "是"), "no": Text("no", "否"), "cannot tell": Text("cannot tell", "无法判断"),
}  # fmt: skip


class Question(NamedTuple):
    """A question with its answer, and a line that has both and the numbers."""

    question: Text
    answer: Text
    line: Text


@dataclass(frozen=True, slots=True)
class Words:
    """What an experiment's module of words makes of its facts.

    columns: of the table, key -> heading; rows: key -> value (numbers stay numbers, words are a Text). said: a paragraph, or lines
    that begin with "- ", with its uncertainty. draw: into an empty figure.
    """

    title: Text
    columns: Mapping[str, Text]
    rows: Sequence[Mapping[str, Any]]
    said: Text
    draw: Callable[[Figure, Language], None]


@dataclass(frozen=True, slots=True)
class Page:
    """The words of an outcome, with its questions and what was left out: name and reason."""

    words: Words
    questions: Sequence[Question]
    left_out: Sequence[tuple[Text, Text]]


def page_of(record: Mapping[str, Any]) -> Page:
    """Of an outcome as `Outcome.record` or its JSON file gives it.

    The module of words has `words(facts) -> Words`, `asked(verdict) -> Text` (the question of a verdict by its code), and may have
    `named(left_out) -> Text` where something that was left out has another name than here.
    """
    module = importlib.import_module(EXPERIMENTS[record["name"]].text)
    questions = [answered(module.asked(v), v) for v in record["verdicts"]]
    left = [LeftOut.model_validate(one) for one in record["left_out"]]
    name = getattr(module, "named", named)
    return Page(module.words(record["facts"]), questions, [(name(one), _why(one)) for one in left])


# --- a verdict


def answered(question: Text, v: Facts) -> Question:
    """A verdict as JSON with its question."""
    answer, (measured, limits) = ANSWERS[v["answer"]], (_measured(v), _limits(v))
    line = Text(
        f"{question.en} {answer.en.capitalize()} ({measured.en}; yes {limits.en}).",
        f"{question.zh}{answer.zh}（{measured.zh}；“是”的范围 {limits.zh}）。",
    )
    return Question(question, answer, line)


def _measured(v: Facts) -> Text:
    low, high = between(v)
    interval, value = (
        f"{span(low, high, '.3g')}{v['unit']}",
        f"{v['value']:.3g}{v['unit']}" if v["value"] is not None else "",
    )
    known, before = not interval.startswith("?"), f"{value}, " if value else ""
    if known:
        return Text(f"{before}95 % interval {interval}", f"{before.replace(', ', '，')}95 % 区间 {interval}")
    return Text(f"{value}, interval not known", f"{value}，区间未知") if value else Text("not measured", "没有测得")


def between(v: Facts) -> tuple[float, float]:
    """The interval of a verdict; infinite where it is open."""
    low, high = v["low"], v["high"]
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _limits(v: Facts) -> Text:
    (least, most), unit = v["allowed"], v["unit"]
    if least is None:
        return Text(f"up to {most:.3g}{unit}", f"不超过 {most:.3g}{unit}")
    if most is None:
        return Text(f"from {least:.3g}{unit}", f"不低于 {least:.3g}{unit}")
    return Text(f"within {least:.3g} .. {most:.3g}{unit}", f"{least:.3g} .. {most:.3g}{unit}")


def span(low: float, high: float, form: str = ".3g") -> str:
    """An interval as text; of an open one the end that is known."""
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:{form}} .. {high:{form}}"
    if math.isfinite(high):
        return f"< {high:{form}}"
    return f"> {low:{form}}" if math.isfinite(low) else "?"


# --- what was left out

_KINDS = {
    "trial": Text(
        "{size}, {rule}, {optimizer}, lr {lr:g}, batch {batch:,}, {tokens:,} tokens, seed {seed}",
        "{size}，{rule}，{optimizer}，学习率 {lr:g}，批大小 {batch:,}，{tokens:,} token，种子 {seed}",
    ),
    "arm": Text("{schedule} {tokens:,} {number:g} seed {seed}", "{schedule} {tokens:,} {number:g} 种子 {seed}"),
    "run": Text("{size} {tokens:,} {schedule} seed {seed}", "{size} {tokens:,} {schedule} 种子 {seed}"),
    "point": Text("N={N:g}, D={D:g}, loss={loss:g} in law {law}", "N={N:g}，D={D:g}，损失={loss:g}（{law} 规律）"),
}
_SCHEDULES = {"cosine": Text("cosine", "余弦")}
STATES = {"diverged": Text("diverged", "发散"), "pruned": Text("pruned", "已剪枝"), "done": Text("done", "完成")}


def named(one: LeftOut) -> Text:
    """What was left out."""
    schedule = one.values.get("schedule")
    return _KINDS[one.kind].fill({**one.values, "schedule": _SCHEDULES.get(str(schedule), schedule)})


def _why(one: LeftOut) -> Text:
    state = STATES[one.state] if one.state in ("diverged", "pruned") else None
    why = one.reason.text() if one.reason else None
    if state and why:
        return Text(f"{state.en}: {why.en}", f"{state.zh}：{why.zh}")
    return state or why or STATES["done"]


def left_out(pairs: Sequence[tuple[Text, Text]], language: Language) -> str:
    """The line of what was left out, and why."""
    both = [(name.of(language), why.of(language)) for name, why in pairs]
    if language == "zh":
        return "未计入：" + "；".join(f"{name}（{why}）" for name, why in both)
    return "Left out: " + "; ".join(f"{name} ({why})" for name, why in both)


# --- as files


def write(outcome: Outcome, folder: Path, made: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """outcome.json, and for each language report.<language>.md and plot.<language>.png; what the first holds. made: of
    `provenance`."""
    folder.mkdir(parents=True, exist_ok=True)
    record = outcome.record(made)
    render(record, folder, "en")
    render(record, folder, "zh")
    write_json(folder / "outcome.json", record)
    return record


def render(record: Mapping[str, Any], folder: Path, language: Language) -> None:
    """report.<language>.md and plot.<language>.png, from the facts."""
    (folder / f"plot.{language}.png").write_bytes(picture(record, language))
    text = markdown(record, language) + "\n" + "\n".join(origin(record, language)) + "\n"
    (folder / f"report.{language}.md").write_text(text, encoding="utf-8")


def origin(record: Mapping[str, Any], language: Language) -> list[str]:
    """Where an outcome comes from and what it cost, a sentence each."""
    made, written = record.get("made"), record["written"]
    begin = provenance.said(made) if made else Text(f"Written {written}.", f"生成于 {written}.")
    return [begin.of(language), provenance.spent(record).of(language)]


def picture(record: Mapping[str, Any], language: Language) -> bytes:
    """The plot as PNG. Raises ValueError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'gangpao[lab]', or pip install matplotlib") from error
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    page_of(record).words.draw(figure, language)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def markdown(record: Mapping[str, Any], language: Language) -> str:
    """Title, answers, verdict, table, and what was left out."""
    page = page_of(record)
    words, questions = page.words, page.questions
    keys = list(words.columns)
    lines = [f"## {words.title.of(language)}", "", *(f"- {q.line.of(language)}" for q in questions)]
    lines += ["", words.said.of(language), ""] if questions else [words.said.of(language), ""]
    lines += ["| " + " | ".join(words.columns[k].of(language) for k in keys) + " |", "|" + "-|" * len(keys)]
    lines += ["| " + " | ".join(show(row.get(k), language) for k in keys) + " |" for row in words.rows]
    if page.left_out:
        lines += ["", left_out(page.left_out, language)]
    return "\n".join(lines) + "\n"


def show(value: Any, language: Language = "en") -> str:
    """A cell: four significant digits for numbers with a fraction, thousands apart for whole ones, words in the language."""
    if value is None:
        return ""
    if isinstance(value, Text):
        return show(value.of(language))
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")

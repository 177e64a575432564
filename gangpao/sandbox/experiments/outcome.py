"""What every experiment is made of: trials that it asks for, and an outcome with one table, one plot and one verdict.

An experiment is a function `run(lab, submit) -> Outcome`. `submit(specs)` returns their results in the same order, however
long that takes; results that are known already come at once. It may be called several times, when later trials follow
from earlier results. The outcome is written as JSON, Markdown and PNG, in English or Chinese.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gangpao.atomic import write_json
from gangpao.sandbox.experiments.chinese import chinese
from gangpao.sandbox.laws.verdict import Verdict
from gangpao.sandbox.trials import provenance
from gangpao.sandbox.trials.trial import Lab, Result, Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Language = Literal["en", "zh"]
Text = dict[Language, str]  # the same sentence in both
Submit = Callable[[Sequence[Spec]], list[Result]]
Experiment = Callable[[Lab, Submit], "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found.

    columns: of the table, key -> heading; rows: key -> value (numbers stay numbers, words are a Text). verdict: a paragraph, or
    lines that begin with "- ", with its uncertainty. verdicts: the questions that it answers, each by its interval. facts:
    everything a program may want (fits, intervals), JSON. excluded: trials that were left out, and why; a plain string is English
    that gangpao.sandbox.experiments.chinese knows.
    """

    name: str
    title: Text
    columns: dict[str, Text]
    rows: list[dict[str, Any]]
    verdict: Text
    draw: Callable[[Figure, Language], None]
    facts: dict[str, Any] = field(default_factory=dict)
    excluded: Sequence[tuple[str | Text, str | Text]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    verdicts: Sequence[Verdict] = ()


def join(said: Sequence[tuple[str, str]]) -> Text:
    """Sentences to a paragraph."""
    return {"en": " ".join(en for en, _ in said), "zh": "".join(zh for _, zh in said)}


def listed(said: Sequence[tuple[str, str]]) -> Text:
    """Sentences to a list, a line each: where a paragraph would be too long to read."""
    return {"en": "\n".join(f"- {en}" for en, _ in said), "zh": "\n".join(f"- {zh}" for _, zh in said)}


def write(outcome: Outcome, folder: Path, made: dict[str, Any] | None = None) -> None:
    """outcome.json, and for each language report.<language>.md and plot.<language>.png. made: of `provenance`."""
    folder.mkdir(parents=True, exist_ok=True)
    found = record(outcome) | {"made": made}
    for language in ("en", "zh"):
        (folder / f"plot.{language}.png").write_bytes(picture(outcome, language))
        text = markdown(outcome, language) + "\n" + "\n".join(origin(found, language)) + "\n"
        (folder / f"report.{language}.md").write_text(text, encoding="utf-8")
    write_json(folder / "outcome.json", found)


def record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data, with what its trials cost."""
    unique = {r.key: r for r in outcome.results}.values()
    return {
        "name": outcome.name,
        "written": provenance.now(),
        "title": outcome.title,
        "columns": outcome.columns,
        "rows": outcome.rows,
        "verdicts": [v.json() | dict(zip(("en", "zh"), v.line(), strict=True)) for v in outcome.verdicts],
        "verdict": outcome.verdict,
        "facts": outcome.facts,
        "excluded": outcome.excluded,
        "trials": len(unique),
        "flops": sum(r.flops for r in unique),
        "seconds": sum(r.seconds for r in unique),
        "busy": sum(r.busy for r in unique),
        "yuan": sum(r.yuan for r in unique),
    }


def origin(found: dict[str, Any], language: Language) -> list[str]:
    """Where an outcome comes from and what it cost, a sentence each."""
    made, i = found.get("made"), 0 if language == "en" else 1
    lines = [provenance.said(made)[i]] if made else [f"{('Written', '生成于')[i]} {found['written']}."]
    return [*lines, provenance.spent(found)[i]]


def picture(outcome: Outcome, language: Language) -> bytes:
    """The plot as PNG. Raises ValueError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'gangpao[lab]', or pip install matplotlib") from error
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    outcome.draw(figure, language)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def markdown(outcome: Outcome, language: Language) -> str:
    """Title, answers, verdict, table, and what was left out."""
    keys, i = list(outcome.columns), 0 if language == "en" else 1
    lines = [f"## {outcome.title[language]}", "", *(f"- {v.line()[i]}" for v in outcome.verdicts)]
    lines += ["", outcome.verdict[language], ""] if outcome.verdicts else [outcome.verdict[language], ""]
    lines += ["| " + " | ".join(outcome.columns[k][language] for k in keys) + " |", "|" + "-|" * len(keys)]
    lines += ["| " + " | ".join(show(row.get(k), language) for k in keys) + " |" for row in outcome.rows]
    if outcome.excluded:
        lines += ["", left_out(outcome.excluded, language)]
    return "\n".join(lines) + "\n"


def left_out(excluded: Sequence[Sequence[str | Text]], language: Language) -> str:
    """The line of what was left out, and why."""
    pairs = [(_said(name, language), _said(why, language)) for name, why in excluded]
    if language == "zh":
        return "未计入：" + "；".join(f"{name}（{why}）" for name, why in pairs)
    return "Left out: " + "; ".join(f"{name} ({why})" for name, why in pairs)


def _said(words: str | Text, language: Language) -> str:
    if isinstance(words, dict):
        return words[language]
    return chinese(words) if language == "zh" else words


def show(value: Any, language: Language = "en") -> str:
    """A cell: four significant digits for numbers with a fraction, thousands apart for whole ones, words in the language."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return show(value[language])
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")

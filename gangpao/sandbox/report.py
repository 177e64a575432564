"""One page of all experiments in a sandbox: where each comes from, its answers, plot and table, the plans that were made and what
came of them, and what all of it cost.

A single HTML file that needs no network, and the same as Markdown. It is made of the facts that the experiments and plans wrote
(outcome.json, plans/), so it can be made again at any time, in English or Chinese.

What it gives up: zooming into plots; the numbers are in outcome.json.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gangpao.page import Language, frame, html_table, markdown_table
from gangpao.sandbox.experiments import EXPERIMENTS
from gangpao.sandbox.experiments.outcome import read_outcome
from gangpao.sandbox.experiments.text.page import Page, left_out, origin, page_of, render, show
from gangpao.sandbox.plan import planned
from gangpao.sandbox.trials import provenance
from gangpao.units import show_seconds, utc_now

_WORDS = {
    "en": {
        "title": "Model Sandbox", "cost": "What it cost", "name": "experiment", "trials": "trials", "time": "trial time",
        "overhead": "start and evaluation", "yuan": "yuan", "all": "all", "made": "This page was made {when}.",
        "answers": "Answers", "question": "question", "answer": "answer", "came": "Predicted against came",
        "untrained": "No run of this plan was compared yet: `gangpao sandbox compare RUN --out {out}`.",
    },
    "zh": {
        "title": "模型沙盒", "cost": "花费", "name": "实验", "trials": "试验数", "time": "试验时间",
        "overhead": "启动与评估占比", "yuan": "元", "all": "合计", "made": "本页生成于 {when}。",
        "answers": "结论", "question": "问题", "answer": "回答", "came": "预测与实际",
        "untrained": "尚未比较这个方案的训练：`gangpao sandbox compare RUN --out {out}`。",
    },
}  # fmt: skip

_Found = Sequence[tuple[dict[str, Any], Page]]  # outcomes with their words


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """What experiments wrote, in the order in which they are best read. Raises ValueError where there is nothing."""
    found = [
        read_outcome(folder / name / "outcome.json")
        for name in EXPERIMENTS
        if (folder / name / "outcome.json").exists()
    ]
    if not found:
        raise ValueError(f"{folder}: no experiment has finished here yet; run one, for example `gangpao sandbox lr`")
    return found


def write(folder: Path, language: Language) -> tuple[Path, Path]:
    """The two files of a language; the report and the plot of each experiment are made anew too, from its facts."""
    found = [(o, page_of(o)) for o in outcomes(folder)]
    for o, _ in found:
        render(o, folder / o["name"], language)
    page, text = folder / f"report.{language}.html", folder / f"report.{language}.md"
    page.write_text(_page(folder, found, language), encoding="utf-8")
    text.write_text(_markdown(folder, found, language), encoding="utf-8")
    return page, text


def _costs(found: _Found, language: Language) -> list[list[str]]:
    """A row for each experiment, and all of them: a trial that several experiments use counts in each."""
    word = _WORDS[language]
    rows = [[word["name"], word["trials"], "FLOPs", word["time"], word["overhead"], word["yuan"]]]
    every = {key: sum(o[key] for o, _ in found) for key in ("trials", "flops", "seconds", "busy", "yuan")}
    for o, title in [*((o, page.words.title.of(language)) for o, page in found), (every, word["all"])]:
        share = 1 - o["busy"] / o["seconds"] if o["seconds"] else 0.0
        row = [title, show(o["trials"]), f"{o['flops']:.3g}", show_seconds(o["seconds"]), f"{share:.1%}"]
        rows.append([*row, f"{o['yuan']:.3g}"])
    return rows


def _answers(found: _Found, language: Language) -> list[list[str]]:
    """Every question with its answer."""
    word = _WORDS[language]
    rows = [[word["name"], word["question"], word["answer"]]]
    for _, page in found:
        for q in page.questions:
            rows.append([page.words.title.of(language), q.question.of(language), q.answer.of(language)])
    return rows


def _markdown(folder: Path, found: _Found, language: Language) -> str:
    word = _WORDS[language]
    parts = [f"# {word['title']}", word["made"].format(when=utc_now())]
    if len(answers := _answers(found, language)) > 1:
        parts += [f"## {word['answers']}", markdown_table(answers)]
    for o, page in found:
        parts += [(folder / o["name"] / f"report.{language}.md").read_text(encoding="utf-8").strip()]
        parts += [f"![{page.words.title.of(language)}]({o['name']}/plot.{language}.png)"]
    for plan in planned.plans(folder):
        parts += [plan["text"][language].strip(), _planned_when(plan, language), f"### {word['came']}"]
        parts += [planned.markdown(plan["runs"], language) if plan["runs"] else word["untrained"].format(out=folder)]
    return "\n\n".join([*parts, f"## {word['cost']}", markdown_table(_costs(found, language))]) + "\n"


def _planned_when(plan: dict[str, Any], language: Language) -> str:
    return provenance.said(plan["made"]).of(language)


def _page(folder: Path, found: _Found, language: Language) -> str:
    word = _WORDS[language]
    body = [f"<h1>{word['title']}</h1>", f"<p>{word['made'].format(when=utc_now())}</p>"]
    if len(answers := _answers(found, language)) > 1:
        body += [f"<h2>{word['answers']}</h2>", html_table(answers, "words")]
    for o, page in found:
        body += _experiment(folder, o, page, language)
    for plan in planned.plans(folder):
        body += _plan(folder, plan, language)
    body += [f"<h2>{word['cost']}</h2>", html_table(_costs(found, language))]
    return frame(word["title"], language, "\n".join(body))


def _experiment(folder: Path, o: dict[str, Any], page: Page, language: Language) -> list[str]:
    words = page.words
    plot = base64.b64encode((folder / o["name"] / f"plot.{language}.png").read_bytes()).decode()
    title, keys = html.escape(words.title.of(language)), list(words.columns)
    rows = [
        [words.columns[k].of(language) for k in keys],
        *([show(row.get(k), language) for k in keys] for row in words.rows),
    ]
    body = [f"<h2>{title}</h2>", *(_line(line) for line in origin(o, language))]
    if page.questions:
        lines = (html.escape(q.line.of(language)) for q in page.questions)
        body.append("<ul>" + "".join(f"<li><b>{line}</b></li>" for line in lines) + "</ul>")
    body += [_said(words.said.of(language))]
    body += [f'<img alt="{title}" src="data:image/png;base64,{plot}">', html_table(rows)]
    if page.left_out:
        body.append(f"<p>{html.escape(left_out(page.left_out, language))}</p>")
    return body


def _plan(folder: Path, plan: dict[str, Any], language: Language) -> list[str]:
    """A plan as it was made, and what came of it."""
    word, lines = _WORDS[language], plan["text"][language].strip().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    notes = [line[2:] for line in lines if line.startswith("- ")]
    body = [
        f"<h2>{html.escape(lines[0].removeprefix('## '))}</h2>",
        f"<p>{html.escape(_planned_when(plan, language))}</p>",
    ]
    body += [html_table(table[1:]), "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"]
    body.append(f"<h3>{word['came']}</h3>")
    if not plan["runs"]:
        return [*body, _line(word["untrained"].format(out=folder))]
    said = [f"<p>{html.escape(planned.sentence(run).of(language))}</p>" for run in plan["runs"]]
    return [*body, html_table(planned.table(plan["runs"], language)), *said]


def _line(text: str) -> str:
    """A paragraph; what Markdown sets as code is in a frame of its own there only."""
    return f"<p>{html.escape(text.replace('`', ''))}</p>"


def _said(verdict: str) -> str:
    """A paragraph, or a list where every line begins with "- "."""
    lines = [html.escape(line) for line in verdict.split("\n")]
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "\n".join(f"<li>{line[2:]}</li>" for line in lines) + "</ul>"
    return f"<p>{' '.join(lines)}</p>"

"""One page of all experiments in a sandbox: verdict, plot and table of each, and what each of them cost.

A single HTML file that needs no network, and the same as Markdown. It is made of what the experiments wrote
(outcome.json, report.<language>.md, plot.<language>.png), so it can be made again at any time, in English or Chinese.

What it gives up: zooming into plots; the numbers are in outcome.json.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from gangpao.atomic import read_json
from gangpao.log import show_seconds
from gangpao.sandbox.experiment import Language, left_out, show

_WORDS = {
    "en": {
        "title": "Model Sandbox", "cost": "What it cost", "name": "experiment", "trials": "trials", "time": "trial time",
        "overhead": "start and evaluation", "yuan": "yuan",
    },
    "zh": {
        "title": "模型沙盒", "cost": "花费", "name": "实验", "trials": "试验数", "time": "试验时间",
        "overhead": "启动与评估占比", "yuan": "元",
    },
}  # fmt: skip
_ORDER = ("lr", "batch", "schedule", "scaling", "mix", "optim")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color-scheme:light dark}"
    "td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}"
    "img{max-width:100%}table{border-collapse:collapse;display:block;overflow-x:auto}"
)


def outcomes(folder: Path) -> list[dict[str, Any]]:
    """What experiments wrote, in the order in which they are best read. Raises ValueError where there is nothing."""
    found = [read_json(folder / name / "outcome.json") for name in _ORDER if (folder / name / "outcome.json").exists()]
    if not found:
        raise ValueError(f"{folder}: no experiment has finished here yet; run one, for example `gangpao sandbox lr`")
    return found


def write(folder: Path, language: Language) -> tuple[Path, Path]:
    """The two files of a language."""
    found = outcomes(folder)
    page, text = folder / f"report.{language}.html", folder / f"report.{language}.md"
    page.write_text(_page(folder, found, language), encoding="utf-8")
    text.write_text(_markdown(folder, found, language), encoding="utf-8")
    return page, text


def _costs(found: list[dict[str, Any]], language: Language) -> list[list[str]]:
    word = _WORDS[language]
    rows = [[word["name"], word["trials"], "FLOPs", word["time"], word["overhead"], word["yuan"]]]
    for o in found:
        share = 1 - o["busy"] / o["seconds"] if o["seconds"] else 0.0
        row = [o["title"][language], show(o["trials"]), f"{o['flops']:.3g}", show_seconds(o["seconds"]), f"{share:.1%}"]
        rows.append([*row, f"{o['yuan']:.3g}"])
    return rows


def _markdown(folder: Path, found: list[dict[str, Any]], language: Language) -> str:
    word = _WORDS[language]
    parts = [f"# {word['title']}"]
    for o in found:
        parts += [(folder / o["name"] / f"report.{language}.md").read_text(encoding="utf-8").strip()]
        parts += [f"![{o['title'][language]}]({o['name']}/plot.{language}.png)"]
    rows = ["| " + " | ".join(row) + " |" for row in _costs(found, language)]
    return "\n\n".join([*parts, f"## {word['cost']}", "\n".join([rows[0], "|-" * 6 + "|", *rows[1:]])]) + "\n"


def _page(folder: Path, found: list[dict[str, Any]], language: Language) -> str:
    word = _WORDS[language]
    body = [f"<h1>{word['title']}</h1>"]
    for o in found:
        picture = base64.b64encode((folder / o["name"] / f"plot.{language}.png").read_bytes()).decode()
        title = html.escape(o["title"][language])
        keys = list(o["columns"])
        rows = [
            [o["columns"][k][language] for k in keys],
            *([show(row.get(k), language) for k in keys] for row in o["rows"]),
        ]
        body += [f"<h2>{title}</h2>", _said(o["verdict"][language])]
        body += [f'<img alt="{title}" src="data:image/png;base64,{picture}">', _table(rows)]
        if o["excluded"]:
            body.append(f"<p>{html.escape(left_out(o['excluded'], language))}</p>")
    body += [f"<h2>{word['cost']}</h2>", _table(_costs(found, language))]
    return (
        f'<!doctype html>\n<html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{word['title']}</title><style>{_STYLE}</style>\n" + "\n".join(body) + "\n</html>\n"
    )


def _said(verdict: str) -> str:
    """A paragraph, or a list where every line begins with "- "."""
    lines = [html.escape(line) for line in verdict.split("\n")]
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "\n".join(f"<li>{line[2:]}</li>" for line in lines) + "</ul>"
    return f"<p>{' '.join(lines)}</p>"


def _table(rows: list[list[str]]) -> str:
    head, *rest = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    )
    return "<table>" + "\n".join([head, *rest]) + "</table>"

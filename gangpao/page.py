"""Pages of reports: tables as HTML and Markdown, a frame that needs no network, in English or Chinese.

What a cell holds is text, never markup: HTML is escaped here, Markdown by whoever has text that it does not know.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal

Language = Literal["en", "zh"]

STYLE = (
    ":root{color-scheme:light dark}"  # of the root: of the body alone, a dark page is black on white
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em}"
    "td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #8884}td:first-child,th:first-child{text-align:left}"
    ".words td,.words th{text-align:left}"
    "img{max-width:100%}table{border-collapse:collapse;display:block;overflow-x:auto}"
)


def language_of(lang: str) -> Language:
    """The value of --lang. Raises ValueError for any other language."""
    if lang not in ("en", "zh"):
        raise ValueError(f"--lang {lang!r:.20}: en or zh")
    return "zh" if lang == "zh" else "en"


def html_table(rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """The first row is the head; a line break in a cell stays one. kind: "words" has all its columns on the left."""
    head, *rest = (
        "<tr>" + "".join(f"<{tag}>{html.escape(cell).replace(chr(10), '<br>')}</{tag}>" for cell in row) + "</tr>"
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    )
    return f'<table class="{kind}">' + "\n".join([head, *rest]) + "</table>"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; a line break in a cell stays one."""
    head, *rest = ["| " + " | ".join(cell.replace("\n", "<br>") for cell in row) + " |" for row in rows]
    return "\n".join([head, "|" + "-|" * len(rows[0]), *rest])


def frame(title: str, language: Language, body: str, style: str = STYLE, head: str = "") -> str:
    """A whole page. title: as text. head: markup that comes before the title."""
    return (
        f'<!doctype html>\n<html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{head}<title>{html.escape(title)}</title><style>{style}</style>\n{body}\n</html>\n"
    )

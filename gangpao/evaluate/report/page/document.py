"""What a page says, as blocks, and blocks as HTML and as Markdown.

Blocks hold text as it is, of whatever origin: a model's answer may be a script. It is escaped here and nowhere else.
"""

from __future__ import annotations

import base64
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gangpao.atomic import new_file
from gangpao.page import STYLE, Language, frame, html_table, markdown_table

# Nothing is loaded from anywhere and nothing runs, whatever a text may hold.
_POLICY = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
_STYLE = STYLE + (
    "body{max-width:72em;overflow-wrap:anywhere}td,th{white-space:nowrap;vertical-align:top;overflow-wrap:normal}"
    ".words td,.words th{white-space:pre-wrap;min-width:6em;max-width:26em;overflow-wrap:anywhere}"
    "table{font-size:.93em}.numbers th{white-space:normal}td:first-child,th:first-child{position:sticky;left:0;background:Canvas}"
    "@media(max-width:40em){td:first-child,th:first-child{white-space:normal;min-width:6em;max-width:9em}}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;border-left:3px solid #8884;padding-left:.7em;margin:.3em 0}"
    ".loud{border-left:4px solid #d97706;background:#d9770622;padding:.4em .8em}"
    ".picture{overflow-x:auto}.picture img{width:46em;max-width:none;display:block}"
    "@media(min-width:50em){.picture img{max-width:100%}}"
    "details{margin:.4em 0}details>:not(summary){margin-left:1em}summary{cursor:pointer}"
)


@dataclass(frozen=True, slots=True)
class Heading:
    """A title; level 1 is the page's own."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences. loud: nobody may miss them."""

    text: str
    loud: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Points of a list."""

    points: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """The first row is the head. kind: "numbers" or "words"."""

    rows: Sequence[Sequence[str]]
    kind: str = "numbers"


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG picture, or where there is none a PNG; name: of its file beside the Markdown, without suffix."""

    name: str
    alt: str
    svg: str = ""
    png: bytes = b""

    @property
    def content(self) -> bytes:
        """Of its file."""
        return self.svg.encode(errors="replace") or self.png

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{'svg' if self.svg else 'png'}"

    @property
    def kind(self) -> str:
        """Of media."""
        return "image/svg+xml" if self.svg else "image/png"


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Text with its line breaks: prompts and answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks that are seen when somebody opens them."""

    title: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Listing | Table | Picture | Verbatim | Fold

_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}") | {9: "\t", 10: "\n", 13: "\n"}


def line(text: object, most: int = 160) -> str:
    """Foreign text for a cell or a title: one line, not endless."""
    words = " ".join(str(text).translate(_CONTROL).split())
    return words if len(words) <= most else words[: most - 1] + "…"


def pictures(blocks: Sequence[Block]) -> list[Picture]:
    """All pictures, folded ones too."""
    found = []
    for block in blocks:
        if isinstance(block, Picture):
            found.append(block)
        elif isinstance(block, Fold):
            found += pictures(block.blocks)
    return found


def write(
    folder: Path, name: str, language: Language, title: str, blocks: Sequence[Block], beside: str = ""
) -> tuple[Path, Path]:
    """NAME.LANGUAGE.html, which needs nothing else, and NAME.LANGUAGE.md with its pictures beside it, or in the folder `beside`."""
    pictured = folder / beside
    pictured.mkdir(parents=True, exist_ok=True)
    page, text = folder / f"{name}.{language}.html", folder / f"{name}.{language}.md"
    files = {
        page: as_html(title, blocks, language).encode(errors="replace"),
        text: as_markdown(blocks, f"{beside}/" if beside else "").encode(errors="replace"),
        **{pictured / picture.file: picture.content for picture in pictures(blocks)},
    }
    for path, content in files.items():
        with new_file(path) as temporary:
            temporary.write_bytes(content)
    return page, text


# --- HTML


def as_html(title: str, blocks: Sequence[Block], language: Language) -> str:
    """A page that needs nothing but itself."""
    return frame(title, language, "\n".join(map(_html, blocks)), _STYLE, _POLICY)


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_text(text)}</h{level}>"
        case Paragraph(text, loud):
            return f'<p class="loud">{_text(text)}</p>' if loud else f"<p>{_text(text)}</p>"
        case Listing(points):
            return "<ul>" + "".join(f"<li>{_text(point)}</li>" for point in points) + "</ul>"
        case Table(rows, kind):
            return html_table([[cell.translate(_CONTROL) for cell in row] for row in rows], kind)
        case Picture():
            data = base64.b64encode(block.content).decode()
            image = f'<img alt="{_text(block.alt)}" src="data:{block.kind};base64,{data}">'
            return f'<div class="picture">{image}</div>'
        case Verbatim(text):
            return f"<pre>\n{_text(text)}</pre>"  # the first line break is not shown
        case Fold(title, blocks):
            return f"<details><summary>{_text(title)}</summary>\n" + "\n".join(map(_html, blocks)) + "\n</details>"


def _text(text: str) -> str:
    return html.escape(text.translate(_CONTROL))


# --- a terminal


def as_text(blocks: Sequence[Block]) -> str:
    """Headings, paragraphs and tables in columns, for a terminal."""
    return "\n\n".join(filter(None, map(_plain, blocks))) + "\n"


def _plain(block: Block) -> str:
    match block:
        case Heading(_, text) | Paragraph(text, _):
            return line(text, 10_000)
        case Listing(points):
            return "\n".join(f"- {line(point, 10_000)}" for point in points)
        case Table(rows, _):
            cells = [[line(cell.replace("\n", "; "), 10_000) for cell in row] for row in rows]
            widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
            padded = (
                (cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)) for row in cells
            )
            return "\n".join("  ".join(row).rstrip() for row in padded)
        case _:
            return ""


def _width(text: str) -> int:
    """Columns of a terminal: Chinese signs take two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


# --- Markdown


def as_markdown(blocks: Sequence[Block], folder: str = "") -> str:
    """The same. folder: where pictures lie, with a slash behind it."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: str) -> str:
    match block:
        case Heading(level, text):
            return "#" * level + " " + _marked(text)
        case Paragraph(text, loud):
            return f"> **{_marked(text)}**" if loud else _marked(text)
        case Listing(points):
            return "\n".join(f"- {_marked(point)}" for point in points)
        case Table(rows, _):
            return markdown_table([[_marked(cell, keep_lines=True) for cell in row] for row in rows])
        case Picture():
            return f"![{_marked(block.alt)}]({folder}{block.file})"
        case Verbatim(text):
            text = text.translate(_CONTROL)
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
            return f"{fence}text\n{text}\n{fence}"
        case Fold(title, blocks):
            inner = "\n\n".join(_markdown(one, folder) for one in blocks)
            return f"<details><summary>{_text(line(title))}</summary>\n\n{inner}\n\n</details>"


def _marked(text: str, keep_lines: bool = False) -> str:
    """Text whose signs mean nothing in Markdown."""
    text = text.translate(_CONTROL)
    if not keep_lines:
        text = " ".join(text.split("\n"))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)

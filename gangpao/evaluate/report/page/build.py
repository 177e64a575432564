"""The whole page, in the order in which it is read, as files."""

from __future__ import annotations

import datetime
from pathlib import Path

import gangpao
from gangpao import atomic
from gangpao.evaluate.report.page import facts, items, pictures, scores
from gangpao.evaluate.report.page.document import Block, Heading, Paragraph, as_html, as_markdown
from gangpao.evaluate.report.page.document import pictures as pictures_in
from gangpao.evaluate.report.page.given import Given


def blocks(given: Given) -> list[Block]:
    """Everything that the page says."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [
        Heading(1, given.say("title")),
        Paragraph(given.say("made", when=now, version=gangpao.__version__)),
        *facts.warnings(given),
        Heading(2, given.say("scores")),
        *scores.main_table(given),
        *facts.asked(given),
        *pictures.drawn(given),
        *scores.average_table(given),
        *scores.differences(given),
        *scores.to_published(given),
        *facts.prices(given),
        *facts.who(given),
        *facts.parts(given),
        *facts.left_out(given),
        *facts.thinking(given),
        *facts.contamination(given),
        *facts.notes(given),
        *items.singles(given),
        *facts.sources(given),
    ]


def write(given: Given, folder: Path) -> tuple[Path, Path]:
    """report.<language>.html, which needs nothing else, and report.<language>.md with its pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = blocks(given)
    page, text = folder / f"report.{given.language}.html", folder / f"report.{given.language}.md"
    files = {page: as_html(given.say("title"), found, given.language), text: as_markdown(found)}
    files |= {folder / f"{picture.name}.svg": picture.svg for picture in pictures_in(found)}
    for path, content in files.items():
        with atomic.new_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8", errors="replace")
    return page, text

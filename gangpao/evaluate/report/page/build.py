"""The whole page, in the order in which it is read, as files."""

from __future__ import annotations

import datetime
from pathlib import Path

import gangpao
from gangpao.evaluate.report.page import document, facts, items, pictures, scores
from gangpao.evaluate.report.page.document import Block, Heading, Paragraph
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
    return document.write(folder, "report", given.language, given.say("title"), blocks(given))

"""Files of conversations about pictures, in the forms that `gangpao tune` reads, as questions that are asked one by one.

Each question of a conversation is asked on its own, behind the pictures that had been shown up to it: an answer depends on no
other, and questions about a picture share its encoding. What it gives up: questions that refer to earlier answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gangpao.data.config import Source
from gangpao.data.sources.forms import Document, parse, said
from gangpao.data.sources.picture_files import read
from gangpao.data.sources.pictures import cut, mark, marks_in
from gangpao.data.sources.source import explain, placed_rows, resolve
from gangpao.images.decode import decode
from gangpao.images.look import Picture


@dataclass(frozen=True, slots=True)
class Question:
    """One question and what the row answers. where: file, line and number of the question; pictures: what characters in the text
    stand for; text: with these; words: without; system: what the row begins with."""

    where: str
    text: str
    wanted: str
    pictures: Mapping[str, Picture]
    system: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """What is asked, as a conversation."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": self.text}]

    @property
    def words(self) -> str:
        return "".join(piece for piece in cut(self.text) if isinstance(piece, str)).strip()


def questions(path: str, limit: int | None = None) -> list[Question]:
    """Of a file, or the files of a pattern. limit: rows at most. Raises ValueError naming a row that is no conversation about a
    picture, and for a picture that is none."""
    found = resolve(Source(path=path), Path())
    out: list[Question] = []
    rows = 0
    for file in found.files:
        for where, row in itertools.islice(placed_rows(found.source, (file,)), None if limit is None else limit - rows):
            rows += 1
            document = row.wrong or (row.value if isinstance(row.value, Document) else parse(row.value, found.source))
            if isinstance(document, str):
                raise ValueError(f"{where}: {document}")
            if not document.images:
                raise ValueError(f"{where}: has no picture; its answers are measured by `gangpao eval`, not here")
            out += _of(document, where, file.parent)
    if not out:
        raise ValueError(f"{path}: no question was found; {explain(found.source, found.files, rows)}")
    return out


def _of(document: Document, where: str, folder: Path) -> Iterator[Question]:
    try:
        pictures = {mark(i): read(reference, folder)[0] for i, reference in enumerate(document.images)}
        for picture in pictures.values():
            decode(picture)  # a damaged one is said by its row, before anything is asked
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    shown: list[str] = []
    number, system = 0, ""
    for turn, following in itertools.pairwise((*document.messages, {})):
        text = said(turn)
        if turn.get("role") == "system" and not shown:
            system = text
        if turn.get("role") != "user":
            continue
        here = [mark(i) for i in marks_in(text)]
        earlier = [c for c in shown if c not in here]
        shown += [c for c in here if c not in shown]
        if following.get("role") != "assistant":
            continue
        number += 1
        asked = "".join(earlier) + text
        yield Question(
            f"{where}, question {number}", asked, said(following).strip(), {c: pictures[c] for c in shown}, system
        )

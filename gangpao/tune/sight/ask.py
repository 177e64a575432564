"""What a folder that sees answers to the rows of a file, word for word: how many answers are right, and which are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gangpao.data.sources.forms import Document
from gangpao.engine.pictures.prompts import mark_ids
from gangpao.text.templates.chat import ChatTemplate
from gangpao.tune.base.load import load_base
from gangpao.tune.data.config import TuneFile
from gangpao.tune.data.rows import open_file
from gangpao.tune.pictures.render import with_pictures
from gangpao.tune.pictures.table import PictureTable
from gangpao.tune.sight.model import SeeingModel


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, what the row says and what the model said, the most likely token after the other."""

    where: str
    question: str
    wanted: str
    said: str

    @property
    def right(self) -> bool:
        return self.said.strip() == self.wanted.strip()


class Seer:
    """A folder that sees, ready to be asked. Raises ValueError for one that does not see."""

    def __init__(self, folder: Path) -> None:
        self.base = load_base(folder, dtype=torch.float32, storage="fp32")
        if self.base.tower is None:
            raise ValueError(f"{folder}: does not see")
        self.table = PictureTable(self.base.tower.vision, self.base.tokenizer.vocab_size)
        vision = self.base.tower.vision
        marks = mark_ids(self.base.tokenizer, vision.marks, str(folder)) if vision.canvas else None
        self.model = SeeingModel(self.base.model, self.base.tower, self.table, marks=marks)
        self.template = ChatTemplate.for_model(self.base.chat_template, tokenizer=self.base.tokenizer)

    def ask(self, rows: Path, *, most: int | None = None, max_tokens: int = 32) -> Iterator[Asked]:
        """Every first question of the rows of a file. Raises ValueError for rows and pictures that are none."""
        for number, (where, found) in enumerate(open_file(TuneFile(path=str(rows)), Path()).examples()):
            if number == most:
                return
            if not isinstance(found, Document):
                raise ValueError(f"{where}: {found}")
            question, answer = found.messages[0]["content"], found.messages[1]["content"]
            yield Asked(where, question[1:], answer, self.answer(found, rows.parent, max_tokens))

    @torch.no_grad()
    def answer(self, document: Document, folder: Path, max_tokens: int) -> str:
        """To the first turn of a conversation."""
        tokenizer = self.base.tokenizer
        numbers = [self.table.add(reference, folder) for reference in document.images]
        messages, pictures = with_pictures(document.messages[:1], numbers, self.table, self.template)
        ids = self.template.encode(tokenizer, messages, pictures=pictures)
        begin = len(ids)
        while len(ids) < begin + max_tokens and (len(ids) == begin or ids[-1] not in tokenizer.end_ids):
            hidden = self.model(torch.tensor([ids])).hidden[0, -1]
            ids.append(int(self.model.logits(hidden).argmax()))
        return tokenizer.decode([token for token in ids[begin:] if token not in tokenizer.end_ids])

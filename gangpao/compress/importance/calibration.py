"""Texts and conversations as windows of ids, languages in equal parts: what compression looks at a model with.

Without files: texts in Chinese, English and code that ship with the package and that we wrote (texts/*.jsonl, parts of our own
documentation and source; tests/compress/importance/test_calibration.py has the rule they are collected by). With files: texts, and
rows of any form that tuning reads; conversations are written by the model's own chat template.

Documents of a language follow each other as one stream, which is cut into windows; these are taken in an order that goes through
all documents early. The language that has given the fewest gives the next one, until it runs out; when all have, they begin again
with their cuts elsewhere. Everything follows from the texts and the numbers alone.

What it gives up: text that is larger than memory as ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gangpao.data.sources.forms import Document
from gangpao.evaluate.perplexity import texts
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.tokenizer import Tokenizer
from gangpao.tune.data.config import TuneFile
from gangpao.tune.data.rows import Fault, converted, open_file

Ids = npt.NDArray[np.int64]

TEXTS = Path(__file__).parent / "texts"
OWN = "own"  # in place of a file: the texts that ship with the package
DEFAULTS = ("zh", "en", "code")
DEFAULT_NAME = f"gangpao's own texts ({', '.join(DEFAULTS)})"


@dataclass(frozen=True, slots=True)
class Part:
    """A language: tokens of the windows that are of it, and tokens that its texts have. More of the former: seen again."""

    language: str
    tokens: int
    available: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """ids: windows [N, T]. parts: what they are of, in the order of the first windows. datasets: names for a file that is made of
    this. skipped: rows without anything to read."""

    ids: Ids
    parts: tuple[Part, ...]
    datasets: tuple[str, ...]
    skipped: int = 0

    def __str__(self) -> str:
        shares = (
            f"{part.language} {part.tokens:,}" + (f" (of {part.available:,})" if part.available < part.tokens else "")
            for part in self.parts
        )
        return f"{self.ids.size:,} tokens in {len(self.ids):,} windows: {', '.join(shares)}"


def calibration_ids(
    tokenizer: Tokenizer, files: Sequence[str | Path] = (), *, windows: int, length: int
) -> npt.NDArray[np.int64]:
    """ids [windows, length] of `calibrate`."""
    return calibrate(tokenizer, files, windows=windows, length=length).ids


def calibrate(
    tokenizer: Tokenizer, files: Sequence[str | Path] = (), *, windows: int, length: int, architecture: str = ""
) -> Calibration:
    """Windows of `length` ids, each with BOS in place of its first where the model wants one.

    files: texts, code, rows, folders of them; none, or the word `own` among them: the texts that ship with the package.
    architecture: of a model without a chat template, for its conversations. Raises ValueError for a file that cannot be read, and
    where nothing is left to look at.
    """
    if windows < 1 or length < 2:
        raise ValueError(f"{windows} windows of {length} tokens: there must be one at least, of two tokens at least")
    reader = _Reader(tokenizer, architecture)
    for language, ids in reader.read(files):
        reader.streams.setdefault(language, []).append(np.asarray(ids, np.int64))
    streams = {language: np.concatenate(found) for language, found in reader.streams.items()}
    if not sum(map(len, streams.values())):
        raise ValueError(
            f"{', '.join(map(str, files)) or TEXTS}: there is no text in it; give texts, code or conversations"
        )
    order = _dealt({language: max(1, len(ids) // length) for language, ids in streams.items()}, windows)
    out = np.stack([_window(streams[language], at, length) for language, at in order])
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        out[:, 0] = tokenizer.bos_id
    given = [language for language, _ in order]
    parts = (Part(x, length * given.count(x), len(streams[x])) for x in dict.fromkeys(given))
    datasets = tuple(DEFAULT_NAME if file == OWN else str(file) for file in files or (OWN,))
    return Calibration(out, tuple(parts), datasets, reader.skipped)


def _dealt(available: dict[str, int], windows: int) -> list[tuple[str, int]]:
    """(language, number of its window) in order; numbers go on past what is available."""
    given = dict.fromkeys(available, 0)
    out: list[tuple[str, int]] = []
    rounds = 1
    while len(out) < windows:
        left = [language for language in available if given[language] < rounds * available[language]]
        if not left:
            rounds += 1
            continue
        language = min(left, key=lambda x: given[x])
        out.append((language, given[language]))
        given[language] += 1
    return out


def _window(stream: Ids, number: int, length: int) -> Ids:
    """The window of that number; those past the end of the stream are cut elsewhere, one round after the other."""
    available = max(1, len(stream) // length)
    rounds, at = divmod(number, available)
    begin = at * _stride(available) % available * length + rounds * (length // 3 + 1)
    return stream.take(np.arange(begin, begin + length), mode="wrap")


def _stride(count: int) -> int:
    """A step through `count` places that visits all of them, neighbours far from each other."""
    return next(step for step in range(round(count * 0.618), 2 * count + 2) if math.gcd(step, count) == 1)


class _Reader:
    """Reads documents of files as ids; streams are what was read by language."""

    def __init__(self, tokenizer: Tokenizer, architecture: str) -> None:
        self.tokenizer, self.architecture = tokenizer, architecture
        self.template: ChatTemplate | None = None
        self.streams: dict[str, list[Ids]] = {}
        self.skipped = 0

    def read(self, files: Sequence[str | Path]) -> Iterator[tuple[str, Sequence[int]]]:
        """(language, ids) of every document."""
        if not files or OWN in files:
            for language in DEFAULTS:
                for document in texts.documents(texts.text_files([TEXTS / f"{language}.jsonl"])):
                    yield language, self._ids(document.text)
        for file in texts.text_files([file for file in files if file != OWN]):
            if texts.has_rows(file.path):
                yield from self._rows(file.path)
                continue
            for document in texts.documents([file]):
                yield document.language, self._ids(document.text)

    def _ids(self, text: str) -> Sequence[int]:
        """A text with the token behind it that ends one."""
        end = self.tokenizer.eos_id
        return [*self.tokenizer.encode(text), *([] if end is None else [end])]

    def _rows(self, path: Path) -> Iterator[tuple[str, Sequence[int]]]:
        opened, read, why = open_file(TuneFile(path=str(path)), Path()), 0, ""
        for where, row in opened.examples():
            example = row if isinstance(row, Fault) else converted(row, "answers")
            if isinstance(example, Fault):
                self.skipped, why = self.skipped + 1, why or f"row {where} {example.detail}"
                continue
            for document in example:
                assert isinstance(document, Document)
                read += 1
                language = texts.Document("", "", document.contents(), document.code).language
                yield language, self._conversation(document) if document.messages else self._ids(document.text)
        if not read:
            raise ValueError(f"{path}: no row has a text or a conversation: {why or 'it has no rows'}")

    def _conversation(self, document: Document) -> Sequence[int]:
        self.template = self.template or ChatTemplate.for_model(
            self.tokenizer.chat_template, tokenizer=self.tokenizer, architecture=self.architecture
        )
        return self.template.encode(
            self.tokenizer, document.messages, tools=document.tools or None, add_generation_prompt=False
        )

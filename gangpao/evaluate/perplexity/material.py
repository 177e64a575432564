"""What is measured on: documents of files, or the ids in a file of log-probabilities, window by window.

Texts are cut twice: first to count (how many windows, how many bytes, which texts these are), then to compute; so memory holds
a document and what is computed now. Cutting costs a thousandth of computing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gangpao.evaluate.perplexity import texts
from gangpao.evaluate.perplexity.base_logits import BaseLogits
from gangpao.evaluate.perplexity.windows import Window, Windowing, windows_of, with_bos
from gangpao.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A window and where it is from: number, name, part and language of its document."""

    window: Window
    document: int
    name: str
    part: str
    language: str


@dataclass(slots=True)
class Survey:
    """What there is to compute: windows that are taken and that there are, bytes that count, and a digest of the texts."""

    windows: int = 0
    of: int = 0
    bytes: int = 0
    documents: int = 0
    digest: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


class Material:
    """What is measured on: documents of files, or the ids in a file of log-probabilities."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        files: Sequence[texts.TextFile],
        windowing: Windowing,
        base: BaseLogits | None,
        limit: int | None,
    ) -> None:
        self.windowing, self.limit = windowing, limit
        self._tokenizer, self._files, self._base = tokenizer, files, base
        self.survey = self._survey_of_file(base) if base is not None and not files else self._survey_of_texts()

    @property
    def name(self) -> str:
        """Of the task."""
        parts = list(dict.fromkeys(file.part for file in self._files))
        return parts[0] if len(parts) == 1 else "texts" if parts else self._base.path.stem  # type: ignore[union-attr]

    def _survey_of_texts(self) -> Survey:
        survey, digest, seen = Survey(), hashlib.sha256(), Counter[str]()
        most = self._base.shape.windows if self._base is not None else sys.maxsize
        for document in texts.documents(self._files):
            survey.documents += 1
            digest.update(json.dumps([document.name, document.part, document.text]).encode())
            found = windows_of(document.text, document.nbytes, self._tokenizer, self.windowing)
            if not found:
                survey.left_out["too_short"] += 1
            taken = found if self.limit is None else found[: max(0, self.limit - seen[document.part])]
            taken = taken[: most - survey.windows]
            seen[document.part] += len(taken)
            survey.windows, survey.of = survey.windows + len(taken), survey.of + len(found)
            survey.bytes += sum(window.bytes for window in taken)
        if not survey.windows:
            least = 2 if self.windowing.stride else self.windowing.context
            raise ValueError(
                f"{survey.documents} documents, and none has {least} ids, which a window needs; take a smaller --context, or "
                "longer texts"
            )
        survey.digest = digest.hexdigest()
        return survey

    def _survey_of_file(self, base: BaseLogits) -> Survey:
        taken = base.shape.windows if self.limit is None else min(self.limit, base.shape.windows)
        size = sum(piece.window.bytes for piece in itertools.islice(self._of_file(base), taken))
        return Survey(taken, base.shape.windows, size, 1, base.digest())

    def pieces(self) -> Iterator[Piece]:
        """The windows that are taken, in order. Raises ValueError where the text is not the one of the saved file."""
        base = self._base
        if base is not None and not self._files:
            yield from itertools.islice(self._of_file(base), self.survey.windows)
            return
        for number, piece in enumerate(itertools.islice(self._of_texts(), self.survey.windows)):
            if base is not None:
                _check_same_text(base, number, piece)
            yield piece

    def _of_texts(self) -> Iterator[Piece]:
        seen = Counter[str]()
        for number, document in enumerate(texts.documents(self._files)):
            if self.limit is not None and seen[document.part] >= self.limit:
                continue
            found = windows_of(document.text, document.nbytes, self._tokenizer, self.windowing)
            language = document.language if found else ""
            for window in found[: None if self.limit is None else self.limit - seen[document.part]]:
                seen[document.part] += 1
                yield Piece(window, number, document.name, document.part, language)

    def _of_file(self, base: BaseLogits) -> Iterator[Piece]:
        first = self.windowing.first
        for number, ids in enumerate(base.ids):
            size = sum(len(self._tokenizer.token_bytes(int(i))) for i in ids[first:])
            start = number * base.shape.context
            window = Window(with_bos(ids, self._tokenizer), first, int(ids[0]), start, size)
            yield Piece(window, 0, base.path.name, base.path.stem, "und")


def _check_same_text(base: BaseLogits, number: int, piece: Piece) -> None:
    ids = piece.window.ids.copy()
    ids[0] = piece.window.original
    differing = np.flatnonzero(ids != base.ids[number])
    if len(differing):
        at = differing[0]
        raise ValueError(
            f"{base.path}: window {number} is not of this text ({piece.name}): id {at} is {base.ids[number][at]} there and "
            f"{ids[at]} here. Leave out TEXT to take the file's own ids, or save it again from this text"
        )

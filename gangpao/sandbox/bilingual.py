"""A word or a sentence in both languages of a report."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gangpao.page import Language as Language


class _Format(string.Formatter):
    """What is a text already, such as a number that is not finite, stays as it is."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return value if isinstance(value, str) else str(super().format_field(value, format_spec))


class Text(NamedTuple):
    """The same in English and in Chinese."""

    en: str
    zh: str

    def of(self, language: Language) -> str:
        """In one of them."""
        return self.en if language == "en" else self.zh

    def fill(self, values: Mapping[str, Any]) -> Text:
        """With values for the names in braces, each of them a number, a word, or a Text."""
        each = ({k: v[i] if isinstance(v, Text) else v for k, v in values.items()} for i in (0, 1))
        return Text(*(_Format().vformat(self[i], (), own) for i, own in enumerate(each)))


def same(word: str) -> Text:
    """A name that is the same in both."""
    return Text(word, word)


def join(sentences: Iterable[Text]) -> Text:
    """Sentences to a paragraph."""
    every = list(sentences)
    return Text(" ".join(t.en for t in every), "".join(t.zh for t in every))


def listed(sentences: Iterable[Text]) -> Text:
    """Sentences to a list, a line each: where a paragraph would be too long to read."""
    every = list(sentences)
    return Text("\n".join(f"- {t.en}" for t in every), "\n".join(f"- {t.zh}" for t in every))

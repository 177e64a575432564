"""A prompt as ids, and an answer as it is written, for models that we run ourselves: its thought apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gangpao.engine.answer import Piece
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import ThoughtRule, rule_of
from gangpao.evaluate.models.protocol import Generated, Prompt
from gangpao.evaluate.models.tokens import encode_text
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import Splitter
from gangpao.text.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, template: ChatTemplate, prompt: Prompt) -> list[int]:
    """A prompt as the model is to see it: a text with its BOS, or a conversation by the model's template."""
    if prompt.messages is None:
        return encode_text(tokenizer, prompt.text)
    if prompt.pictures:
        raise ValueError("pictures are shown to our engine or to a server: give a .gguf file, and leave --torch out")
    return template.encode(tokenizer, list(prompt.messages), variables=variables_of(prompt))


def variables_of(prompt: Prompt) -> dict[str, Any]:
    """What a prompt says to its template."""
    return _said(prompt).variables()


def rule_for(tokenizer: Tokenizer, template: ChatTemplate, prompt: Prompt, ids: Sequence[int]) -> ThoughtRule | None:
    """How the answer may think: only a budget that is said, or the word that it is not to think, ends a thought."""
    if prompt.messages is None:
        return None
    return rule_of(template, tokenizer, ids, _said(prompt), keep_all=True)


def _said(prompt: Prompt) -> Thinking:
    return Thinking(think=prompt.think, think_budget=prompt.think_budget)


class ThoughtAndAnswer:
    """Takes pieces until `finish` says why the answer ended.

    thinks: whether the model has marks for thoughts. Then stop strings are looked for here, because one in a thought ends nothing;
    else whoever writes the pieces looks for them (`passed_on`), and what may become one is held back there.
    """

    def __init__(self, splitter: Splitter, stop: Sequence[str], *, thinks: bool) -> None:
        self._splitter = splitter
        self._stop = tuple(stop) if thinks else ()
        self.passed_on = () if thinks else tuple(stop)
        self._text = self._thought = ""
        self._thought_tokens = 0
        self._in_thought = False
        self.finish = ""

    def push(self, piece: Piece) -> bool:
        """Take the next piece, the last one with its finish_reason; whether the answer has ended."""
        was_thinking = self._splitter.thinking
        for said in self._splitter.push(piece.text) + (self._splitter.finish() if piece.finish_reason else []):
            if said.thought:
                self._thought += said.text
            else:
                self._text += said.text
        self._thought_tokens += len(piece.ids) if was_thinking or self._splitter.thinking else 0
        cut = min((at for stop in self._stop if (at := self._text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self._text, self.finish = self._text[:cut], "stop"
        elif piece.finish_reason:
            self.finish = piece.finish_reason
            self._in_thought = self._splitter.thinking and piece.finish_reason == "length"
        return bool(self.finish)

    def generated(self, tokens: int, prompt_tokens: int) -> Generated:
        """All of it, with the counts of whoever wrote it."""
        return Generated(
            self._text, self.finish, tokens, prompt_tokens, self._thought, self._thought_tokens, self._in_thought
        )

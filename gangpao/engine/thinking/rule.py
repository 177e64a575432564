"""From what is said about thinking, a model's marks and a prompt to the rule of one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gangpao.engine.thinking.options import Thinking
from gangpao.text.templates.chat import ChatTemplate
from gangpao.text.thoughts import Marks
from gangpao.text.tokenizer import Tokenizer

NOTHING_SAID = Thinking()


@dataclass(frozen=True, slots=True)
class ThoughtRule:
    """How one answer may think. opened: the prompt ended in the opening mark; open_first: the answer begins with it, whatever the
    model says. closing: the text that ends a thought, with the white space that the template writes around the mark. keep_all: no
    part of the answer is kept free for what comes behind the thought, unless a budget is said. knows_effort: the template takes the
    word for the effort itself. form: what a grammar says of the answer behind the thought: nothing, some of it, or the whole from
    its first character on."""

    marks: Marks
    closing: str
    said: Thinking = NOTHING_SAID
    opened: bool = False
    open_first: bool = False
    keep_all: bool = False
    knows_effort: bool = False
    form: Literal["none", "free", "whole"] = "none"

    def most(self, room: int) -> int | None:
        """Tokens that the thought may take of an answer of `room` tokens, its marks included; None is no limit."""
        if self.keep_all and self.said.think_budget is None and self.said.on is not False:
            return None
        return self.said.most(room, knows_effort=self.knows_effort)


def rule_of(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    said: Thinking = NOTHING_SAID,
    *,
    keep_all: bool = False,
) -> ThoughtRule | None:
    """The rule of an answer to a prompt; None where the model has no marks for thoughts. keep_all: as in ThoughtRule."""
    marks = template.thoughts
    if marks is None:
        return None
    opened = template.splitter(tokenizer, prompt_ids).thinking
    knows_effort = template.source is not None and "reasoning_effort" in template.source
    return ThoughtRule(marks, template.closing, said, opened, keep_all=keep_all, knows_effort=knows_effort)

"""A thought while its answer grows: what belongs to it, and the tokens that are forced when its budget is used up.

    choose(sampler, logits)   the next token: a forced one, else the sampler's own choice
    accept(text, whole)       the text of the token that came; thought and answer are told apart by the model's marks
    forced                    tokens that come next whatever the model says: drafts that are always right

The close is the model's own: its closing mark with the line breaks that its template writes, as the tokens that this text has. It
is never put inside a character, and near its end a thought is closed early where a sentence or a line ends, else between two words.
So a budget is kept to the token unless a character is open, for three tokens at most. A sampler makes the same choices in any
company, with drafts or without.

What it gives up: a budget of a few tokens has no room to look for such a place and may cut a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gangpao.engine.sample import Logits, Sampler
from gangpao.engine.thinking.rule import ThoughtRule
from gangpao.text.pieces import SPACE
from gangpao.text.thoughts import Splitter
from gangpao.text.tokenizer import Tokenizer

_EARLY = 24  # tokens before the limit within which the end of a sentence is taken
_WORDS = 4  # ... within which the end of a word is
_CHARACTER = 3  # tokens behind the limit that an open character may still have
_SENTENCE = tuple(".!?;。！？；…")
_LONE = tuple("。！？；…")  # ends of sentences that no blank follows
_KEPT = 32  # characters at the end of the thought that are looked at


class ThoughtTracker:
    """The state of a ThoughtRule in one answer of at most `room` tokens."""

    def __init__(self, rule: ThoughtRule, tokenizer: Tokenizer, room: int) -> None:
        self._rule = rule
        self._tokenizer = tokenizer
        self._splitter = Splitter(rule.marks, opened=rule.opened)
        self._own_close = frozenset(self._encode(rule.marks.end)[:1]) | tokenizer.end_ids
        self._forced: list[int] = []
        self._closed = False  # whether the close was forced
        self._count = 0
        self._tail = ""
        self._begun = False  # whether the thought has a word
        self._whole = True  # whether no character is open
        self._over = False
        most = rule.most(room)
        words = rule.said.think_message
        close = self._encode(f"\n\n{words}{rule.closing}" if words and most else rule.closing)
        self._limit = math.inf if most is None else max(0, most - len(close))
        self._early = 0 if most is None else min(_EARLY, int(self._limit) // 8)
        self._words = 0 if most is None else min(_WORDS, int(self._limit) // 2)
        if rule.open_first and not rule.opened:
            self._forced = self._encode(rule.marks.begin + rule.closing.partition(rule.marks.end)[0])

    @property
    def tokens(self) -> int:
        """Tokens of the thought so far, its marks included; 0 where the answer has none."""
        return self._count if self._splitter.thought_seen else 0

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to a thought or to its marks."""
        return not self._over and (bool(self._forced) or self._splitter.thinking)

    @property
    def before_form(self) -> bool:
        """The same, in front of an answer that has a form, which does not hold yet."""
        return self._rule.form != "none" and self.thinking

    @property
    def inside(self) -> bool:
        """The same, or to the white space behind a thought: no stop string counts there."""
        return not self._over and (bool(self._forced) or self._splitter.thought_seen)

    @property
    def over(self) -> bool:
        """Whether no thought goes on, and none can come any more."""
        return self._over

    @property
    def forced(self) -> Sequence[int]:
        """Tokens that come next, one after the other; empty where the model has the choice."""
        return self._forced

    def choose(self, sampler: Sampler, logits: Logits) -> int:
        """The next token, remembered by the sampler."""
        left = self._limit - self._count
        picked = None
        if not self._forced and not self._closed and self._splitter.thinking and left <= max(self._early, self._words):
            picked = None if left <= 0 and self._whole else sampler.pick(logits)
            if picked is None or self._closes_before(picked, left):
                picked, self._forced, self._closed = None, self._encode(self._last_words()), True
        token = self._forced[0] if self._forced else sampler.pick(logits) if picked is None else picked
        sampler.accept(token)
        return token

    def accept(self, text: str, whole: bool) -> str:
        """Go on behind a token. whole: no character is open behind it. Returns the part of its text that is the answer's already,
        as far as it comes behind a thought."""
        if self._forced:
            del self._forced[0]
        self._count += 1
        self._tail, self._whole = (self._tail + text)[-_KEPT:], whole
        was_thinking = self._splitter.thinking
        said = self._splitter.push(text)
        self._begun = self._begun or any(one.thought for one in said)
        answer = "".join(one.text for one in said if not one.thought)
        if self._rule.form == "whole" and was_thinking and self._splitter.behind and not self._closed:
            # The model closed its thought itself: what its template writes behind the mark comes before a form that would not let
            # it.
            space = self._rule.closing.rpartition(self._rule.marks.end)[2]
            self._forced = self._encode(space) if space and not self._splitter.held else []
        if self._splitter.decided and not self._forced:
            self._over = True
            self._count -= bool(answer and self._splitter.thought_seen)
        return answer

    def _closes_before(self, token: int, left: float) -> bool:
        """Whether a thought with so many tokens left is closed in front of the token that would come next."""
        if not self._whole:
            return left <= -_CHARACTER
        if token in self._own_close:
            return False
        first = self._tokenizer.token_bytes(token).decode("utf-8", "ignore")[:1]
        line = self._tail.rstrip(SPACE)
        apart = line != self._tail or line.endswith(_LONE) or first.isspace()
        if self._begun and left <= self._early and apart and (line.endswith(_SENTENCE) or self._tail.endswith("\n")):
            return True
        last = self._tail[-1:]
        if first in _SENTENCE and left > 1:
            return False
        return left <= self._words and not (_in_word(last) and _in_word(first))

    def _last_words(self) -> str:
        """What closes the thought as it stands."""
        words, closing = self._rule.said.think_message, self._rule.closing
        if not self._begun:
            return closing
        if words:
            return ("" if self._tail.endswith("\n") else "\n\n") + words + closing
        if self._tail.endswith("\n"):
            return closing.lstrip("\r\n")
        # Right behind a backtick a mark is quoted code.
        return f"\n{closing}" if self._tail.endswith("`") and closing[:1] not in SPACE else closing

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, parse_special=True, start=False)


def _in_word(character: str) -> bool:
    """Whether a word goes on at such a character; between Chinese ones, or where nothing is known, it need not."""
    return character.isalnum() and ord(character) < 0x2E80

"""What a model that is evaluated gives back, whoever it is: log-probabilities of texts, and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gangpao.evaluate.results import ModelFacts

# role and content, as the chat APIs have them
Messages = Sequence[Mapping[str, str]]

TOO_LONG = "too_long"  # how an answer ended whose prompt does not fit into the context


class Score(NamedTuple):
    """Of one continuation behind its context: natural logarithm of its probability; whether greedy decoding would have written
    it; its tokens."""

    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class Generated:
    """One text that a model wrote, its thought apart from it.

    finish: stop, length, too_long (the prompt did not fit, nothing was written) or the server's own word. tokens: of thought and
    text together; thinking_tokens: of the thought, by the share of its bytes where a server does not count them.
    in_thought: the answer ended before its thought did.
    """

    text: str
    thinking: str = ""
    finish: str = "stop"
    tokens: int = 0
    thinking_tokens: int = 0
    in_thought: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0


OnAnswer = Callable[[int, Generated], Any]


class Chats(Protocol):
    """Whatever can be talked with: an engine of ours, a server."""

    @property
    def facts(self) -> ModelFacts:
        """Who that is."""

    def generate(
        self,
        prompts: Sequence[str | Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_answer: OnAnswer | None = None,
    ) -> list[Generated]:
        """One text a prompt, in their order. on_answer(index, answer) is called as they come, from the calling thread."""

    def close(self) -> None:
        """Let go of what it holds."""


def shortened(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of the stop strings in it."""
    return text[: min((at for s in stop if s and (at := text.find(s)) >= 0), default=len(text))]

"""What an evaluation needs of a model, whatever it is: texts scored and prompts answered, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gangpao.evaluate.results import ModelFacts
from gangpao.images.look import Picture

Fault = Literal["", "too_long", "empty_choice"]


@dataclass(frozen=True, slots=True)
class Group:
    """A context and the continuations to score behind it; the context does not end in white space (`harness.py`)."""

    context: str
    continuations: Sequence[str]


@dataclass(frozen=True, slots=True)
class Score:
    """Of one continuation: natural-log probability of all its tokens, and whether greedy decoding would have said them.

    fault: why there is no score (then logprob is -inf): too long for the model's context, or no token of its own because its
    beginning became one token with the end of the context.
    """

    logprob: float
    greedy: bool
    tokens: int
    fault: Fault = ""

    @classmethod
    def stored(cls, value: Any) -> Score:
        """Of [logprob, greedy, tokens, fault] in a journal. Raises ValueError for anything else."""
        match value:
            case [
                float() | int() as logprob,
                bool() as greedy,
                int() as tokens,
                ("" | "too_long" | "empty_choice") as fault,
            ]:
                return cls(logprob, greedy, tokens, fault)
        raise ValueError(f"{value!r:.60}: no score")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to go on from, or a conversation to answer (`messages`), and how.

    stop: strings that end the answer and are no part of it. temperature 0 is greedy. think: True or False where the template has
    such a switch, None for what the model does by itself. think_budget: tokens that a thought may take; None: as many as it likes.
    sampling: settings of engine.sample.SamplingParams by name, over temperature and top_p. pictures: what characters in the
    contents of messages stand for (data.sources.pictures.mark).
    """

    text: str = ""
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int = 256
    stop: Sequence[str] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    think: bool | None = None
    think_budget: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Picture] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer, its thought apart. finish: "stop", "length" or, where nothing was asked, "too_long"."""

    text: str
    finish: str
    tokens: int = 0
    prompt_tokens: int = 0
    thinking: str = ""
    thinking_tokens: int = 0
    in_thought: bool = False  # whether the limit came within the thought

    @classmethod
    def stored(cls, value: Any) -> Generated:
        """Of its fields in a journal. Raises ValueError for anything else."""
        names = {
            "text": str,
            "finish": str,
            "tokens": int,
            "prompt_tokens": int,
            "thinking": str,
            "thinking_tokens": int,
        }
        if not isinstance(value, dict) or not {"text", "finish"} <= value.keys() <= {*names, "in_thought"}:
            raise ValueError(f"{value!r:.60}: no answer")
        for name, kind in (names | {"in_thought": bool}).items():
            if name in value and not isinstance(value[name], kind):
                raise ValueError(f"{name} is {value[name]!r:.60}")
        return cls(**value)


@dataclass(slots=True)
class Usage:
    """Tokens so far: of prompts that were computed, of prompts taken from what was computed before, of answers."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


class Model(Protocol):
    """One model under evaluation; `facts` says which. renders: whether conversations become text on this side. thinks: whether its
    template has thoughts; None where only a server knows."""

    renders: bool
    facts: ModelFacts
    usage: Usage

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the set-up changes scores."""

    @property
    def thinks(self) -> bool | None: ...

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[Score]]]:
        """(number of the group, scores of its continuations) as they are done, in any order."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """(number of the prompt, answer) as they are done, in any order."""

    def roll(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """(number of the text, natural-log probability of all of it) with as much before each token as fits."""

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation by the model's template. Raises ValueError where there is none to be had."""

    def ids_of(self, prompt: Prompt) -> list[int] | None:
        """What the model is shown; None where only a server knows."""

    def close(self) -> None:
        """Give back what it holds."""

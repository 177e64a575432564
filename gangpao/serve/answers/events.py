"""A chat's answer as it grows, in no API's words.

Started comes first, when the request is accepted. Each of the n choices then is Thought, Text, CallBegan and CallArguments in the
order they come, and Ended; choices mix. Finished is last. A dialect turns each event into its own objects.

logprobs: log-probabilities of the tokens that no event of that choice carried yet, also of those whose text is still held back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Logprobs = Sequence[Mapping[str, Any]]  # token, logprob, bytes, top_logprobs
Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted by this model. prompt_tokens: of its prompt; left_out: what of the request was not used."""

    model: str
    prompt_tokens: int = 0
    left_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Some text of an answer."""

    text: str
    choice: int = 0
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """Some text of the thought before an answer."""

    text: str
    choice: int = 0
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call of a function; its arguments come in pieces. index: which of the choice's calls it is."""

    id: str
    name: str
    index: int = 0
    choice: int = 0
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the last call's arguments, which are JSON."""

    text: str
    index: int = 0
    choice: int = 0
    logprobs: Logprobs = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is over. stop: the request's own stop string, or token id, that ended it; timings: of the request so far."""

    reason: Reason
    stop: str | int | None = None
    choice: int = 0
    logprobs: Logprobs = ()
    timings: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are over: counts of tokens, and speed and price, as answers.usage and answers.timings give them."""

    usage: Mapping[str, Any]
    timings: Mapping[str, Any]


Event = Started | Text | Thought | CallBegan | CallArguments | Ended | Finished

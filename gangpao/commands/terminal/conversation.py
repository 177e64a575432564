"""What a chat remembers, and what it forgets when the context is full.

Turns are the messages of a chat, whoever computes the answers; Conversation answers with a Session of an engine here,
remote.py with a server, and the terminal sees a Talk in both. The policy of a Conversation: the system message and the
newest question always stay; when the rest leaves too little room for an answer, the oldest turns go first, a question
together with its answer, until half of the context is free, and the caller is told how many messages went. Half,
because dropping moves everything behind it and costs a full prefill: this way it happens once in many turns. The
session's cache is reused as far as the new prompt agrees with it, so a normal turn computes only the new question.

What it gives up: what is dropped is gone for the model, there is no summary of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from gangpao.engine.answer import FinishReason, Progress, Stats
from gangpao.engine.generate import Engine, Generation, Session
from gangpao.engine.sample import SamplingParams
from gangpao.text.templates.chat import Message
from gangpao.text.thoughts import Said, Splitter


def fit(engine: Engine, system: str, turns: Sequence[Message], room: int) -> tuple[list[int], int]:
    """Prompt ids that leave `room` tokens for the answer, and how many of the oldest messages were dropped for it.

    Raises ValueError when the system message and the last message alone do not fit.
    """
    head = [Message(role="system", content=system)] if system else []
    limit = engine.context - room
    dropped = 0
    while True:
        messages = [*head, *turns[dropped:]]
        ids = engine.template.encode(engine.tokenizer, messages)
        if len(ids) <= limit:
            return ids, dropped
        if dropped >= len(turns) - 1:
            break
        limit = min(limit, engine.context // 2)
        dropped = next((i for i in range(dropped + 1, len(turns)) if turns[i]["role"] == "user"), len(turns) - 1)
    if len(ids) < engine.context:
        return ids, dropped
    raise ValueError(
        f"the question has {len(ids)} tokens with its system message, and the context holds {engine.context}, answer "
        "included: shorten it, or start with a larger --context"
    )


class Run(Protocol):
    """An answer on its way: an iterator of pieces that can be ended early and read at any time."""

    @property
    def text(self) -> str:
        """The answer so far, without the thought before it."""

    @property
    def thoughts(self) -> str:
        """The thought so far."""

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far."""

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended (length: cut off); None before it has."""

    def __iter__(self) -> Iterator[Said]:
        """The pieces still to come. Raises ValueError when the answer breaks off."""

    def close(self) -> None:
        """End the answer early."""


class Talk(Protocol):
    """What the terminal needs of a conversation, whoever answers in it."""

    system: str
    dropped: int
    turns: list[Message]
    unset: ClassVar[str]  # what is said of a setting that is None

    @property
    def model_name(self) -> str:
        """The model that answers."""

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first."""

    def ask(self, text: str, on_prefill: Progress | None = None, *, attempt: int = 0) -> Run:
        """Start the answer to `text`, the attempt-th after the first. Raises ValueError saying what to do."""

    def keep(self, run: Run) -> None:
        """End the answer and remember what it said."""

    def undo(self) -> list[Message]:
        """Take back the last question and its answer; they are returned. Raises ValueError where there is none."""

    def reset(self) -> None:
        """Forget the turns; the system message stays."""

    def setting(self, name: str) -> object:
        """A sampling option as it is; None where the server has the choice, or the seed is random."""

    def set(self, name: str, value: object) -> None:
        """Change a sampling option from the next question on; None takes the choice back."""

    def models(self) -> list[str]:
        """Models that `switch` takes. Raises ValueError where the server does not say."""

    def switch(self, model: str) -> None:
        """Go on with another model. Raises ValueError saying what to do; the conversation is as it was then."""

    def greeting(self) -> str:
        """Who answers, in one line."""

    def figures(self, run: Run) -> str:
        """What the answer took, in one line."""

    def facts(self) -> list[tuple[str, str]]:
        """Who answers and how full the context is, as rows of name and value."""

    def costs(self, seconds: float) -> list[tuple[str, str]]:
        """What `seconds` of answers cost, as rows of name and value."""


@dataclass(slots=True, kw_only=True)
class Turns:
    """The messages of a chat, how many of the oldest the context has no room for any more, and how many of those the
    last question pushed out."""

    system: str = ""
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0
    dropped: int = 0

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first, also what no longer fits the context."""
        return [*self.head, *self.turns]

    @property
    def head(self) -> list[Message]:
        """The system message, where there is one."""
        return [Message(role="system", content=self.system)] if self.system else []

    def asked(self, text: str, dropped: int) -> None:
        """Remember a question whose answer has begun, and how many messages it pushed out."""
        self.turns.append(Message(role="user", content=text))
        self.dropped = dropped
        self.forgotten += dropped

    def keep(self, run: Run) -> None:
        """End the answer and remember what it said. A question without a word of answer is forgotten."""
        run.close()
        if run.text:
            self.turns.append(Message(role="assistant", content=run.text))
        elif self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def undo(self) -> list[Message]:
        """Take back the last question and its answer; they are returned. Raises ValueError where there is none."""
        if not self.turns:
            raise ValueError("there is no question yet")
        taken = self.turns[-2:]
        del self.turns[-2:]
        self.forgotten = min(self.forgotten, len(self.turns))
        return taken

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns.clear()
        self.forgotten = 0


class Transcript:
    """What an answer said so far: its words, and the thought before them."""

    def __init__(self, splitter: Splitter) -> None:
        self.text = ""
        self.thoughts = ""
        self._splitter = splitter

    def _heard(self, said: list[Said]) -> list[Said]:
        for one in said:
            if one.thought:
                self.thoughts += one.text
            else:
                self.text += one.text
        return said


class Reply(Transcript):
    """An answer of an engine here."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation.splitter())
        self._generation = generation

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far."""
        return self._generation.stats

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before it has."""
        return self._generation.finish_reason

    def __iter__(self) -> Iterator[Said]:
        for piece in self._generation:
            yield from self._heard(self._splitter.push(piece.text))
        yield from self._heard(self._splitter.finish())

    def close(self) -> None:
        """End the answer early; what was held back counts as said."""
        self._generation.close()
        self._heard(self._splitter.finish())


@dataclass(slots=True)
class Conversation(Turns):
    """A chat with an engine of this process. chosen: the sampling options that the user gave; the rest is the model's own."""

    engine: Engine
    chosen: Mapping[str, Any]
    _session: Session | None = None

    @property
    def params(self) -> SamplingParams:
        """The sampling settings of the next answer."""
        return self.engine.recommended(**self.chosen)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache now."""
        return len(self._session.ids) if self._session else 0

    def ask(self, text: str, on_prefill: Progress | None = None, *, attempt: int = 0) -> Reply:
        """Start the answer to `text`; give it to `keep` when it has ended or was interrupted. attempt: how many answers to the
        same question came before; a given seed goes on by so many.

        Raises ValueError, and remembers nothing, when the question does not fit the context.
        """
        question = Message(role="user", content=text)
        params = self.params
        room = min(params.max_tokens, self.engine.context // 4)
        ids, dropped = fit(self.engine, self.system, [*self.turns[self.forgotten :], question], room)
        if self._session is None:
            self._session = self.engine.session()
        if params.seed is not None:
            params = replace(params, seed=(params.seed + attempt) % 2**63)
        run = self.engine.generate(
            ids, params, session=self._session, stop=self.engine.template.stop, on_prefill=on_prefill
        )
        self.asked(text, dropped)
        return Reply(run)

    def use(self, load: Callable[[], Engine]) -> None:
        """Go on with another engine, which reads everything anew, also what the one before had no room for. The one before is let
        go of first: two may not fit this machine."""
        self._session = None
        del self.engine
        self.engine = load()
        self.forgotten = 0

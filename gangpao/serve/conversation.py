"""What a chat remembers, and what it forgets when the context is full.

Turns are the messages of a chat, whoever computes the answers; Conversation answers with a Session of an engine here,
connect.py with a server, and the terminal sees a Talk in both. The policy of a Conversation: the system message and the
newest question always stay; when the rest leaves too little room for an answer, the oldest turns go first, a question
together with its answer, until half of the context is free, and the caller is told how many messages went. Half,
because dropping moves everything behind it and costs a full prefill: this way it happens once in many turns. The
session's cache is reused as far as the new prompt agrees with it, so a normal turn computes only the new question.

What it gives up: what is dropped is gone for the model, there is no summary of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gangpao.engine.answer import Piece, Progress, Stats
from gangpao.engine.generate import Engine, Generation, Session
from gangpao.engine.sample import SamplingParams
from gangpao.text.chat import Message


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
        """Everything said so far."""

    @property
    def stats(self) -> Stats:
        """Counts and seconds so far."""

    def __iter__(self) -> Iterator[Piece]:
        """The pieces still to come. Raises ValueError when the answer breaks off."""

    def close(self) -> None:
        """End the answer early."""


class Talk(Protocol):
    """What the terminal needs of a conversation, whoever answers in it."""

    system: str
    dropped: int

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first."""

    def ask(self, text: str, on_prefill: Progress | None = None) -> Run:
        """Start the answer to `text`. Raises ValueError saying what to do."""

    def keep(self, run: Run) -> None:
        """End the answer and remember what it said."""

    def reset(self) -> None:
        """Forget the turns; the system message stays."""

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

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns.clear()
        self.forgotten = 0


@dataclass(slots=True)
class Conversation(Turns):
    """A chat with an engine of this process."""

    engine: Engine
    params: SamplingParams
    _session: Session | None = None

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache now."""
        return len(self._session.ids) if self._session else 0

    def ask(self, text: str, on_prefill: Progress | None = None) -> Generation:
        """Start the answer to `text`; give it to `keep` when it has ended or was interrupted.

        Raises ValueError, and remembers nothing, when the question does not fit the context.
        """
        question = Message(role="user", content=text)
        room = min(self.params.max_tokens, self.engine.context // 4)
        ids, dropped = fit(self.engine, self.system, [*self.turns[self.forgotten :], question], room)
        if self._session is None:
            self._session = self.engine.session()
        run = self.engine.generate(
            ids, self.params, session=self._session, stop=self.engine.template.stop, on_prefill=on_prefill
        )
        self.asked(text, dropped)
        return run

"""Messages over a Session: what a chat remembers, and what it forgets when the context is full.

The policy: the system message and the newest question always stay; when the rest leaves too little room for an answer,
the oldest turns go first, a question together with its answer, until half of the context is free, and the caller is
told how many messages went. Half, because dropping moves everything behind it and costs a full prefill: this way it
happens once in many turns. The session's cache is reused as far as the new prompt agrees with it, so a normal turn
computes only the new question.

What it gives up: what is dropped is gone for the model, there is no summary of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gangpao.engine.answer import Progress
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


@dataclass(slots=True)
class Conversation:
    """A chat: its messages, their session, how many of the oldest the context has no room for any more, and how
    many of those the last question pushed out."""

    engine: Engine
    params: SamplingParams
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    forgotten: int = 0
    dropped: int = 0
    _session: Session | None = None

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first, also what no longer fits the context."""
        return [*([Message(role="system", content=self.system)] if self.system else []), *self.turns]

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
        self.turns.append(question)
        self.dropped = dropped
        self.forgotten += dropped
        return run

    def keep(self, run: Generation) -> None:
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

"""What a chat remembers, and what it forgets when the context is full.

Turns are the messages of a chat, whoever computes the answers; Conversation answers with a Session of an engine here,
remote.py with a server, and the terminal sees a Talk in both. The policy of a Conversation: the system message and the
newest question always stay; when the rest leaves too little room for an answer, the oldest turns go first, a question
together with its answer, until half of the context is free, and the caller is told how many messages went. Half,
because dropping moves everything behind it and costs a full prefill: this way it happens once in many turns. The
session's cache is reused as far as the new prompt agrees with it, so a normal turn computes only the new question.

An answer that fills the context does not end there: the engine drops the oldest of the text in the same way and the answer goes on
(engine/sessions/shift.py); the turns that went with it are forgotten here, too.

What it gives up: what is dropped is gone for the model, there is no summary of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Protocol

from gangpao.commands.terminal import attach
from gangpao.engine.answer import FinishReason, Progress, Stats
from gangpao.engine.generate import Engine, Generation, Session
from gangpao.engine.pictures.prompts import left_out, placed
from gangpao.engine.sample import SamplingParams
from gangpao.engine.sessions.shift import ContextShift
from gangpao.engine.thinking.options import Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID, rule_of
from gangpao.images.look import Picture
from gangpao.text.templates.chat import Message
from gangpao.text.thoughts import Said, Splitter

NO_SIGHT = "{} does not see: it reads text only. What a model sees with is an mmproj file beside it, or --mmproj FILE"


class Fitted(NamedTuple):
    """Prompt ids, how many of the oldest messages were dropped for them, and the pictures in those that were not."""

    ids: list[int]
    dropped: int
    pictures: list[Picture]


def head_of(system: str) -> list[Message]:
    """The system message, where there is one."""
    return [Message(role="system", content=system)] if system else []


def fit(
    engine: Engine,
    system: str,
    turns: Sequence[Message],
    room: int,
    *,
    cuts: bool = False,
    thinking: Thinking = NOTHING_SAID,
) -> Fitted:
    """A prompt that leaves `room` tokens for the answer, with the switches for thinking. cuts: whether what is still too long is
    cut by others.

    Raises ValueError when the system message and the last message alone do not fit.
    """
    head = head_of(system)
    limit = engine.context - room
    dropped = 0
    switches: dict[str, Any] = {} if thinking is NOTHING_SAID else {"variables": thinking.variables()}
    while True:
        messages: Sequence[Mapping[str, Any]] = [*head, *turns[dropped:]]
        pictures: dict[str, Picture] = {}
        if any("pictures" in message for message in messages):
            messages, pictures = placed(messages) if engine.seeing is not None else (left_out(messages), {})
        fitted = Fitted(engine.prompt_with(messages, pictures, **switches), dropped, list(pictures.values()))
        ids = fitted.ids
        if len(ids) <= limit:
            return fitted
        if dropped >= len(turns) - 1:
            break
        limit = min(limit, engine.context // 2)
        dropped = next((i for i in range(dropped + 1, len(turns)) if turns[i]["role"] == "user"), len(turns) - 1)
    if cuts or len(ids) < engine.context:
        return fitted
    raise ValueError(
        f"the question has {len(ids)} tokens with its system message, and the context holds {engine.context}, answer "
        "included: shorten it, or start with a larger --context"
    )


def question_of(text: str, pictures: Sequence[Picture] = ()) -> Message:
    """A question behind its pictures."""
    question = Message(role="user", content=text)
    if pictures:
        question["pictures"] = [(0, one) for one in pictures]
    return question


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
    thinking: Thinking
    unset: ClassVar[str]  # what is said of a setting that is None

    @property
    def model_name(self) -> str:
        """The model that answers."""

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first."""

    def ask(
        self, text: str, on_prefill: Progress | None = None, *, attempt: int = 0, pictures: Sequence[Picture] = ()
    ) -> Run:
        """Start the answer to `text` behind pictures, the attempt-th after the first. Raises ValueError saying what to do."""

    def sees(self) -> str:
        """Why it does not see, as far as that is known before it is asked; "" where it may."""

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
    thinking: Thinking = NOTHING_SAID
    forgotten: int = 0
    dropped: int = 0

    @property
    def messages(self) -> list[Message]:
        """Everything said, the system message first, also what no longer fits the context."""
        return [*self.head, *self.turns]

    @property
    def head(self) -> list[Message]:
        """The system message, where there is one."""
        return head_of(self.system)

    def asked(self, question: Message, dropped: int) -> None:
        """Remember a question whose answer has begun, and how many messages it pushed out."""
        self.turns.append(question)
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
    """A chat with an engine of this process. chosen: the sampling options that the user gave; the rest is the model's own. shifts:
    whether an answer that fills the context goes on without the oldest of the text."""

    engine: Engine
    chosen: Mapping[str, Any]
    shifts: bool = True
    _session: Session | None = None
    _shift: ContextShift | None = None

    @property
    def params(self) -> SamplingParams:
        """The sampling settings of the next answer."""
        return self.engine.recommended(thinking=self.thinking.on, **self.chosen)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache now."""
        return len(self._session.ids) if self._session else 0

    def ask(
        self, text: str, on_prefill: Progress | None = None, *, attempt: int = 0, pictures: Sequence[Picture] = ()
    ) -> Reply:
        """Start the answer to `text` behind pictures; give it to `keep` when it has ended or was interrupted. attempt: how many
        answers to the same question came before; a given seed goes on by so many.

        Raises ValueError, and remembers nothing, when the question does not fit the context.
        """
        question = question_of(text, pictures)
        params = self.params
        room = min(params.max_tokens, self.engine.context // 4)
        ids, dropped, shown = fit(
            self.engine, self.system, [*self.turns[self.forgotten :], question], room, thinking=self.thinking
        )
        hold = attach.see(self.engine, shown)
        if params.seed is not None:
            params = replace(params, seed=(params.seed + attempt) % 2**63)
        run = self.engine.generate(
            ids, params, session=self.session(), stop=self.engine.template.stop, on_prefill=on_prefill,
            pictures=hold, axes=self.engine.axes(ids, shown), shift=self._shift_of(len(ids) + params.max_tokens),
            thinking=rule_of(self.engine.template, self.engine.tokenizer, ids, self.thinking),
        )  # fmt: skip
        self.asked(question, dropped)
        return Reply(run)

    def session(self) -> Session:
        """The engine's session of this chat, which has its cache."""
        if self._session is None:
            self._session = self.engine.session()
        return self._session

    def _shift_of(self, longest: int) -> ContextShift | None:
        """What drops the oldest from an answer that may fill the context; longest: tokens of prompt and answer together."""
        wanted = self.shifts and longest > self.engine.context
        self._shift = self.engine.shift(self.head) if wanted else None
        return self._shift

    def keep(self, run: Run) -> None:
        """The same; what left a full context is forgotten here, too, where whole turns went."""
        super(Conversation, self).keep(run)
        shift, self._shift = self._shift, None
        if shift is not None and shift.whole:
            questions = [i for i, turn in enumerate(self.turns) if i >= self.forgotten and turn["role"] == "user"]
            if 0 < shift.turns < len(questions):
                self.forgotten = questions[shift.turns]

    def sees(self) -> str:
        """Why it does not see; "" where it does."""
        return "" if self.engine.seeing is not None else NO_SIGHT.format(self.engine.name)

    def use(self, load: Callable[[], Engine]) -> None:
        """Go on with another engine, which reads everything anew, also what the one before had no room for. The one before is let
        go of first: two may not fit this machine."""
        self._session = None
        del self.engine
        self.engine = load()
        self.forgotten = 0

"""Any OpenAI-compatible URL as a model that is evaluated: texts scored, texts written, many at once.

    score       /completions with echo and log-probabilities: the prompt is context and continuation, and nothing is written
    roll        the same for a whole text
    generate    /chat/completions for messages, /completions for a text

What servers do. gangpao (run): echoes with exact bytes and takes max_tokens 0. llama-server (run): takes `echo` in silence and
leaves the prompt out, and writes one token where none is asked for, so what comes back is looked at before it is believed.
vLLM (from its documents): echoes, names half characters U+FFFD; its offsets drift by them, so they are not used (align.py).
llama-cpp-python 0.3.36 (run): echoes; of a model without BOS every token gets the log-probability of the row behind its own, and
max_tokens 0 writes until the context is full. So the first score is checked against what the server says while it writes.
OpenAI: its thinking models want max_completion_tokens, and it takes four stop strings.

What it gives up: log-likelihoods from a server that does not echo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from gangpao.engine.thinking.options import Thinking
from gangpao.evaluate.models import align
from gangpao.evaluate.models.many import each
from gangpao.evaluate.models.protocol import Generated, Group, Prompt, Score, Usage
from gangpao.evaluate.results import ModelFacts
from gangpao.images.look import as_part
from gangpao.openai_client import Flags, Patience, RemoteError, Server, texts_of, too_long, whole_number
from gangpao.text.templates.pictures import cut
from gangpao.text.thoughts import KNOWN, Splitter, split

T = TypeVar("T")
R = TypeVar("R")

# A run of hours outlives a server that is started anew.
PATIENCE = Patience(wait_s=600.0, broken=5)
MANY_STOPS = 4  # as many as every server takes
_NONE = float("-inf")
_SAME = 0.5  # nats that a log-probability may change by when its token comes in another batch


class Endpoint:
    """See protocol.Model. Close it when done.

    model: None takes the server's only one. concurrency: requests at a time. extra: fields for every request.
    Raises RemoteError (a ValueError) where the server cannot be asked, or has several models and none is named.
    """

    renders = False
    thinks: bool | None = None

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        concurrency: int = 4,
        patience: Patience = PATIENCE,
        extra: Mapping[str, Any] | None = None,
        flags: Flags = Flags(url="--model", model="--server-model"),  # noqa: B008  (frozen)
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.server = Server(
            url, key, True, patience=patience, flags=flags, on_wait=on_wait, connections=max(concurrency, 1)
        )
        self.usage = Usage()
        self._concurrency = concurrency
        self._extra = dict(extra or {})
        self._least = 0  # tokens that have to be written where only the prompt is of interest
        self._checked = False  # that log-probabilities of a prompt are those of its own tokens
        self._limit_name = "max_tokens"
        self._stops: int | None = None  # as many stop strings as the server takes
        try:
            name = self.server.pick(model)
        except BaseException:
            self.server.close()
            raise
        self.facts = ModelFacts(name=name, kind="endpoint", url=self.server.base)

    @classmethod
    def connect(cls, url: str, name: str | None, api_key: str | None, concurrency: int) -> Endpoint:
        """The model of that name, or the only one, of the server at an address."""
        return cls(url, name, api_key, concurrency=concurrency)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of the set-up changes scores."""
        return {"bos": "the server's", "extra": self._extra}

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    def ids_of(self, prompt: Prompt) -> None:
        """Only the server knows."""
        return

    def prompt_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Raises ValueError: only the server knows its template."""
        raise ValueError(
            f"{self.server.base} renders conversations itself, so log-likelihoods behind its chat template cannot be "
            "asked for: score without the template, or take the file"
        )

    # --- scores

    def score(self, groups: Sequence[Group]) -> Iterator[tuple[int, list[Score]]]:
        """Contexts that begin alike are asked for one after the other, so that the server's cache of prefixes is of use.

        Raises ValueError where nothing stands before what is scored, and RemoteError naming what the server lacks.
        """
        order = sorted(range(len(groups)), key=lambda i: groups[i].context)
        pairs = [(i, k) for i in order for k in range(len(groups[i].continuations))]
        left = {i: len(groups[i].continuations) for i in order}
        scores = {i: [Score(_NONE, False, 0)] * n for i, n in left.items()}
        yield from ((i, []) for i, n in left.items() if n == 0)

        def work(pair: tuple[int, int]) -> tuple[Score, Any]:
            group = groups[pair[0]]
            return self._score(group.context, group.continuations[pair[1]])

        for place, (score, usage) in self._probed(work, pairs):
            i, k = pairs[place]
            self._count(usage)
            scores[i][k] = score
            left[i] -= 1
            if left[i] == 0:
                yield i, scores.pop(i)

    def roll(self, texts: Sequence[str]) -> Iterator[tuple[int, float]]:
        """The first token counts where the server puts BOS before it. Raises ValueError for a text that does not fit: cutting
        it needs the model's tokenizer."""

        def work(text: str) -> tuple[Score, Any]:
            return self._score("", text, rolling=True)

        for i, (score, usage) in self._probed(work, texts):
            self._count(usage)
            if score.fault:
                raise ValueError(
                    f"text {i} ({texts[i]!r:.40}) does not fit into the context of {self.server.base}: take shorter "
                    "texts, or the model's file"
                )
            yield i, score.logprob

    def _probed(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """The first alone: it finds out what the server takes, and a server that cannot do it is asked once."""
        yield from each(work, items[:1], 1)
        for place, result in each(work, items[1:], self._concurrency):
            yield place + 1, result

    def _score(self, context: str, continuation: str, *, rolling: bool = False) -> tuple[Score, Any]:
        text = context + continuation
        if not continuation:
            return Score(_NONE, False, 0, "empty_choice"), None
        body = {"prompt": text, "echo": True, "logprobs": 1, "temperature": 0.0}
        try:
            answer = self._read(body)
        except RemoteError as error:
            if too_long(error):
                return Score(_NONE, False, 0, "too_long"), None
            if error.status in (404, 405, 501):
                raise RemoteError(f"{error}. {self._lacks('/completions')}", error.status) from None
            raise
        choice = _choice(answer)
        if not str(choice.get("text") or "").startswith(text):
            raise RemoteError(f"{self.server.base} leaves the prompt out of what it answers. {self._lacks('echo')}")
        told = choice.get("logprobs")
        if not isinstance(told, dict) or not isinstance(told.get("token_logprobs"), list):
            raise RemoteError(
                f"{self.server.base} gives no token_logprobs. {self._lacks('log-probabilities of prompts')}"
            )
        usage = answer.get("usage")
        written = whole_number(usage, "completion_tokens", self._least) if self._least else 0
        score = self._counted(told, text, len(context), written, rolling)
        if not self._checked:
            self._checked = True
            self._check(text)
        return score, usage

    def _check(self, text: str) -> None:
        """A token that the server writes behind a text must be worth as much when it is the end of a prompt.

        Raises RemoteError where it is not. Where the token is another one in the prompt, or the server tells too little, nothing
        is known and nothing is said.
        """
        try:
            wrote = self._ask("/completions", {"prompt": text, "max_tokens": 1, "temperature": 0.0, "logprobs": 1})
        except RemoteError as error:
            if error.status in (400, 422):  # the text leaves no room for a token, say
                return
            raise
        self._count(wrote.get("usage"))
        choice = _choice(wrote)
        piece, told = choice.get("text"), choice.get("logprobs")
        values = told.get("token_logprobs") if isinstance(told, dict) else None
        if not piece or not isinstance(piece, str) or not isinstance(values, list) or len(values) != 1:
            return
        try:
            again, usage = self._score(text, piece)
        except ValueError:
            return
        self._count(usage)
        if again.tokens == 1 and isinstance(values[0], int | float) and abs(again.logprob - values[0]) > _SAME:
            raise RemoteError(
                f"{self.server.base} wrote {piece!r:.40} with a log-probability of {values[0]:.3f}, and gives it "
                f"{again.logprob:.3f} in a prompt: its log-probabilities of prompts belong to other tokens. "
                f"{self._lacks('right ones')}"
            )

    def _read(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion that writes as little as the server lets us."""
        try:
            answer = self._ask("/completions", body | {"max_tokens": self._least})
            if self._least or whole_number(answer.get("usage"), "completion_tokens", 0) == 0:
                return answer  # else 0 is no limit to it
        except RemoteError as error:
            if self._least or error.status not in (400, 422) or too_long(error):
                raise
        answer = self._ask("/completions", body | {"max_tokens": 1})
        self._least = 1
        return answer

    def _counted(self, told: Mapping[str, Any], text: str, border: int, written: int, rolling: bool) -> Score:
        names, values, tops = (told.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        if not (isinstance(names, list) and isinstance(values, list) and isinstance(tops, list)) or not (
            len(names) == len(values) == len(tops)
        ):
            raise RemoteError(
                f"{self.server.base} does not give tokens, token_logprobs and top_logprobs side by side, "
                "so it cannot be said which tokens greedy decoding would have written"
            )
        for extra in dict.fromkeys((written, 0)):  # the end of an answer is listed by some servers
            end = len(names) - extra
            count = align.tokens_behind([str(n) for n in names[:end]], text, border)
            if count is not None:
                break
        if count is None:
            raise RemoteError(
                f"{self.server.base} names tokens that do not show where {text[border:]!r:.60} begins: {names[-8:]!r:.200}"
            )
        if count and rolling and values[end - count] is None:
            count -= 1  # no BOS before it
        if count == 0:
            return Score(0.0, True, 0) if rolling else Score(_NONE, False, 0, "empty_choice")
        chosen = values[end - count : end]
        if chosen[0] is None:
            raise ValueError(
                f"{text!r:.60}: nothing stands before the first token that is scored, and {self.server.base} puts no BOS "
                "there: give a context"
            )
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in chosen):
            raise RemoteError(f"{self.server.base} gives log-probabilities that are no numbers: {chosen!r:.100}")
        best = tops[end - count : end]
        if not all(isinstance(top, dict) and top for top in best):
            raise RemoteError(
                f"{self.server.base} gives no top_logprobs, so it is not known what greedy decoding writes"
            )
        greedy = all(v >= max(top.values()) for v, top in zip(chosen, best, strict=True))
        return Score(math.fsum(chosen), greedy, count)

    def _lacks(self, what: str) -> str:
        return (
            f"Log-likelihoods need {what}, which gangpao and vLLM have and llama-server has not: take such a server, or tasks "
            "that only generate"
        )

    # --- texts

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Generated]]:
        """Messages are a chat, a text goes on. Raises RemoteError where the server refuses."""
        for i, (answer, usage) in each(self._generate, prompts, self._concurrency):
            self._count(usage)
            yield i, answer

    def _generate(self, prompt: Prompt) -> tuple[Generated, Any]:
        chat = prompt.messages is not None
        what: dict[str, Any] = {"messages": _messages(prompt)} if chat else {"prompt": prompt.text}
        what["temperature"] = prompt.temperature
        if prompt.top_p != 1:
            what["top_p"] = prompt.top_p
        what |= prompt.sampling
        if prompt.seed is not None:
            what["seed"] = prompt.seed
        said = Thinking(think=prompt.think, think_budget=prompt.think_budget)
        if chat and said.on is not None:
            what["chat_template_kwargs"] = said.variables()
        if chat and prompt.think_budget is not None:
            what["thinking_budget"] = prompt.think_budget
        path = "/chat/completions" if chat else "/completions"
        try:
            answer = self._write(path, what, prompt.max_tokens, prompt.stop)
        except RemoteError as error:
            if too_long(error):
                return Generated("", "too_long"), None
            raise
        choice, usage = _choice(answer), answer.get("usage")
        message = choice.get("message") if chat else {"content": choice.get("text")}
        if not isinstance(message, dict):
            raise RemoteError(f"{self.server.base} sent an answer without a message: {choice!r:.200}")
        return generated(message, str(choice.get("finish_reason") or ""), usage, prompt.stop), usage

    def _count(self, usage: Any) -> None:
        """Take in what a server says that it read and wrote; what is missing counts nothing."""
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        cached = whole_number(details, "cached_tokens", 0)
        self.usage.prompt += max(0, whole_number(usage, "prompt_tokens", 0) - cached)
        self.usage.cached += cached
        self.usage.completion += whole_number(usage, "completion_tokens", 0)

    def _write(self, path: str, body: dict[str, Any], max_tokens: int, stop: Sequence[str]) -> dict[str, Any]:
        """The answer, asked for in the words that this server takes."""
        while True:
            name, stops = self._limit_name if path == "/chat/completions" else "max_tokens", self._stops
            sent = list(stop[:stops])
            try:
                return self._ask(path, body | {name: max_tokens} | ({"stop": sent} if sent else {}))
            except RemoteError as error:
                if error.status not in (400, 422):
                    raise
                if name == "max_tokens" and "max_completion_tokens" in str(error):
                    self._limit_name = "max_completion_tokens"
                elif len(sent) > MANY_STOPS and "stop" in str(error).lower():
                    self._stops = MANY_STOPS  # the others are looked for here
                else:
                    raise

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.server.ask(path, {"model": self.facts.name, **body, **self._extra})
        if not isinstance(answer, dict):
            raise RemoteError(f"{self.server.base} sent something that is not an answer: {answer!r:.200}")
        return answer


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    """A conversation as servers take it; a content with pictures in parts."""
    messages = [dict(message) for message in prompt.messages or ()]
    for message in messages if prompt.pictures else ():
        pieces = cut(str(message.get("content") or ""), {c: [c] for c in prompt.pictures})
        message["content"] = [
            {"type": "text", "text": piece} if isinstance(piece, str) else as_part(prompt.pictures[str(piece[0])])
            for piece in pieces
        ]
    return messages


def _choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RemoteError(f"the server sent an answer without a choice: {answer!r:.200}")
    return choices[0]


def generated(message: Mapping[str, Any], finish: str, usage: Any, stop: Sequence[str]) -> Generated:
    """A message of a server as an answer: its thought apart, whether it came in a field of its own or between marks."""
    thought, words = texts_of(message)
    inner, text = split(words, _splitter(words)) if not thought else ("", words)
    thought = thought or inner
    if not text and isinstance(message.get("refusal"), str):
        text = message["refusal"]
    kept = text[: min((at for one in stop if one and (at := text.find(one)) >= 0), default=len(text))]
    finish = "stop" if len(kept) < len(text) else finish
    tokens = whole_number(usage, "completion_tokens", 0)
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    counted = whole_number(details, "reasoning_tokens", 0)
    if thought and not counted:  # this server does not count them: by the share of its bytes
        size = len(thought.encode("utf-8", "replace"))
        counted = round(tokens * size / (size + len(text.encode("utf-8", "replace"))))
    return Generated(
        kept, finish, tokens, whole_number(usage, "prompt_tokens", 0), thought, counted,
        in_thought=finish == "length" and not text.strip() and bool(thought or counted),
    )  # fmt: skip


def _splitter(text: str) -> Splitter:
    """What takes a thought out of a text whose server left it there: by the marks that are in it, of which a template may have
    written the opening one at the end of the prompt."""
    head = text.lstrip()
    for marks in KNOWN:
        if head.startswith(marks.begin):
            return Splitter(marks)
    for marks in KNOWN:
        before, found, after = text.partition(marks.end)
        # On a line of its own, or at the end of one: a text that explains the mark has words behind it.
        if found and marks.begin not in before and not after.partition("\n")[0].strip():
            return Splitter(marks, opened=True)
    return Splitter(None)

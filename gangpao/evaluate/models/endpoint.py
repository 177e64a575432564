"""Any OpenAI-compatible URL as a model that is evaluated: texts scored, texts written, many at once.

    score       /completions with echo and log-probabilities: the prompt is context and continuation, and nothing is written
    generate    /chat/completions for messages, /completions for a text

What servers do. gangpao (run): echoes with exact bytes and takes max_tokens 0. llama-server (run): takes `echo` in silence and
leaves the prompt out, and writes one token where none is asked for, so what comes back is looked at before it is believed.
vLLM (from its documents): echoes, names half characters U+FFFD; its offsets drift by them, so they are not used (align.py).
OpenAI: its thinking models want max_completion_tokens, and it takes four stop strings.

What it gives up: log-likelihoods from a server that does not echo.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gangpao.evaluate.models import align
from gangpao.evaluate.models.answers import TOO_LONG, Generated, Messages, OnAnswer, Score, shortened
from gangpao.evaluate.models.many import each
from gangpao.evaluate.models.usage import Price, Usage
from gangpao.evaluate.results import ModelFacts
from gangpao.openai_client import Flags, Patience, RemoteError, Server, texts_of, too_long, whole_number
from gangpao.text.thoughts import KNOWN, Splitter, split

# A run of hours outlives a server that is started anew.
PATIENCE = Patience(wait_s=600.0, broken=5)
MANY_STOPS = 4  # as many as every server takes


class Endpoint:
    """A model of a server. Close it when done.

    model: None takes the server's only one. extra: fields for every request, for example chat_template_kwargs.
    Raises RemoteError (a ValueError) where the server cannot be asked, or has several models and none is named.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        key: str | None = None,
        *,
        concurrency: int = 4,
        patience: Patience = PATIENCE,
        price: Price | None = None,
        extra: Mapping[str, Any] | None = None,
        flags: Flags = Flags(url="--model", model="--model-name"),  # noqa: B008  (frozen)
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.server = Server(
            url, key, True, patience=patience, flags=flags, on_wait=on_wait, connections=max(concurrency, 1)
        )
        self.usage = Usage(price)
        self._concurrency = concurrency
        self._extra = dict(extra or {})
        self._least = 0  # tokens that have to be written where only the prompt is of interest
        self._limit_name = "max_tokens"
        self._stops: int | None = None  # as many stop strings as the server takes
        try:
            self.model = self.server.pick(model)
        except BaseException:
            self.server.close()
            raise

    @property
    def facts(self) -> ModelFacts:
        """Who answers: a name and an address, without key."""
        return ModelFacts(name=self.model, kind="endpoint", url=self.server.base)

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    # --- scores

    def score(
        self, pairs: Sequence[tuple[str, str]], *, on_score: Callable[[int, Score | None], Any] | None = None
    ) -> list[Score | None]:
        """For each (context, continuation) what the continuation is worth behind the context; None where the two do not fit into
        the server's context. A token that lies across the border counts as the continuation's.

        Raises ValueError for a continuation that is empty or has nothing before it, and RemoteError naming what the server lacks.
        """
        for number, (_, continuation) in enumerate(pairs):
            if not continuation:
                raise ValueError(f"pair {number}: the continuation is empty, so there is nothing to score")
        scores: list[Score | None] = [None] * len(pairs)
        # The first alone: it finds out what the server takes, and a server that cannot do it is asked once.
        for part, threads in ((range(len(pairs))[:1], 1), (range(len(pairs))[1:], self._concurrency)):
            for place, score in each(self._score, [pairs[i] for i in part], threads):
                scores[part[place]] = score
                if on_score is not None:
                    on_score(part[place], score)
        return scores

    def _score(self, pair: tuple[str, str]) -> Score | None:
        context, text = pair[0], pair[0] + pair[1]
        body = {"prompt": text, "echo": True, "logprobs": 1, "temperature": 0.0}
        try:
            answer = self._read(body)
        except RemoteError as error:
            if too_long(error):
                return None
            if error.status in (404, 405, 501):
                raise RemoteError(f"{error}. {self._lacks('/completions')}", error.status) from None
            raise
        self.usage.add(answer.get("usage"))
        choice = _choice(answer)
        if not str(choice.get("text") or "").startswith(text):
            raise RemoteError(f"{self.server.base} leaves the prompt out of what it answers. {self._lacks('echo')}")
        told = choice.get("logprobs")
        if not isinstance(told, dict) or not isinstance(told.get("token_logprobs"), list):
            raise RemoteError(
                f"{self.server.base} gives no token_logprobs. {self._lacks('log-probabilities of prompts')}"
            )
        written = whole_number(answer.get("usage"), "completion_tokens", self._least) if self._least else 0
        return self._counted(told, text, len(context), written)

    def _read(self, body: dict[str, Any]) -> dict[str, Any]:
        """A completion that writes as little as the server lets us."""
        try:
            return self._ask("/completions", body | {"max_tokens": self._least})
        except RemoteError as error:
            if self._least or error.status not in (400, 422) or too_long(error):
                raise
        answer = self._ask("/completions", body | {"max_tokens": 1})
        self._least = 1
        return answer

    def _counted(self, told: Mapping[str, Any], text: str, border: int, written: int) -> Score:
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
        if not count:
            raise RemoteError(
                f"{self.server.base} names tokens that do not show where {text[border:]!r:.60} begins: {names[-8:]!r:.200}"
            )
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

    def generate(
        self,
        prompts: Sequence[str | Messages],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        on_answer: OnAnswer | None = None,
        **sampling: Any,
    ) -> list[Generated]:
        """One text a prompt: messages are a chat, a text goes on. sampling: other fields of the API (top_p ...).

        A prompt that does not fit ends as too_long. Raises RemoteError where the server refuses.
        """
        body = {"temperature": temperature, **({} if seed is None else {"seed": seed}), **sampling}
        answers: dict[int, Generated] = {}

        def work(prompt: str | Messages) -> Generated:
            return self._generate(prompt, body, max_tokens, stop)

        for index, answer in each(work, prompts, self._concurrency):
            answers[index] = answer
            if on_answer is not None:
                on_answer(index, answer)
        return [answers[i] for i in range(len(prompts))]

    def _generate(
        self, prompt: str | Messages, body: Mapping[str, Any], max_tokens: int, stop: Sequence[str]
    ) -> Generated:
        chat = not isinstance(prompt, str)
        path = "/chat/completions" if chat else "/completions"
        what: dict[str, Any] = {"messages": [dict(m) for m in prompt]} if chat else {"prompt": prompt}  # type: ignore[arg-type]
        try:
            answer = self._write(path, what | dict(body), max_tokens, stop)
        except RemoteError as error:
            if too_long(error):
                return Generated("", finish=TOO_LONG)
            raise
        self.usage.add(answer.get("usage"))
        choice = _choice(answer)
        message = choice.get("message") if chat else {"content": choice.get("text")}
        if not isinstance(message, dict):
            raise RemoteError(f"{self.server.base} sent an answer without a message: {choice!r:.200}")
        return generated(message, str(choice.get("finish_reason") or ""), answer.get("usage"), stop)

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
        answer = self.server.ask(path, {"model": self.model, **body, **self._extra})
        if not isinstance(answer, dict):
            raise RemoteError(f"{self.server.base} sent something that is not an answer: {answer!r:.200}")
        return answer


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
    kept = shortened(text, stop)
    finish = "stop" if len(kept) < len(text) else finish
    tokens = whole_number(usage, "completion_tokens", 0)
    details = usage.get("completion_tokens_details") if isinstance(usage, dict) else None
    counted = whole_number(details, "reasoning_tokens", 0)
    if thought and not counted:
        size = len(thought.encode("utf-8", "replace"))
        counted = round(tokens * size / (size + len(text.encode("utf-8", "replace"))))
    cached = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    return Generated(
        kept,
        thought,
        finish,
        tokens,
        counted,
        in_thought=finish == "length" and not text.strip() and bool(thought or counted),
        prompt_tokens=whole_number(usage, "prompt_tokens", 0),
        cached_tokens=whole_number(cached, "cached_tokens", 0),
    )


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

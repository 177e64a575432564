"""POST /v1/completions, /tokenize and /detokenize: text as it is, without a chat template.

A prompt is a text, in which special pieces count as such, or token ids. Several prompts in one request are answered side by side;
choice i * n + j is the j-th answer to the i-th prompt. What it gives up: suffix (no model here is known to fill in the middle),
best_of, and log-probabilities of the prompt.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from gangpao.engine.answer import Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sample import TokenLogprob
from gangpao.engine.sequences import Handle, Request
from gangpao.serve.answers import answers
from gangpao.serve.answers.answers import Answers
from gangpao.serve.api.schema import (
    MAX_INPUTS,
    MAX_N,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
    unknown,
)
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server
from gangpao.text.templates.chat import Message
from gangpao.text.tokenizer import Tokenizer

log = logging.getLogger("gangpao.serve")
_REFUSED = {"suffix": "this server does not fill in the middle", "best_of": "use n", "prompt_logprobs": "not offered"}


async def complete(server: Server, body: dict[str, Any], client: str) -> dict[str, Any]:
    """The whole answer as a text_completion. Raises ApiError; cancelling the task cancels the answers."""
    asked = _parse(body)
    async with server.models.use(asked.model) as loaded:
        requests, heads = await _requests(server, loaded, asked, client)
        with Answers(loaded, requests, server.metrics) as running:
            choices = [_Choice(loaded.engine.tokenizer, head, asked) for head in heads]
            async for i, piece in running:
                choices[i].hear(piece)
            return {
                **_head(loaded),
                "choices": [c.whole(i) for i, c in enumerate(choices)],
                "usage": answers.usage(running.handles, _firsts(running, asked)),
                "timings": answers.timings(server, running.handles),
            }


async def stream(server: Server, body: dict[str, Any], client: str) -> AsyncGenerator[dict[str, Any], None]:
    """The answer in chunks; like chat.answer."""
    asked = _parse(body)
    async with contextlib.AsyncExitStack() as stack:
        loaded = await stack.enter_async_context(server.models.use(asked.model))
        requests, heads = await _requests(server, loaded, asked, client)
        running = stack.enter_context(Answers(loaded, requests, server.metrics))
        head = _head(loaded)
        empty = {"usage": None} if asked.usage_wanted else {}
        choices = [_Choice(loaded.engine.tokenizer, text, asked) for text in heads]
        for i, text in enumerate(heads):
            yield {**head, "choices": [{"index": i, "text": text, "logprobs": None, "finish_reason": None}], **empty}
        async for i, piece in running:
            last = {"timings": answers.timings(server, running.handles)} if piece.finish_reason else {}
            yield {**head, "choices": [choices[i].part(i, piece)], **empty, **last}
        if asked.usage_wanted:
            counts = answers.usage(running.handles, _firsts(running, asked))
            yield {**head, "choices": [], "usage": counts, "timings": answers.timings(server, running.handles)}


def _parse(body: dict[str, Any]) -> CompletionRequest:
    asked = parse(CompletionRequest, body)
    for name, why in _REFUSED.items():
        if body.get(name) not in (None, "", 1):
            raise ApiError(400, f"{name}: {why}", param=name, code="unsupported_parameter")
    if extra := unknown(body, CompletionRequest):
        log.info("fields that mean nothing here were ignored: %s", ", ".join(extra))
    return asked


def _firsts(running: Answers, asked: CompletionRequest) -> Sequence[Handle]:
    return running.handles[:: asked.n or 1]


async def _requests(
    server: Server, loaded: LoadedModel, asked: CompletionRequest, client: str
) -> tuple[list[Request], list[str]]:
    """What to submit, and what each choice's text begins with (the prompt, when echo)."""
    n = asked.n or 1
    params = asked.params(logprobs=asked.logprobs)
    prompts = inputs(asked.prompt, "prompt", MAX_N)
    if len(prompts) * n > MAX_N:
        raise ApiError(400, f"{len(prompts)} prompts times n = {n} are more than {MAX_N} answers", param="n")
    answers.check_count(server.settings.places, len(prompts) * n)
    ids = await to_ids(server, loaded, prompts, "prompt")
    requests = [
        Request(one, p, client=client, continues=True, speculate=asked.speculate is not False)
        for one in ids
        for p in answers.choices_of(params, n)
    ]
    tokenizer = loaded.engine.tokenizer
    heads = [
        (p if isinstance(p, str) else tokenizer.decode(p, keep_special=True)) if asked.echo else ""
        for p in prompts for _ in range(n)
    ]  # fmt: skip
    return requests, heads


def inputs(
    value: str | list[str] | list[int] | list[list[int]], name: str, most: int = MAX_INPUTS
) -> list[str | list[int]]:
    """One text or one list of ids, or several, as a list. Raises ApiError (400) for none and for too many."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [value]
    several = cast(list[str | list[int]], value)
    if not 1 <= len(several) <= most:
        raise ApiError(400, f"{name}: 1 to {most} of them, not {len(several)}", param=name)
    return several


async def to_ids(server: Server, loaded: LoadedModel, prompts: Sequence[str | list[int]], name: str) -> list[list[int]]:
    """Token ids of texts (special pieces count, BOS where the model expects it) or of ids, each with room for an answer behind it.
    Raises ApiError (400)."""
    answers.check_text(loaded, max((len(p) for p in prompts if isinstance(p, str)), default=0))
    answers.check_length(loaded, max((len(p) for p in prompts if not isinstance(p, str)), default=0))

    def work(engine: Engine) -> list[list[int]]:
        out = []
        for prompt in prompts:
            ids = _encode(engine.tokenizer, prompt) if isinstance(prompt, str) else prompt
            check_ids(engine, ids, name)
            if not ids:
                raise ValueError(f"{name}: it is empty")
            out.append(ids)
        return out

    found = await answers.prepare(loaded, work, loaded.engine)
    answers.check_length(loaded, max(map(len, found)))
    return found


def check_ids(engine: Engine, ids: Sequence[int], name: str) -> None:
    """Raises ValueError for an id that the model does not have."""
    size = engine.model.config.vocab_size
    if ids and not (min(ids) >= 0 and max(ids) < size):
        raise ValueError(f"{name}: token ids go from 0 to {size - 1}")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=tokenizer.adds_bos, parse_special=True)


def _head(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": loaded.name,
        "system_fingerprint": answers.fingerprint(),
    }


class _Choice:
    """One answer while it grows. Log-probabilities have this API's own old form: lists side by side, offsets in characters."""

    def __init__(self, tokenizer: Tokenizer, head: str, asked: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._texts = [head]
        self._entries: list[TokenLogprob] = []
        self._wanted = asked.logprobs is not None
        self._offset = len(head)
        self._reason: str | None = None

    def hear(self, piece: Piece) -> None:
        self._texts.append(piece.text)
        self._entries += piece.logprobs
        self._reason = piece.finish_reason

    def whole(self, index: int) -> dict[str, Any]:
        """The choice of an answer that has ended."""
        logprobs = self._logprobs(self._entries) if self._wanted else None
        return {"index": index, "text": "".join(self._texts), "logprobs": logprobs, "finish_reason": self._reason}

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk."""
        logprobs = self._logprobs(piece.logprobs) if self._wanted and piece.logprobs else None
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        name = self._tokenizer
        tokens = [answers.token_text(name, e.id) for e in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [round(e.logprob, 6) for e in entries],
            "top_logprobs": [{answers.token_text(name, i): round(v, 6) for i, v in e.top} for e in entries],
            "text_offset": offsets,
        }


# --- tokens


async def tokenize(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Ids of a text, or of messages as the chat template makes them."""
    asked = parse(TokenizeRequest, body)
    text = asked.prompt if asked.prompt is not None else asked.content
    if (text is None) == (asked.messages is None):
        raise ApiError(400, "prompt or messages: exactly one of them is needed", param="prompt")
    messages: list[Message] = []
    for i, m in enumerate(asked.messages or ()):
        if not isinstance(m.content, str):
            raise ApiError(400, f"messages.{i}: content must be a text here", param="messages")
        messages.append(Message(role="system" if m.role == "developer" else m.role, content=m.content))

    def work(engine: Engine) -> list[int]:
        if text is None:
            return engine.template.encode(engine.tokenizer, messages)
        bos = engine.tokenizer.adds_bos and asked.add_special_tokens is not False
        return engine.tokenizer.encode(text, add_bos=bos, parse_special=asked.parse_special is not False)

    async with server.models.use(asked.model) as loaded:
        answers.check_size(len(text or "") + sum(len(m["content"]) for m in messages))
        ids = await answers.prepare(loaded, work, loaded.engine)
        out: dict[str, Any] = {"count": len(ids), "max_model_len": loaded.engine.context, "tokens": ids}
        if asked.with_pieces:
            out["pieces"] = [answers.token_text(loaded.engine.tokenizer, i) for i in ids]
        return out


async def detokenize(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """The text of ids, special pieces spelled out. content is the same under llama.cpp's name for it."""
    asked = parse(DetokenizeRequest, body)

    def work(engine: Engine) -> str:
        check_ids(engine, asked.tokens, "tokens")
        return engine.tokenizer.decode(asked.tokens, keep_special=True, start=False)

    async with server.models.use(asked.model) as loaded:
        text = await answers.prepare(loaded, work, loaded.engine)
    return {"prompt": text, "content": text}

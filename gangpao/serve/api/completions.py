"""POST /v1/completions, /infill, /tokenize and /detokenize: text as it is, without a chat template.

    prompt      a text, in which special pieces count as such, or token ids; with a suffix, what is written lies between the two
    several     prompts of one request are answered side by side; choice i * n + j is the j-th answer to the i-th prompt
    echo        the prompt is part of the choice's text; with logprobs, of its log-probabilities, too
    max_tokens  0 reads the prompt and says no more, -1 goes on as long as the context allows

What it gives up: best_of, and a suffix for models without marks for a hole (text/fill.py).
"""

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from gangpao.engine.answer import Piece
from gangpao.engine.generate import Engine
from gangpao.engine.sample import TokenLogprob
from gangpao.engine.sequences import Handle, Request
from gangpao.serve.answers import answers, logprobs
from gangpao.serve.answers import chat as core
from gangpao.serve.answers.answers import Answers
from gangpao.serve.answers.chat import Chat
from gangpao.serve.answers.ends import Ends
from gangpao.serve.answers.forms import Form
from gangpao.serve.api import constraints, openai_chat
from gangpao.serve.api.schema import (
    MAX_INPUTS,
    CompletionRequest,
    DetokenizeRequest,
    InfillRequest,
    TokenizeRequest,
    parse,
    unknown,
)
from gangpao.serve.http.errors import ApiError
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server
from gangpao.text.fill import fill_prompt
from gangpao.text.tokenizer import Tokenizer

log = logging.getLogger("gangpao.serve")
Prompt = str | list[int]
Files = Sequence[tuple[str, str]]
_OWN = ("echo", "prompt_logprobs")  # of the constraints of other servers, what is a field here
_NO_FIGURES = "what fills a hole comes without log-probabilities; /v1/completions with a suffix gives its own"
_NOT_IN_HOLES = {
    "echo": "what fills a hole does not repeat what is around it",
    "n": "a hole is filled once; ask again for another answer",
    "logprobs": _NO_FIGURES,
    "n_probs": _NO_FIGURES,
    "prompt_logprobs": "a prompt with a hole has no log-probabilities of its own",
}


async def complete(server: Server, body: dict[str, Any], client: str) -> dict[str, Any]:
    """The whole answer as a text_completion. Raises ApiError; cancelling the task cancels the answers."""
    async with _running(server, _parse(body), client) as job:
        async for i, piece in job.answers:
            job.choices[i].take(piece)
        return {
            **_head(job.model),
            "choices": [c.new() for c in job.choices],
            "usage": answers.usage(job.answers.handles, job.firsts),
            "timings": answers.timings(server, job.answers.handles),
        }


async def stream(
    server: Server, body: dict[str, Any], client: str, files: Files | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """The answer in chunks; like chat.answer. files: others of the project, for a model that fills in (fill.py)."""
    asked = _parse(body)
    async with _running(server, asked, client, files) as job:
        head = _head(job.model)
        empty = {"usage": None} if asked.usage_wanted else {}
        for choice in job.choices:
            if first := choice.first():
                yield {**head, "choices": [first], **empty}
        async for i, piece in job.answers:
            job.choices[i].take(piece)
            last = {"timings": answers.timings(server, job.answers.handles)} if piece.finish_reason else {}
            yield {**head, "choices": [job.choices[i].new()], **empty, **last}
        if asked.usage_wanted:
            counts = answers.usage(job.answers.handles, job.firsts)
            yield {
                **head, "choices": [], "usage": counts, "timings": answers.timings(server, job.answers.handles),
            }  # fmt: skip


class _Asked(NamedTuple):
    """A request's fields, and what restricts its answers."""

    fields: CompletionRequest
    form: Form | None
    ends: Ends

    @property
    def usage_wanted(self) -> bool:
        return self.fields.usage_wanted

    @property
    def prompt_logprobs(self) -> int | None:
        """Alternatives that the prompt's log-probabilities need, for any of the two forms in which they are asked for."""
        wanted = [self.fields.prompt_logprobs, self.fields.logprobs if self.fields.echo else None]
        return max((n for n in wanted if n is not None), default=None)


def _parse(body: dict[str, Any]) -> _Asked:
    asked = parse(CompletionRequest, body)
    form = None if asked.response_format is None else Form("json", asked.response_format)
    limits = constraints.read({name: value for name, value in body.items() if name not in _OWN}, form)
    if extra := unknown(body, CompletionRequest, constraints.NAMES):
        log.info("fields that mean nothing here were ignored: %s", ", ".join(extra))
    return _Asked(asked, limits.form, limits.ends)


@dataclass(slots=True)
class _Job:
    """A request that is being answered."""

    model: str
    answers: Answers
    choices: list["_Choice"]
    n: int

    @property
    def firsts(self) -> Sequence[Handle]:
        """One answer to each prompt."""
        return self.answers.handles[:: self.n]


@contextlib.asynccontextmanager
async def _running(
    server: Server, asked: _Asked, client: str, files: Files | None = None
) -> AsyncGenerator[_Job, None]:
    """The request with everything submitted, or on its way to be. Raises ApiError; what has not ended is cancelled at the end."""
    async with server.models.use(asked.fields.model) as loaded:
        requests, heads = await _requests(server, loaded, asked, client, files)
        with Answers(loaded, requests, server.metrics) as running:
            choices = [_Choice(loaded.engine.tokenizer, head, asked, running, i) for i, head in enumerate(heads)]
            yield _Job(loaded.name, running, choices, asked.fields.n or 1)


async def _requests(
    server: Server, loaded: LoadedModel, asked: _Asked, client: str, files: Files | None
) -> tuple[list[Request], list[str]]:
    """What to submit, and what each choice's text begins with (the prompt, when echo)."""
    fields = asked.fields
    n = fields.n or 1
    prompts = inputs(fields.prompt, "prompt", server.settings.max_prompts, "--max-prompts")
    if fields.suffix or files is not None:
        ids, asked = await _filled(loaded, asked, prompts, files)
    else:
        ids = await to_ids(loaded, prompts, "prompt")
    chat = Chat((), form=asked.form, ends=asked.ends, n=n * len(prompts))
    rules = iter(await core.constraints_of(loaded, chat))
    params = fields.params(fields.logprobs, loaded.engine.recommended)
    shift = loaded.engine.shift() if loaded.limits.context_shift else None
    requests = [
        Request(
            one, p, client=client, continues=True, speculate=fields.speculate is not False, constraint=next(rules)[0],
            prompt_logprobs=asked.prompt_logprobs, prompt_only=fields.limit == 0, adapters=loaded.adapters,
            shift=shift,
        )
        for one in ids for p in answers.choices_of(params, n)
    ]  # fmt: skip
    tokenizer = loaded.engine.tokenizer
    heads = [
        (p if isinstance(p, str) else tokenizer.decode(p, keep_special=True)) if fields.echo else ""
        for p in prompts for _ in range(n)
    ]  # fmt: skip
    return requests, heads


async def _filled(
    loaded: LoadedModel, asked: _Asked, prompts: Sequence[Prompt], files: Files | None
) -> tuple[list[list[int]], _Asked]:
    """Ids of prompts with a hole before the suffix, and the request with the marks that end what goes into it. Raises ApiError."""
    marks, suffix = loaded.engine.fill, asked.fields.suffix or ""
    if marks is None:
        raise ApiError(
            400, f"{loaded.name} has no marks for a hole in a text; models for code such as qwen2.5-coder have them",
            field="suffix", code="unsupported_parameter",
        )  # fmt: skip
    if asked.fields.echo or asked.prompt_logprobs is not None:
        raise ApiError(400, "a prompt with a hole has no echo and no log-probabilities of its own", field="suffix")
    before = [p for p in prompts if isinstance(p, str)]
    if len(before) < len(prompts):
        raise ApiError(400, "goes with prompts that are texts, not token ids", field="suffix")
    size = len(suffix) + sum(len(name) + len(text) for name, text in files or ())
    answers.check_text(loaded, size + max(map(len, before)))

    def work(engine: Engine) -> list[list[int]]:
        return [fill_prompt(engine.tokenizer, marks, text, suffix, files) for text in before]

    ids = await answers.prepare(loaded, work, loaded.engine)
    answers.check_length(loaded, max(map(len, ids)))
    stop = tuple({*asked.ends.stop_ids, *marks.ends} - loaded.engine.tokenizer.end_ids)
    return ids, asked._replace(ends=Ends(asked.ends.min_tokens, asked.ends.ignore_eos, stop))


def inputs(
    value: str | list[str] | list[int] | list[list[int]], name: str, most: int = MAX_INPUTS, option: str = ""
) -> list[Prompt]:
    """One text or one list of ids, or several, as a list. Raises ApiError (400) for none and for too many (option raises that)."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [value]
    several = cast(list[Prompt], value)
    if not 1 <= len(several) <= most:
        more = f"; start the server with a larger {option}" if option and several else ""
        raise ApiError(400, f"{name}: 1 to {most} of them, not {len(several)}{more}", param=name)
    return several


async def to_ids(
    loaded: LoadedModel, prompts: Sequence[Prompt], name: str, cut: "Cut | None" = None
) -> list[list[int]]:
    """Token ids of texts (special pieces count, BOS where the model expects it) or of ids, each with room for an answer behind it.

    cut: what is done with those that are too long. Raises ApiError (400).
    """
    texts = [p for p in prompts if isinstance(p, str)]
    most = None if cut is None else cut.tokens * loaded.longest_piece  # characters that can matter
    if cut is None:
        answers.check_text(loaded, max(map(len, texts), default=0))
        answers.check_length(loaded, max((len(p) for p in prompts if not isinstance(p, str)), default=0))
    else:
        answers.check_size(max(map(len, texts), default=0))

    def work(engine: Engine) -> list[list[int]]:
        out = []
        for prompt in prompts:
            if isinstance(prompt, str):
                ids = _encode(engine.tokenizer, prompt if cut is None or cut.end else prompt[:most])
            else:
                ids = prompt
            check_ids(engine, ids, name)
            if not ids:
                raise ApiError(400, "it is empty; give at least one token", field=name)
            out.append(ids if cut is None else cut.of(ids))
        return out

    found = await answers.prepare(loaded, work, loaded.engine)
    answers.check_length(loaded, max(map(len, found)))
    return found


class Cut(NamedTuple):
    """Keep at most `tokens` of a prompt: its beginning, or its end."""

    tokens: int
    end: bool = False

    def of(self, ids: list[int]) -> list[int]:
        """The ids that stay."""
        return ids[-self.tokens :] if self.end else ids[: self.tokens]


def check_ids(engine: Engine, ids: Sequence[int], name: str) -> None:
    """Raises ApiError (400) for an id that the model does not have."""
    size = engine.model.config.vocab_size
    if ids and not (min(ids) >= 0 and max(ids) < size):
        raise ApiError(400, f"token ids go from 0 to {size - 1}", field=name)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=tokenizer.adds_bos, parse_special=True)


def _head(model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": answers.fingerprint(),
    }


class _Choice:
    """One answer while it grows: its text with the echoed prompt before it, and log-probabilities in this API's own old form."""

    def __init__(self, tokenizer: Tokenizer, head: str, asked: _Asked, running: Answers, index: int) -> None:
        self._tokenizer = tokenizer
        self._asked = asked.fields
        self._scored = asked.prompt_logprobs is not None
        self._running, self._index = running, index
        self._head = head
        self._prompt_left = True  # whether what belongs to the prompt has not been taken in yet
        self._clear()

    def _clear(self) -> None:
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._entries: list[TokenLogprob | None] = []
        self._offsets: list[int] = []
        self._prompt: list[TokenLogprob | None] | None = None
        self._reason: str | None = None

    def first(self) -> dict[str, Any] | None:
        """What a stream begins with: the echoed prompt, unless it waits for its log-probabilities."""
        if self._scored:
            return None
        self._prompt_left = False
        self._texts.append(self._head)
        return self.new()

    def take(self, piece: Piece) -> None:
        """Take a piece in; the first brings the prompt along, whose log-probabilities are known now."""
        if self._prompt_left:
            self._prompt_left = False
            self._take_prompt()
        self._texts.append(piece.text)
        self._ids += piece.ids
        self._entries += piece.logprobs
        self._offsets += [len(self._head) + at for at in piece.offsets]
        self._reason = piece.finish_reason

    def _take_prompt(self) -> None:
        scores = self._running.handles[self._index].prompt_logprobs
        self._texts.append(self._head)
        if self._asked.prompt_logprobs is not None:
            self._prompt = scores
        if self._asked.echo and self._scored:
            ids = self._running.requests[self._index].prompt_ids
            self._ids += ids
            self._entries += scores
            self._offsets += logprobs.prompt_offsets(self._tokenizer, ids, self._head)

    def new(self) -> dict[str, Any]:
        """The choice of what was taken in since the last call."""
        alternatives, form = self._asked.logprobs, None
        if alternatives is not None and self._ids:
            form = logprobs.completion_form(self._tokenizer, self._ids, self._entries, self._offsets, alternatives)
        out: dict[str, Any] = {
            "index": self._index, "text": "".join(self._texts), "logprobs": form, "finish_reason": self._reason,
        }  # fmt: skip
        if self._prompt is not None:
            out["prompt_logprobs"] = logprobs.prompt_form(
                self._tokenizer, self._prompt, self._asked.prompt_logprobs or 0
            )
        self._clear()
        return out


# --- llama-server's way to ask for what lies in a hole


async def infill(server: Server, body: dict[str, Any], client: str) -> AsyncGenerator[dict[str, Any], None]:
    """The pieces of what fills a hole, in llama-server's form; the last has stop: true and the figures. Raises ApiError."""
    asked = parse(InfillRequest, body)
    constraints.refuse(body, _NOT_IN_HOLES)
    limit = asked.max_tokens if asked.n_predict is None else asked.n_predict
    taken = CompletionRequest.model_fields.keys() | constraints.NAMES
    plain = {name: value for name, value in body.items() if name in taken}
    plain |= {
        "prompt": asked.input_prefix + (asked.prompt or ""), "suffix": asked.input_suffix, "stream": True, "n": 1, "echo": False,
        "max_tokens": -1 if limit is None else limit, "stream_options": {"include_usage": True}, "logprobs": None,
    }  # fmt: skip
    files = [(extra.filename or "tmp", extra.text) for extra in asked.input_extra or ()]
    reason = None
    async with contextlib.aclosing(stream(server, plain, client, files)) as chunks:
        async for chunk in chunks:
            for choice in chunk["choices"]:
                reason = choice["finish_reason"] or reason
                if choice["text"]:
                    yield {"index": 0, "content": choice["text"], "stop": False}
            if not chunk["choices"]:
                yield _infilled(chunk, reason)


async def infilled(pieces: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The last piece, with the text of all."""
    texts, last = [], {}
    async with contextlib.aclosing(pieces):
        async for last in pieces:
            texts.append(last["content"])
    return {**last, "content": "".join(texts)}


def _infilled(chunk: dict[str, Any], reason: str | None) -> dict[str, Any]:
    usage, speed = chunk["usage"], chunk["timings"]
    prompt, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "index": 0, "content": "", "stop": True, "model": chunk["model"],
        "stop_type": "limit" if reason == "length" else "eos", "tokens_predicted": usage["completion_tokens"],
        "tokens_evaluated": prompt, "tokens_cached": cached, "truncated": False,
        "timings": speed | {
            "prompt_n": prompt - cached, "prompt_per_second": speed["prefill_tps"],
            "predicted_n": usage["completion_tokens"], "predicted_per_second": speed["decode_tps"],
        },
    }  # fmt: skip


# --- tokens


async def tokenize(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    """Ids of a text, or of messages as the chat template makes them; pictures count as in a chat."""
    asked = parse(TokenizeRequest, body)
    text = asked.prompt if asked.prompt is not None else asked.content
    if (text is None) == (asked.messages is None):
        raise ApiError(400, "prompt or messages: exactly one of them is needed", param="prompt")
    chat = (
        None if asked.messages is None else openai_chat.parse({"model": asked.model, "messages": body["messages"]})[1]
    )

    def work(engine: Engine) -> list[int]:
        bos = engine.tokenizer.adds_bos and asked.add_special_tokens is not False
        return engine.tokenizer.encode(text or "", add_bos=bos, parse_special=asked.parse_special is not False)

    async with server.models.use(asked.model) as loaded:
        answers.check_size(len(text or ""))
        ids = await (answers.prepare(loaded, work, loaded.engine) if chat is None else core.prompt_ids(server, chat))
        out: dict[str, Any] = {"count": len(ids), "max_model_len": loaded.engine.context, "tokens": ids}
        if asked.with_pieces:
            out["pieces"] = [loaded.engine.tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
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

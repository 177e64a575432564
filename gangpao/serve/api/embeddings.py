"""POST /v1/embeddings: the mean of a language model's last hidden states, brought to length 1.

No model here was trained for search; texts that say the same come out nearer than others, and that is all it promises. What it
gives up: `dimensions` below the model's own, because cutting such a vector means nothing.
"""

import asyncio
import base64
import functools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.responses import Response, StreamingResponse

from gangpao.engine.scheduler import Busy
from gangpao.engine.sequences import Handle
from gangpao.serve.api.completions import Cut, inputs, to_ids
from gangpao.serve.api.schema import EmbeddingRequest, parse, unknown
from gangpao.serve.http.errors import ApiError, busy
from gangpao.serve.http.stream import Json
from gangpao.serve.models import LoadedModel
from gangpao.serve.server import Server

log = logging.getLogger("gangpao.serve")
AT_ONCE = 16
Vector = npt.NDArray[np.float32]


async def embed(server: Server, body: dict[str, Any], client: str) -> dict[str, Any]:
    """One vector an input. Raises ApiError; cancelling the task cancels what is left."""
    asked = parse(EmbeddingRequest, body)
    if extra := unknown(body, EmbeddingRequest):
        log.info("fields that mean nothing here were ignored: %s", ", ".join(extra))
    async with server.models.use(asked.model) as loaded:
        size = loaded.engine.model.config.hidden_size
        if asked.dimensions not in (None, size):
            raise ApiError(400, f"dimensions: this model's vectors have {size}, and are not cut", param="dimensions")
        ids = await to_ids(loaded, inputs(asked.input, "input"), "input", _cut(asked, loaded.engine.context - 1))
        write: Callable[[Vector], Any] = _base64 if asked.encoding_format == "base64" else _floats
        vectors = [write(_unit(await _vector(loaded, one, client))) for one in ids]
    total = sum(map(len, ids))
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)],
        "model": loaded.name,
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }


def _cut(asked: EmbeddingRequest, most: int) -> Cut | None:
    """What becomes of texts that are too long. most: tokens that fit."""
    last = asked.truncate_prompt_tokens
    if last == 0:
        raise ApiError(400, "truncate_prompt_tokens: 0 tokens have no vector", param="truncate_prompt_tokens")
    if last is not None:
        return Cut(most if last == -1 else min(last, most), end=True)
    return Cut(most) if asked.truncate else None


def answer_of(head: dict[str, Any], name: str, entries: Sequence[Any]) -> Response:
    """The JSON of `head` with a list `name`, whose entries are written one by one: millions of numbers take seconds."""
    if len(entries) <= AT_ONCE:
        return Json({**head, name: entries})

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(Json(head).body)[:-1] + f',"{name}":['.encode()
        for i, entry in enumerate(entries):
            yield (b"," if i else b"") + bytes(Json(entry).body)
            await asyncio.sleep(0)  # others have their turn
        yield b"]}"

    return StreamingResponse(pieces(), media_type="application/json")


async def _vector(loaded: LoadedModel, ids: list[int], client: str) -> Vector:
    """One text at a time, so that a long list leaves room for others."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Vector] = loop.create_future()

    def put(result: Vector | Exception) -> None:
        if future.done():
            return
        if isinstance(result, Exception):
            future.set_exception(ApiError(500, "the model could not read this text", code="embedding_failed"))
        else:
            future.set_result(result)

    def done(result: Vector | Exception) -> None:
        loop.call_soon_threadsafe(functools.partial(put, result))

    handle: Handle | None = None
    try:
        handle = loaded.scheduler.embed(ids, done, client=client, adapters=loaded.adapters)
        return await future
    except Busy as error:
        raise busy(error.retry_after) from None
    except ValueError as error:
        raise ApiError(400, str(error)[:300], param="input") from None
    finally:
        if handle is not None:
            handle.cancel()


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


def _floats(vector: Vector) -> list[float]:
    return [float(x) for x in vector]


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()

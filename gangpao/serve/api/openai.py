"""OpenAI's routes, and the few that every server of models has: thin, the work is in openai_chat.py, completions.py and
embeddings.py."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import gangpao
from gangpao.serve.answers import chat as core
from gangpao.serve.api import completions, embeddings, schema
from gangpao.serve.api.dialect import respond
from gangpao.serve.api.openai_chat import ChatRequest, ChatWriter, parse
from gangpao.serve.api.schema import Operation
from gangpao.serve.http.errors import ApiError, ErrorForm
from gangpao.serve.http.stream import DONE, Json, client_of, event_stream, read_json, sse, watched
from gangpao.serve.models import ANY_NAME
from gangpao.serve.server import Server

OPERATIONS = {
    "/v1/chat/completions": Operation(
        ChatRequest, "An answer to a conversation; a stream of events with stream: true."
    ),
    "/v1/completions": Operation(schema.CompletionRequest, "Text that goes on from a prompt."),
    "/infill": Operation(schema.InfillRequest, "What lies in a hole of a text, in llama-server's form."),
    "/v1/embeddings": Operation(
        schema.EmbeddingRequest, "Means of the last hidden states, of length 1.", streams=False
    ),
    "/tokenize": Operation(schema.TokenizeRequest, "Token ids of a text.", streams=False),
    "/detokenize": Operation(schema.DetokenizeRequest, "The text of token ids.", streams=False),
}
ERRORS = ErrorForm(("/v1/chat/completions", "/v1/completions", "/infill", "/v1/embeddings", "/tokenize", "/detokenize"))


def routes(server: Server) -> list[Route]:
    """The routes of one server."""

    async def chat(request: Request) -> Response:
        body = await read_json(request)
        asked, chat = parse(body)
        return await respond(
            request, core.answer(server, chat, client_of(request)), ChatWriter(asked), stream=asked.stream is True
        )

    async def complete(request: Request) -> Response:
        body = await read_json(request)
        if body.get("stream") is True:
            return await event_stream(request, _events(completions.stream(server, body, client_of(request))))
        return Json(await watched(request, completions.complete(server, body, client_of(request))))

    async def infill(request: Request) -> Response:
        body = await read_json(request)
        pieces = completions.infill(server, body, client_of(request))
        if body.get("stream") is True:
            return await event_stream(request, _events(pieces))
        return Json(await watched(request, completions.infilled(pieces)))

    async def embed(request: Request) -> Response:
        body = await read_json(request)
        found = await watched(request, embeddings.embed(server, body, client_of(request)))
        return embeddings.answer_of(found, "data", found.pop("data"))

    async def tokenize(request: Request) -> Response:
        return Json(await watched(request, completions.tokenize(server, await read_json(request))))

    async def detokenize(request: Request) -> Response:
        return Json(await watched(request, completions.detokenize(server, await read_json(request))))

    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/infill", infill, methods=["POST"]),
        Route("/v1/embeddings", embed, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        *_about(server),
    ]


def _about(server: Server) -> list[Route]:
    """What is told of the models and of the server itself."""

    async def models(request: Request) -> Response:
        names = [*server.models.names(), *(name for name in server.models.aliases if name != ANY_NAME)]
        return Json({"object": "list", "data": [_model(server, name) for name in names]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        server.models.name_of(name)  # 404 where there is none
        return Json(_model(server, name))

    async def props(request: Request) -> Response:
        return Json(_props(server))

    async def health(request: Request) -> Response:
        return _health(server)

    async def metrics(request: Request) -> Response:
        loaded = server.models.loaded()
        counters = {name: m.scheduler.counters for name, m in loaded.items()}
        sights = {name: m.engine.seeing.counters for name, m in loaded.items() if m.engine.seeing is not None}
        return PlainTextResponse(server.metrics.text(counters, sights), media_type="text/plain; version=0.0.4")

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/props", props, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield sse(chunk)
    yield DONE


def _model(server: Server, name: str) -> dict[str, Any]:
    """One of GET /v1/models. root: the name of its own where it is an alias; parent: the base of an adapter; meta says more about a
    model that is in memory."""
    own = server.models.name_of(name)
    out: dict[str, Any] = {"id": name, "object": "model", "created": int(server.started), "owned_by": "gangpao"}
    if own != name:
        out["root"] = own
    base = server.models.base_of(own)
    if base != own:
        out["parent"] = base
    loaded = server.models.loaded().get(base)
    sees = base in server.models.sights
    modalities = ["text", "image"] if sees else ["text"]
    # Under architecture, OpenRouter's clients and llama.cpp's look for what a model takes.
    out["architecture"] = {"input_modalities": modalities, "output_modalities": ["text"]}
    meta: dict[str, Any] = {"loaded": loaded is not None, "input_modalities": modalities}
    if loaded is not None:
        config = loaded.engine.model.config
        meta |= {
            "context": loaded.engine.context,
            "n_ctx_train": config.max_position_embeddings,
            "n_vocab": config.vocab_size,
            "n_embd": config.hidden_size,
            "memory_bytes": loaded.need,
            "embeddings": "the mean of the last hidden states, of length 1; not trained for search",
        }
    return out | {"meta": meta}


def _props(server: Server) -> dict[str, Any]:
    """What clients of llama-server look for: whether the default model sees, and how many tokens it takes."""
    models = server.models
    name = next(iter(models.files))
    loaded = models.loaded().get(name)
    out: dict[str, Any] = {
        "model_alias": name,
        "modalities": {"vision": name in models.sights, "audio": False},
        "total_slots": server.settings.batch,
        "build_info": f"gangpao-{gangpao.__version__}",
    }
    if loaded is not None:
        out["default_generation_settings"] = {"n_ctx": loaded.engine.context}
        out["chat_template"] = loaded.engine.template.source or ""
    return out


def _health(server: Server) -> Response:
    """200 when the default model answers; 503 while it is being loaded, and where it cannot be."""
    models = server.models
    body: dict[str, Any] = {
        "status": models.state,
        "version": gangpao.__version__,
        "uptime_s": round(time.time() - server.started, 1),
        "models": sorted(models.loaded()),
    }
    if models.progress:
        body["loading"] = {name: round(share, 3) for name, share in models.progress.items()}
    return Json(
        body, 200 if models.state == "ok" else 503, headers={} if models.state == "ok" else {"retry-after": "1"}
    )


def not_found(path: str) -> ApiError:
    """The error for a path that no route has."""
    return ApiError(404, f"there is no {path[:100]} here; /openapi.json lists what there is", code="not_found")

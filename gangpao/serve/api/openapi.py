"""GET /openapi.json: our routes as OpenAPI 3.1, written from the schemas that check the requests (schema.py).

Tests throw requests made from this document at the server (schemathesis). Answers are described as objects and errors exactly;
fields of answers are OpenAI's and are not written down a second time here.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gangpao
from gangpao.serve.api import schema
from gangpao.serve.http.stream import Json

_POSTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (schema.ChatRequest, "An answer to a conversation; a stream of events with stream: true."),
    "/v1/completions": (schema.CompletionRequest, "Text that goes on from a prompt."),
    "/v1/embeddings": (schema.EmbeddingRequest, "Means of the last hidden states, of length 1."),
    "/tokenize": (schema.TokenizeRequest, "Token ids of a text."),
    "/detokenize": (schema.DetokenizeRequest, "The text of token ids."),
}
_GETS = {
    "/v1/models": "Models that may be asked for.",
    "/v1/models/{name}": "One of them.",
    "/health": "200 when the server answers, 503 while it is loading its model.",
    "/openapi.json": "This document.",
}
_STREAMS = ("/v1/chat/", "/v1/completions")
_ERRORS = {
    "400": "The request is wrong; param says where.",
    "401": "An API key is needed.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "429": "The queue is full; Retry-After says when to come back.",
    "503": "The model is not there yet, or there is no memory for it.",
}


Operations = Mapping[str, tuple[type[BaseModel], str]]


def routes(others: Operations) -> list[Route]:
    """The document's route. others: POST routes of other APIs by path: what checks the body, and a sentence."""

    async def show(request: Request) -> Response:
        return Json(document(others))

    return [Route("/openapi.json", show, methods=["GET"])]


def document(others: Operations) -> dict[str, Any]:
    """The whole description."""
    posts = {**_POSTS, **others}
    kinds: list[type[BaseModel]] = [*(kind for kind, _ in posts.values()), schema.ErrorBody]
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys(kinds)], ref_template="#/components/schemas/{model}"
    )
    refs = {kind: names[kind, "validation"] for kind in kinds}
    paths: dict[str, Any] = {}
    for path, (kind, text) in posts.items():
        error = {"type": "object"} if path in others else refs[schema.ErrorBody]
        paths[path] = {"post": _operation(path, text, error, stream=path.startswith(_STREAMS) or path in others)}
        paths[path]["post"]["requestBody"] = {"required": True, "content": {"application/json": {"schema": refs[kind]}}}
    for path, text in _GETS.items():
        paths[path] = {"get": _operation(path, text, refs[schema.ErrorBody])}
    plain = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {
        "get": {"summary": "Figures for Prometheus.", "responses": {"200": {"description": "Text.", "content": plain}}}
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "gangpao", "version": gangpao.__version__},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(path: str, text: str, error: dict[str, Any], *, stream: bool = False) -> dict[str, Any]:
    media: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if stream:
        # No schema: OpenAPI 3.1 cannot say whether one is for the whole stream or for each of its events.
        media |= {kind: {} for kind in ("text/event-stream", "application/x-ndjson")}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": media}}
    if path == "/health":
        responses["503"] = {"description": _ERRORS["503"], "content": media}
    else:
        content = {"application/json": {"schema": error}}
        responses |= {status: {"description": text, "content": content} for status, text in _ERRORS.items()}
    operation: dict[str, Any] = {"summary": text, "responses": responses}
    if "{name}" in path:
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return operation

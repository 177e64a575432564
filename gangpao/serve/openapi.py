"""GET /openapi.json: our routes as OpenAPI 3.1, written from the schemas that check the requests (schema.py).

Tests throw requests made from this document at the server (schemathesis). Answers are described as objects and errors exactly;
fields of answers are OpenAI's and are not written down a second time here.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gangpao
from gangpao.serve import schema
from gangpao.serve.stream import Json

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
_ERRORS = {
    "400": "The request is wrong; param says where.",
    "401": "An API key is needed.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "429": "The queue is full; Retry-After says when to come back.",
    "503": "The model is not there yet, or there is no memory for it.",
}


def routes() -> list[Route]:
    """The document's route."""

    async def show(request: Request) -> Response:
        return Json(document())

    return [Route("/openapi.json", show, methods=["GET"])]


def document() -> dict[str, Any]:
    """The whole description."""
    kinds: list[type[BaseModel]] = [*(kind for kind, _ in _POSTS.values()), schema.ErrorBody]
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {path: {"post": _operation(path, text, kind)} for path, (kind, text) in _POSTS.items()}
    for path, text in _GETS.items():
        paths[path] = {"get": _operation(path, text, None)}
    paths["/metrics"] = {
        "get": {
            "summary": "Figures for Prometheus.",
            "responses": {"200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
        }
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


def _operation(path: str, text: str, kind: type[BaseModel] | None) -> dict[str, Any]:
    media: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if kind in (schema.ChatRequest, schema.CompletionRequest):
        media["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": _ref(schema.ErrorBody)}}
    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": media}}
    if path == "/health":
        responses["503"] = {"description": _ERRORS["503"], "content": media}
    else:
        responses |= {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    operation: dict[str, Any] = {"summary": text, "responses": responses}
    if kind is not None:
        body = {"application/json": {"schema": _ref(kind)}}
        operation["requestBody"] = {"required": True, "content": body}
    if "{name}" in path:
        operation["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return operation


def _ref(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}

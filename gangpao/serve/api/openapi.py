"""GET /openapi.json: our routes as OpenAPI 3.1, written from the schemas that check the requests (schema.py).

Tests throw requests made from this document at the server (schemathesis). Answers are described as objects and errors exactly;
fields of answers are OpenAI's and are not written down a second time here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gangpao
from gangpao.serve.api import schema
from gangpao.serve.api.schema import Operation
from gangpao.serve.http.errors import ApiError, ErrorForm, openai_body
from gangpao.serve.http.stream import Json
from gangpao.validation import BaseModel

_GETS = {
    "/v1/models": "Models that may be asked for.",
    "/v1/models/{name}": "One of them.",
    "/props": "What the default model takes, in llama-server's form.",
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


class Dialect(Protocol):
    """What the document reads of a dialect: its POST routes, and how it says errors."""

    @property
    def OPERATIONS(self) -> Mapping[str, Operation]:
        """Path -> what checks its body, and a sentence."""

    @property
    def ERRORS(self) -> ErrorForm:
        """How it says errors."""


def routes(dialects: Sequence[Dialect]) -> list[Route]:
    """The document's route."""

    async def show(request: Request) -> Response:
        return Json(document(dialects))

    return [Route("/openapi.json", show, methods=["GET"])]


def document(dialects: Sequence[Dialect]) -> dict[str, Any]:
    """The whole description. Raises ApiError (501) where pydantic is missing, which writes the schemas."""
    try:
        from pydantic.json_schema import models_json_schema
    except ImportError:
        raise ApiError(501, "this document is written by pydantic, which is not installed here") from None
    kinds: list[type[BaseModel]] = [
        *(one.kind for dialect in dialects for one in dialect.OPERATIONS.values()),
        schema.ErrorBody,
    ]
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys(kinds)], ref_template="#/components/schemas/{model}"
    )
    refs = {kind: names[kind, "validation"] for kind in kinds}
    paths: dict[str, Any] = {}
    for dialect in dialects:
        error = refs[schema.ErrorBody] if dialect.ERRORS.write is openai_body else {"type": "object"}
        for path, one in dialect.OPERATIONS.items():
            paths[path] = {"post": _operation(path, one.text, error, stream=one.streams)}
            body = {"required": True, "content": {"application/json": {"schema": refs[one.kind]}}}
            paths[path]["post"]["requestBody"] = body
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

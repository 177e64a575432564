"""What a client did wrong, or what we cannot do now, and its error body.

Raised anywhere under a route or before it; the answer has the form of the API that the path belongs to (body_for), OpenAI's
{"error": {"message", "type", "param", "code"}} where it is no other's. Nothing else of an error ever leaves the process: what
is not an ApiError is a bug of ours, goes to the log with its traceback, and to the client as one sentence.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

# Trying again cannot help: the openai clients obey this header.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer other than 2xx. type: by the status where it is not given; param: the field of the request to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI's JSON."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def anthropic_body(error: ApiError) -> dict[str, Any]:
    """The error as Anthropic's JSON."""
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_body(error: ApiError) -> dict[str, Any]:
    """The error as Ollama's JSON."""
    return {"error": error.message}


def body_for(path: str, error: ApiError) -> dict[str, Any]:
    """The error in the form of the API that a request's path belongs to."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return anthropic_body(error)
    if path.startswith("/api/"):
        return ollama_body(error)
    return error.body


def busy(seconds: float) -> ApiError:
    """429: the queue is full; a place is likely in that many seconds."""
    return ApiError(
        429, f"too many requests are waiting; try again in {math.ceil(seconds)} s", code="queue_full",
        headers=retry_headers(seconds),
    )  # fmt: skip


def retry_headers(seconds: float) -> dict[str, str]:
    """When to try again, in the forms that clients read.

    The milliseconds are up to half as many more by chance: clients that were refused together would come back together.
    """
    ms = math.ceil(seconds * 1000 * (1 + random.random() / 2))
    return {"retry-after": str(max(1, math.ceil(seconds))), "retry-after-ms": str(max(1, ms))}

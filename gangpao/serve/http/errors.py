"""What a client did wrong, or what we cannot do now, and how an API says it.

Raised anywhere under a route or before it. An error of what all APIs share names a `field` in our words, and the API that was asked
says its own word for it (ErrorForm). Nothing else of an error ever leaves the process: what is not an ApiError is a bug of ours,
goes to the log with its traceback, and to the client as one sentence.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

# Trying again cannot help: the openai clients obey this header.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer other than 2xx. type: by the status where it is not given.

    What is to blame is either `param`, a field by the API's own name, which the message says already, or `field`, one in our own
    words, which the message leaves out.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        param: str | None = None,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message if field is None else f"{field}: {message}")
        self.status = status
        self.text = message
        self.type = type or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.field = field
        self.own_param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def message(self) -> str:
        """What and what to do, with the field in our words."""
        return str(self)

    @property
    def param(self) -> str | None:
        """The field to blame."""
        return self.own_param if self.field is None else self.field


class PromptTooLong(ApiError):
    """A prompt that leaves no room for an answer: `tokens` of it, where the context holds `limit`, answer included."""

    def __init__(self, tokens: int, limit: int) -> None:
        self.tokens, self.limit = tokens, limit
        super().__init__(
            400, TOO_LONG.format(tokens=tokens, limit=limit), code="context_length_exceeded", headers=NO_RETRY
        )


# The words that OpenAI's clients, and what is built on them, look for.
TOO_LONG = (
    "This model's maximum context length is {limit} tokens, answer included, and the prompt has {tokens}: shorten it, or start "
    "the server with a larger --context"
)


def openai_body(message: str, error: ApiError, param: str | None) -> dict[str, Any]:
    """An error as OpenAI's JSON."""
    return {"error": {"message": message, "type": error.type, "param": param, "code": error.code}}


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """How an API says an error. paths: how its routes begin; write(message, error, param): its body; names: its words for fields of
    ours that it calls otherwise; too_long: its words for a prompt that is too long."""

    paths: tuple[str, ...] = ()
    write: Callable[[str, ApiError, str | None], dict[str, Any]] = openai_body
    names: Mapping[str, str] = field(default_factory=dict)
    too_long: str = TOO_LONG

    def body(self, error: ApiError) -> dict[str, Any]:
        """The error as this API's JSON."""
        if isinstance(error, PromptTooLong):
            return self.write(self.too_long.format(tokens=error.tokens, limit=error.limit), error, None)
        if error.field is None:
            return self.write(error.message, error, error.param)
        name = self.names.get(error.field, error.field)
        return self.write(f"{name}: {error.text}", error, name)


PLAIN = ErrorForm()


def form_for(path: str, forms: Sequence[ErrorForm]) -> ErrorForm:
    """The form of the API that a request's path belongs to; OpenAI's where it is none's."""
    return next((form for form in forms if any(_under(path, begin) for begin in form.paths)), PLAIN)


def _under(path: str, begin: str) -> bool:
    return path == begin or path.startswith(begin.rstrip("/") + "/")


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

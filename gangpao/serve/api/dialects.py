"""The APIs that this server speaks. None is more than the others; a new one is a module like them and a name here."""

from typing import Any

from gangpao.serve.api import anthropic, ollama, openai, responses
from gangpao.serve.http.errors import ApiError, form_for

DIALECTS = (openai, responses, anthropic, ollama)
FORMS = tuple(dialect.ERRORS for dialect in DIALECTS)


def body_for(path: str, error: ApiError) -> dict[str, Any]:
    """The error in the form of the API that a request's path belongs to."""
    return form_for(path, FORMS).body(error)

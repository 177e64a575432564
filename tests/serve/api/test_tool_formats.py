"""A model whose template writes calls in its own way is asked through the API: prompt, answer and calls are in that way, and the
clients see the usual ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.tiny import write_tiny
from tests.serve.conftest import Live
from tests.text.templates.tool_templates import TEMPLATES

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rom", "Bonn"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "x", "parameters": CITY}}]
ASK = [{"role": "user", "content": "Weather?"}]


@pytest.fixture(scope="module", params=["attributes", "a list with ids", "bare"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path: Path = write_tiny(tmp_path_factory.mktemp("own") / "tiny.gguf", template=TEMPLATES[request.param])
    server = Server(Settings({"tiny": path}, port=0, batch=4, queue=8, threads=1))
    with running(server) as base_url:
        yield Live(base_url, server, "tiny")


def test_a_call_comes_as_one_whole_and_streamed_and_goes_back_into_the_history(live: Live) -> None:
    with openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        named = {"type": "function", "function": {"name": "weather"}}
        more = {"model": "tiny", "tools": TOOLS, "tool_choice": named, "max_tokens": 200, "seed": 1}
        answer = client.chat.completions.create(messages=ASK, **more).choices[0]  # type: ignore[call-overload]
        (call,) = answer.message.tool_calls
        assert (answer.finish_reason, answer.message.content, call.function.name) == ("tool_calls", None, "weather")
        arguments = json.loads(call.function.arguments)
        assert arguments["city"] in ("Rom", "Bonn")
        assert 1 <= arguments["days"] <= 9
        parts = [
            part
            for chunk in client.chat.completions.create(messages=ASK, stream=True, **more)  # type: ignore[call-overload]
            for choice in chunk.choices
            for part in choice.delta.tool_calls or ()
        ]
        assert "".join(part.function.arguments for part in parts) == call.function.arguments
        history = [*ASK, answer.message.model_dump(exclude_none=True),
                   {"role": "tool", "tool_call_id": call.id, "content": "12"}]  # fmt: skip
        client.chat.completions.create(messages=history, model="tiny", tools=TOOLS, max_tokens=4)  # type: ignore[call-overload]

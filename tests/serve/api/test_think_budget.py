"""A budget of thinking at every API, in each one's own words, whole and streamed; forms and calls behind it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest

from gangpao.engine.thinking.options import Thinking
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from gangpao.text.thoughts import KNOWN
from tests.engine.tiny import write_tiny
from tests.serve.conftest import Live
from tests.text.templates import thinkers

ASK = [{"role": "user", "content": "Say something long."}]
MAX = 48


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = write_tiny(
        tmp_path_factory.mktemp("m") / "tiny.gguf", template=thinkers.QWEN35, marks=tuple(KNOWN[0]), context=4096
    )
    server = Server(Settings({"tiny": path}, port=0, context=4096, batch=4, queue=8, threads=1))
    with running(server) as base_url:
        yield Live(base_url, server, "tiny")


def ask(live: Live, wire: httpx2.Client, path: str = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": ASK, "temperature": 0, "max_tokens": MAX, **more}
    if path == "/v1/chat/completions":
        body |= {"ignore_eos": True} if "response_format" not in body else {}
    answer = wire.post(f"{live.base_url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def reasoning(found: dict[str, Any]) -> int:
    count: int = found["usage"]["completion_tokens_details"]["reasoning_tokens"]
    return count


WAYS: list[dict[str, Any]] = [
    {"thinking_budget": 12}, {"thinking_token_budget": 12}, {"thinking_budget_tokens": 12}, {"reasoning_budget": 12},
    {"thinking": {"type": "enabled", "budget_tokens": 12}}, {"reasoning": {"max_tokens": 12}},
    {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 12}},
    {"thinking_budget": 12, "enable_thinking": True},
]  # fmt: skip


def test_the_words_for_a_budget_mean_one_thing(live: Live, wire: httpx2.Client) -> None:
    answers = [ask(live, wire, **way) for way in WAYS]
    messages = [found["choices"][0]["message"] for found in answers]
    assert all(message == messages[0] for message in messages)
    assert messages[0]["reasoning_content"]
    assert messages[0]["content"]
    assert [reasoning(found) for found in answers] == [reasoning(answers[0])] * len(WAYS)
    assert 3 < reasoning(answers[0]) <= 12 + 3
    assert answers[0]["usage"]["completion_tokens"] == MAX


def test_without_a_word_a_thought_leaves_a_quarter_for_the_answer(live: Live, wire: httpx2.Client) -> None:
    found = ask(live, wire)
    assert 30 <= reasoning(found) <= MAX * 3 // 4 + 3
    assert found["choices"][0]["message"]["content"]
    found = ask(live, wire, thinking_budget=-1)
    assert reasoning(found) == MAX
    assert not found["choices"][0]["message"]["content"]
    low, medium = (reasoning(ask(live, wire, reasoning_effort=effort)) for effort in ("low", "medium"))
    assert low <= MAX // 5 + 3 < medium <= MAX // 2 + 3


def test_off_is_off(live: Live, wire: httpx2.Client) -> None:
    """By the template's switch, or where that does not know one by closing what the prompt opened."""
    for way in ({"thinking_budget": 0}, {"enable_thinking": False}, {"reasoning_effort": "none"}):
        found = ask(live, wire, **way)
        assert "reasoning_content" not in found["choices"][0]["message"]
        assert reasoning(found) == 0, way  # Qwen3.5's prompt has the closed thought itself
    wrong = wire.post(
        f"{live.base_url}/v1/chat/completions", json={"messages": ASK, "chat_template_kwargs": {"thinking_budget": "x"}}
    )
    assert wrong.status_code == 400
    assert "thinking_budget" in wrong.text


def test_streams_n_and_logprobs(live: Live, wire: httpx2.Client) -> None:
    more: dict[str, Any] = {"thinking_budget": 12, "n": 2, "logprobs": True, "top_logprobs": 1, "seed": 3}
    more |= {"temperature": 1.0}
    whole = ask(live, wire, **more)
    assert all(len(c["logprobs"]["content"]) == MAX for c in whole["choices"])
    assert all(c["message"]["reasoning_content"] and c["message"]["content"] for c in whole["choices"])
    with openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        said = [["", ""], ["", ""]]
        stream: Any = client.chat.completions.create(
            model="tiny", messages=ASK, stream=True, max_tokens=MAX, temperature=1.0, seed=3, n=2,  # type: ignore[call-overload]
            extra_body={"thinking_budget": 12, "ignore_eos": True},
        )  # fmt: skip
        for chunk in stream:
            for choice in chunk.choices:
                said[choice.index][0] += getattr(choice.delta, "reasoning_content", None) or ""
                said[choice.index][1] += choice.delta.content or ""
    expected = [[c["message"]["reasoning_content"], c["message"]["content"]] for c in whole["choices"]]
    assert said == expected


def test_anthropic(live: Live) -> None:
    with anthropic.Anthropic(base_url=live.base_url, api_key="none", max_retries=0, timeout=60) as client:
        asked: Any = {"model": "tiny", "max_tokens": MAX, "messages": ASK, "extra_body": {"temperature": 0}}
        budget: Any = {"type": "enabled", "budget_tokens": 12}
        blocks = client.messages.create(**asked, thinking=budget).content
        free = client.messages.create(**asked).content
        assert blocks[0].type == "thinking"
        assert len(blocks[0].thinking) < len(free[0].thinking)  # type: ignore[union-attr]
        assert blocks[1].text  # type: ignore[union-attr]
        with client.messages.stream(**asked, thinking=budget) as stream:
            assert [b.type for b in stream.get_final_message().content] == ["thinking", "text"]


def test_ollama_and_responses(live: Live, wire: httpx2.Client) -> None:
    options = {"temperature": 0, "num_predict": MAX, "seed": 1}
    with ollama.Client(host=live.base_url, timeout=60, trust_env=False) as client:
        lengths = [
            len(client.chat("tiny", ASK, think=how, options=options).message.thinking or "") for how in ("low", "high")
        ]
        assert 0 < lengths[0] < lengths[1]
        assert not client.chat("tiny", ASK, think=False, options=options).message.thinking
    with openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client2:
        found = client2.responses.create(
            model="tiny", input=ASK[0]["content"], temperature=0, max_output_tokens=MAX, reasoning={"effort": "low"}
        )
    assert found.usage
    assert 0 < found.usage.output_tokens_details.reasoning_tokens <= MAX // 5 + 3


def test_a_form_begins_behind_a_thought_that_was_asked_for(live: Live, wire: httpx2.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"const": "x"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    found = ask(live, wire, response_format=form, thinking_budget=12)
    message = found["choices"][0]["message"]
    assert json.loads(message["content"]) == {"a": "x"}
    assert message["reasoning_content"]
    assert found["choices"][0]["finish_reason"] == "stop"
    # Nobody asked: the thought that the prompt opened is closed at once.
    found = ask(live, wire, response_format=form)
    assert json.loads(found["choices"][0]["message"]["content"]) == {"a": "x"}
    assert "reasoning_content" not in found["choices"][0]["message"]
    assert 0 < reasoning(found) <= 4


def test_calls_come_behind_a_thought(live: Live, wire: httpx2.Client) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    body = {"tools": [tool], "tool_choice": "required", "thinking_budget": 12, "max_tokens": 120}
    answer = wire.post(f"{live.base_url}/v1/chat/completions", json={"messages": ASK, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    message = answer.json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "look"
    assert message["reasoning_content"]


def test_the_server_s_own_word(tiny_path: Path, tmp_path: Path, wire: httpx2.Client) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", template=thinkers.R1, marks=tuple(KNOWN[0]))
    settings = Settings({"tiny": path}, port=0, batch=2, queue=4, threads=1, thinking=Thinking(think=False))
    with running(Server(settings)) as base_url:
        live = Live(base_url, Server(settings), "tiny")
        found = ask(live, wire)
        assert "reasoning_content" not in found["choices"][0]["message"]  # though this template always opens a thought
        assert 0 < reasoning(found) <= 4
        assert ask(live, wire, thinking_budget=12)["choices"][0]["message"]["reasoning_content"]

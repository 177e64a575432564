"""Thoughts are apart from answers at every API, whole and streamed, through the real clients of other people.

The model is random and greedy, so its text is always the same; the marks of its thoughts are taken out of that text.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest

from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from gangpao.text.thoughts import Marks
from tests.serve.conftest import Live

ASK = [{"role": "user", "content": "Say something long."}]
GREEDY = {"temperature": 0, "max_tokens": 100}


@pytest.fixture(scope="module")
def live(tiny_path: Path) -> Iterator[Live]:
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=4, queue=8, threads=1))
    with running(server) as base_url:
        yield Live(base_url, server, "tiny")


def chat(live: Live, wire: httpx2.Client, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": ASK, **GREEDY, **more}
    answer = wire.post(f"{live.base_url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def parts(live: Live, wire: httpx2.Client) -> Iterator[tuple[str, str]]:
    """Thought and answer, after the engine was taught marks that stand around the thought."""
    text = chat(live, wire)["choices"][0]["message"]["content"]
    marks = Marks(text[:3], text[12:15])
    assert text.index(marks.end) == 12
    thought, answer = text[3:12].strip(), text[15:].lstrip()
    assert thought
    assert answer
    engine = live.engine
    before = engine.template
    engine.template = replace(before, thoughts=marks)
    yield thought, answer
    engine.template = before


@pytest.fixture(scope="module")
def openai_client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_client(live: Live) -> Iterator[ollama.Client]:
    with ollama.Client(host=live.base_url, timeout=60, trust_env=False) as client:
        yield client


def test_chat_completions(
    live: Live, wire: httpx2.Client, openai_client: openai.OpenAI, parts: tuple[str, str]
) -> None:
    found = chat(live, wire, n=2)
    for choice in found["choices"]:
        assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == parts
    thought_tokens = found["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < thought_tokens < found["usage"]["completion_tokens"]
    thought, words = "", ""
    stream: Any = openai_client.chat.completions.create(model="tiny", messages=ASK, stream=True, **GREEDY)  # type: ignore[call-overload]
    for chunk in stream:
        delta = chunk.choices[0].delta
        assert not (words and getattr(delta, "reasoning_content", None))
        thought += getattr(delta, "reasoning_content", None) or ""
        words += delta.content or ""
    assert (thought, words) == parts


def test_what_comes_back_as_a_thought_is_not_read_again(
    live: Live, wire: httpx2.Client, parts: tuple[str, str]
) -> None:
    thought, answer = parts
    said = {"role": "assistant", "content": answer}
    counts = [
        chat(live, wire, messages=[*ASK, {**said, **more}, *ASK])["usage"]["prompt_tokens"]
        for more in ({}, {"reasoning_content": thought}, {"reasoning": thought})
    ]
    assert len(set(counts)) == 1


def test_an_answer_of_a_given_form_has_no_thought(live: Live, wire: httpx2.Client, parts: tuple[str, str]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "x"}}}
    engine = live.engine
    engine.template = replace(engine.template, thoughts=Marks('"', "x"))
    message = chat(live, wire, response_format=form)["choices"][0]["message"]
    assert json.loads(message["content"]) == "x"
    assert "reasoning_content" not in message


def test_a_thought_that_the_prompt_opened(live: Live, wire: httpx2.Client, parts: tuple[str, str]) -> None:
    engine = live.engine
    marks = engine.template.thoughts
    assert marks
    prompt = engine.template.render(ASK).rstrip()
    engine.template = replace(engine.template, thoughts=Marks(prompt[-4:], marks.end))
    message = chat(live, wire)["choices"][0]["message"]
    assert message["content"] == parts[1]
    assert message["reasoning_content"] == (marks.begin + parts[0]).strip()


def test_anthropic(anthropic_client: anthropic.Anthropic, parts: tuple[str, str]) -> None:
    client = anthropic_client
    asked: Any = {"model": "tiny", "max_tokens": 100, "messages": ASK, "extra_body": {"temperature": 0}}
    blocks = client.messages.create(**asked).content
    assert [block.type for block in blocks] == ["thinking", "text"]
    assert (blocks[0].thinking, blocks[1].text) == parts  # type: ignore[union-attr]
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message().content
    assert [block.model_dump(exclude_none=True) for block in final] == [b.model_dump(exclude_none=True) for b in blocks]
    again = [*ASK, {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in blocks]}, *ASK]
    plain = [*ASK, {"role": "assistant", "content": parts[1]}, *ASK]
    counts = [client.messages.count_tokens(model="tiny", messages=m).input_tokens for m in (again, plain)]  # type: ignore[arg-type]
    assert counts[0] == counts[1]


def test_ollama(live: Live, wire: httpx2.Client, ollama_client: ollama.Client, parts: tuple[str, str]) -> None:
    client = ollama_client
    options = {"temperature": 0, "num_predict": 100}
    message = client.chat("tiny", ASK, options=options).message
    assert (message.thinking, message.content) == parts
    thought, words = "", ""
    for line in client.chat("tiny", ASK, options=options, stream=True):
        thought += line.message.thinking or ""
        words += line.message.content or ""
    assert (thought, words) == parts
    body = {"model": "tiny", "prompt": ASK[0]["content"], "options": options, "stream": False}
    found = wire.post(f"{live.base_url}/api/generate", json=body).json()
    assert (found["thinking"], found["response"]) == parts


def test_responses(openai_client: openai.OpenAI, parts: tuple[str, str]) -> None:
    client = openai_client
    asked: Any = {"model": "tiny", "input": ASK[0]["content"], "temperature": 0, "max_output_tokens": 100}
    found = client.responses.create(**asked)
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert (found.output[0].content[0].text, found.output_text) == parts  # type: ignore[union-attr,index]
    assert found.usage
    assert found.usage.output_tokens_details.reasoning_tokens > 0
    thought, words, done = "", "", None
    for event in client.responses.create(**asked, stream=True):
        thought += event.delta if event.type == "response.reasoning_text.delta" else ""
        words += event.delta if event.type == "response.output_text.delta" else ""
        done = event.response if event.type == "response.incomplete" else done
    assert (thought, words) == parts
    assert done
    assert [item.type for item in done.output] == ["reasoning", "message"]
    thinking = [*ASK, *(item.model_dump(exclude_none=True) for item in found.output), *ASK]
    plain = [*ASK, {"role": "assistant", "content": parts[1]}, *ASK]
    usages = [client.responses.create(**{**asked, "input": said}).usage for said in (thinking, plain)]
    assert usages[0]
    assert usages[1]
    assert usages[0].input_tokens == usages[1].input_tokens

"""OpenAI's Responses API through OpenAI's own client, over a real socket, with a real model."""

import json

import openai
import pytest
from pydantic import BaseModel

from gangpao.engine.sample import SamplingParams

ASK = "Name three colours."
CHAT = [{"role": "user", "content": ASK}]
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
                   "additionalProperties": False},
    "strict": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def client(live_server):
    with openai.OpenAI(base_url=f"{live_server.base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, input=ASK, **more):
    return client.responses.create(model="smollm2-135m", input=input, **{"max_output_tokens": 12, **more})


def greedy(reference, messages, max_tokens=12):
    return reference.text(messages, SamplingParams(temperature=0, max_tokens=max_tokens))


def test_a_response_is_the_engines_own_answer(client, reference):
    response = ask(client, instructions="Be terse.", temperature=0, store=True, metadata={"a": "b"})
    chat = [{"role": "system", "content": "Be terse."}, *CHAT]
    assert response.output_text == greedy(reference, chat)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.object, response.metadata, response.instructions) == ("response", {"a": "b"}, "Be terse.")
    assert response.usage.input_tokens == len(reference.prompt(chat))
    assert response.usage.output_tokens == 12
    items = [
        {"role": "developer", "content": "Be terse."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASK}]},
    ]
    again = ask(client, items, temperature=0)
    assert again.output_text == response.output_text
    assert again.usage.input_tokens_details.cached_tokens > 0


def test_a_stream_has_the_events_in_their_order(client, reference):
    events = list(ask(client, temperature=0, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = greedy(reference, CHAT)
    assert "".join(event.delta for event in events[4:-4]) == text
    assert events[-4].text == events[-1].response.output_text == text
    assert events[0].response.output == []
    assert len({event.item_id for event in events[4:-4]}) == 1
    with client.responses.stream(model="smollm2-135m", input=ASK, max_output_tokens=12, temperature=0) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


class Colour(BaseModel):
    """What the client's parser turns an answer into."""

    red: bool
    name: str


def test_an_answer_of_a_form(client):
    form = {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": {
        "type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}}}  # fmt: skip
    response = ask(client, text=form, temperature=1.5, max_output_tokens=40)
    assert json.loads(response.output_text)["a"] in (1, 2)
    assert response.status == "completed"
    assert ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=2).output_text.startswith("{")
    parsed = client.responses.parse(
        model="smollm2-135m", input=ASK, text_format=Colour, max_output_tokens=200, temperature=0
    )
    assert parsed.status == "incomplete" or isinstance(parsed.output_parsed, Colour)


def test_a_function_is_called_whole_and_streamed_and_its_result_read(client):
    more = {"tools": [WEATHER], "max_output_tokens": 80, "parallel_tool_calls": False}
    response = ask(client, tool_choice="required", **more)
    (call,) = response.output
    assert (call.type, call.name, call.status, response.status) == (
        "function_call",
        "get_weather",
        "completed",
        "completed",
    )
    assert list(json.loads(call.arguments)) == ["city"]
    events = list(ask(client, tool_choice={"type": "function", "name": "get_weather"}, stream=True, **more))
    kinds = [event.type for event in events]
    assert kinds[2:4] == ["response.output_item.added", "response.function_call_arguments.delta"]
    assert kinds[-3:] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    said = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    assert said == events[-3].arguments == events[-1].response.output[0].arguments
    items = [
        *CHAT,
        {"type": "reasoning", "id": "rs_1", "summary": []},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "12 °C"},
    ]
    after = ask(client, items, tools=[WEATHER], max_output_tokens=2)
    assert after.usage.input_tokens > response.usage.input_tokens + 20


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"input": ASK, "previous_response_id": "resp_1"}, "keeps no answers"),
        ({"input": ASK, "conversation": "conv_1"}, "keeps no answers"),
        ({"input": ASK, "background": True}, "keeps no answers"),
        ({"input": []}, "input: at least one"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input: at least one"),
        ({"input": None}, "input: at least one"),
        ({"input": [{"role": "user"}]}, "needs content"),
        ({"input": [{"type": "function_call"}]}, "input: at least one"),
        ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "needs an output"),
        ({"input": ASK, "stop": ["e"]}, "stop: this API has no such field"),
        ({"input": ASK, "response_format": {"type": "json_object"}}, "take text.format"),
        (
            {"input": ASK, "tools": [{"type": "web_search"}], "tool_choice": "required"},
            "tool_choice: there are no tools",
        ),
        ({"input": ASK, "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": ASK, "max_output_tokens": 10**7}, "max_output_tokens"),
        ({"input": ASK, "text": {"format": {"type": "xml"}}}, "text.format: type must be"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]}, ""),
    ],
)
def test_errors_are_openais(wire, live_server, body, match):
    for stream in (False, True):
        answer = wire.post(f"{live_server.base_url}/v1/responses", json={**body, "stream": stream})
        assert answer.status_code == 400, answer.text
        assert match in answer.json()["error"]["message"]

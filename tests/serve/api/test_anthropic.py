"""Anthropic's API through Anthropic's own client, over a real socket, with a real model."""

import anthropic
import pytest
from anthropic import Anthropic

from gangpao.engine.sample import SamplingParams

ASK = [{"role": "user", "content": "Name three colours."}]
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ANY = {"type": "any", "disable_parallel_tool_use": True}
RESULT = [
    *ASK,
    {"role": "assistant", "content": [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}]},
    {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "12 °C"}]},
        {"type": "text", "text": "So?"}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def client(live_server):
    with Anthropic(base_url=live_server.base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ask(client, messages=ASK, max_tokens=12, **more):
    return client.messages.create(model="smollm2-135m", messages=messages, max_tokens=max_tokens, **more)


GREEDY = {"extra_body": {"temperature": 0}}  # the client of 2026 has no argument for it


def greedy(reference, messages, max_tokens):
    """Temperature 0 and otherwise the engine's own settings, as this API has no field for the others."""
    return reference.text(messages, SamplingParams(temperature=0, max_tokens=max_tokens))


def test_a_message_is_the_engines_own_answer(client, reference):
    message = ask(client, **GREEDY, system=[{"type": "text", "text": "Be terse."}])
    chat = [{"role": "system", "content": "Be terse."}, *ASK]
    assert [(b.type, b.text) for b in message.content] == [("text", greedy(reference, chat, 12))]
    assert (message.stop_reason, message.role, message.type) == ("max_tokens", "assistant", "message")
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(reference.prompt(chat))
    assert usage.output_tokens == 12
    again = ask(client, **GREEDY, system="Be terse.")
    assert again.content[0].text == message.content[0].text
    assert again.usage.cache_read_input_tokens > 0
    counted = client.messages.count_tokens(model="smollm2-135m", messages=ASK, system="Be terse.")
    assert counted.input_tokens == len(reference.prompt(chat))


def test_a_stream_has_the_events_in_their_order(client, reference):
    events = list(ask(client, **GREEDY, stream=True))
    kinds = [event.type for event in events]
    # The client swallows ping.
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert "".join(e.delta.text for e in events[2:-3]) == greedy(reference, ASK, 12)
    assert events[-2].usage.output_tokens == 12
    with client.messages.stream(model="smollm2-135m", messages=ASK, max_tokens=12, **GREEDY) as stream:
        assert "".join(stream.text_stream) == greedy(reference, ASK, 12)
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_a_function_is_called_whole_and_streamed(client):
    message = ask(client, max_tokens=80, tools=[TOOL], tool_choice=ANY, **GREEDY)
    assert (message.stop_reason, [b.type for b in message.content]) == ("tool_use", ["tool_use"])
    assert message.content[0].name == "get_weather"
    assert list(message.content[0].input) == ["city"]
    with client.messages.stream(
        model="smollm2-135m", messages=ASK, max_tokens=80, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"},
        **GREEDY,
    ) as stream:  # fmt: skip
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(final.content) >= 1
    assert all(isinstance(block.input["city"], str) for block in final.content)


def test_calls_and_results_of_earlier_turns_are_read(client):
    message = ask(client, RESULT, max_tokens=4, tools=[TOOL])
    assert message.usage.output_tokens <= 4
    with_result = client.messages.count_tokens(model="smollm2-135m", messages=RESULT, tools=[TOOL]).input_tokens
    without = client.messages.count_tokens(model="smollm2-135m", messages=ASK, tools=[TOOL]).input_tokens
    bare = client.messages.count_tokens(model="smollm2-135m", messages=ASK).input_tokens
    assert with_result > without > bare


def test_a_form_and_stop_sequences(client):
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"],
                                              "additionalProperties": False}}  # fmt: skip
    message = ask(client, max_tokens=40, output_config={"format": form})
    assert (message.content[0].text, message.stop_reason) == ('{"a": 1}', "end_turn")
    full = ask(client, max_tokens=20, **GREEDY).content[0].text
    cut = ask(client, max_tokens=20, **GREEDY, stop_sequences=[full[4:7]])
    assert cut.content[0].text == full[: full.index(full[4:7])]
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", full[4:7])


def test_what_cannot_be_used_is_left_out_and_said(client, wire, live_server):
    """A conversation goes on whatever its earlier turns hold."""
    history = [
        {
            "role": "user",
            "content": [{"type": "image", "source": {"type": "file", "file_id": "1"}}, {"type": "text", "text": "x"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "tool_use"}]},
        *ASK,
    ]
    tools = [{"input_schema": {}}, {"name": "fine", "input_schema": {}}]
    body = {"messages": history, "max_tokens": 1, "system": [{"type": "image"}], "tools": tools}
    answer = wire.post(f"{live_server.base_url}/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    notes = " ".join(answer.json()["gangpao"]["left_out"])
    for where in (
        "messages.1: an image that is not in the request",
        "a tool_use block without a name",
        "system: images",
        "tools.0: a tool without",
    ):
        assert where in notes


def test_no_limit_and_a_version_line_anywhere(client, wire, live_server):
    head = "x-anthropic-billing-header: cc_version=1; cch={};\n"
    counts = []
    for letters in ("abc", "xyzw", "q"):
        blocks = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": head.format(letters)}]
        body = {"messages": [{"role": "system", "content": blocks}, *ASK], "system": blocks}
        counts.append(wire.post(f"{live_server.base_url}/v1/messages/count_tokens", json=body).json()["input_tokens"])
    assert len(set(counts)) == 1
    answer = wire.post(
        f"{live_server.base_url}/v1/messages",
        json={"messages": ASK, "max_tokens": -1, "stop_sequences": ["e", "a", "o", " "]},
    )
    assert answer.status_code == 200, answer.text


def test_errors_have_anthropics_form(client, wire, live_server):
    with pytest.raises(anthropic.NotFoundError) as error:
        client.messages.create(model="nope", messages=ASK, max_tokens=1)
    assert error.value.body["type"] == "error"
    assert error.value.body["error"]["type"] == "not_found_error"
    cases = [
        {"messages": ASK},
        {"messages": [], "max_tokens": 1},
        {"messages": ASK, "max_tokens": 0},
        {"messages": ASK, "max_tokens": 1, "temperature": 9},
        {"messages": ASK, "max_tokens": 1, "tool_choice": {"type": "any"}},
        {
            "messages": ASK,
            "max_tokens": 1,
            "output_config": {"format": {"type": "json_schema", "schema": {"$ref": "http://a/b"}}},
        },
        {"messages": ASK, "max_tokens": 1, "stop": ["e"]},
        {"messages": ASK, "max_tokens": 1, "response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1},
    ]
    for body in cases:
        for stream in (False, True):
            answer = wire.post(f"{live_server.base_url}/v1/messages", json={**body, "stream": stream})
            assert answer.status_code == 400, (body, answer.text)
            assert answer.json()["error"]["type"] == "invalid_request_error", body
            assert answer.json()["error"]["message"], body
            if "output_config" in body:
                assert answer.json()["error"]["message"].startswith("output_config.format: ")

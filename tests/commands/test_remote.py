"""chat --connect: a conversation with a server over HTTP, with servers that behave and servers that do not."""

import json
import re
import subprocess
import sys
import time

import pytest

from gangpao.commands.chat import Chat, check_sides
from gangpao.engine.thinking.options import Thinking
from gangpao.openai_client import RemoteError
from tests.child import environment
from tests.commands.fake_server import DONE, Asked, answer, chunk, fake, streamed
from tests.commands.remote import GOOD, no_key, say, talk  # noqa: F401
from tests.commands.test_chat import DRIVER, PROMPT, terminal  # noqa: F401

# --- models, and what is sent


def test_a_conversation_is_sent_anew_each_time_and_only_what_was_chosen():
    with fake(lambda _: streamed(*GOOD, DONE)) as server:
        remote = talk(server.url, system="be brief", params={"temperature": 0.5, "seed": 3})
        assert say(remote, "one")[0] == "Hello"
        assert say(remote, "two")[0] == "Hello"
    first, second = (asked.body for asked in server.chats())
    assert first == {
        "model": "one",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "seed": 3,
    }
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][2]["content"] == "Hello"
    assert "authorization" not in server.asked[0].headers


def test_the_only_model_is_taken_and_a_choice_is_asked_for():
    many = {"data": [{"id": "a"}, {"id": "b\x1b[2J"}, {"no": "id"}, "x"]}
    with fake(lambda _: streamed(*GOOD), models=many) as server:
        with pytest.raises(RemoteError, match=r"has 2 models, choose with --model: a, b\[2J$"):
            talk(server.url)
        assert talk(server.url, "b").model == "b"
    with fake(lambda _: streamed(*GOOD), models={"data": []}) as server, pytest.raises(RemoteError, match="no model"):
        talk(server.url)
    with fake(lambda _: answer(404, b"nope"), models=None) as server:
        assert talk(server.url, "mine").model == "mine"
        with pytest.raises(RemoteError, match="answers 404: nope"):
            talk(server.url)


@pytest.mark.parametrize("listing", [b"<html>hello</html>", [1], {"data": None}, {"models": []}])
def test_something_that_is_not_such_a_server(listing):
    with fake(lambda _: [], models=listing) as server, pytest.raises(RemoteError, match=r"not JSON|not OpenAI's list"):
        talk(server.url)


# --- the stream


def test_a_stream_full_of_oddities():
    pieces = [
        b": keep-alive\r\n\r\n",
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":null}}]}\n\n',
        b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n',
        b'data: {"choices":[{"delta":null}]}\n\n',
        b'data: {"choices":null}\n\ndata: {}\n\n',
        b'event: message\ndata: {"choices":[{"delta":{"con',
        b'tent":"\xe6\xb3',
        b'\xb0"}}]}\r\n\r\ndata: {"choices":[{"delta":{"content":"\xe5\xb1\xb1"},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4}}}\n\n',
        b'data: {"choices":[],"usage":null,"timings":{"predicted_per_second":8.0,"yuan":0.002}}\n\n',
        DONE,
        b"data: after the end\n\n",
    ]
    with fake(lambda _: streamed(*pieces)) as server:
        remote = talk(server.url)
        text, run = say(remote)
        say(remote)
    assert text == run.text == "泰山"
    assert run.thoughts == "hm"
    assert [m["content"] for m in remote.messages] == ["hi", "泰山"] * 2
    assert (run.stats.prompt_tokens, run.stats.cached_tokens, run.stats.completion_tokens) == (9, 4, 5)
    assert run.stats.decode_tps == pytest.approx(8.0)
    assert remote.figures(run) == f"5 tokens · 8.0 tok/s · first after {run.stats.ttft_s:.2f} s · 0.0020 yuan"
    assert remote.costs(1) == [("cost", "0.0040 yuan (the server's figure)")]
    assert remote.facts()[1] == ("context", "14 tokens, 4 of them from its cache")


def test_counts_of_a_server_that_does_not_count():
    with fake(lambda _: streamed(*GOOD)) as server:
        remote = talk(server.url)
        _, run = say(remote)
    assert (run.stats.completion_tokens, run.stats.decode_steps) == (2, 1)
    assert run.stats.ttft_s > 0
    assert "yuan" not in remote.figures(run)
    assert remote.costs(1) == []


def test_wrong_counts_are_not_believed():
    bad = [
        chunk("a", usage={"prompt_tokens": "9", "completion_tokens": -4}, timings={"yuan": "x", "decode_tps": 1e999}),
        chunk("b", finish="stop", usage=[1], timings=7),
    ]
    with fake(lambda _: streamed(*bad, DONE)) as server:
        text, run = say(talk(server.url))
    assert (text, run.stats.completion_tokens, run.yuan) == ("ab", 2, None)


def test_a_server_that_does_not_stream():
    whole = {"choices": [{"message": {"role": "assistant", "content": "all at once"}, "finish_reason": "stop"}]}
    with fake(lambda _: answer(200, whole, Content_Type="application/json")) as server:
        assert say(talk(server.url))[0] == "all at once"


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "hm, "}, {"reasoning_content": "so"}, {"content": "yes"}],
        [{"reasoning": "hm, so", "content": ""}, {"content": "yes"}],
        [{"content": "<thi"}, {"content": "nk>\nhm, so\n</think>"}, {"content": "\n\nyes"}],
        [{"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm, so"}]}]}, {"content": "yes"}],
        [
            {"content": [{"type": "thinking", "thinking": "hm, so"}, {"type": "text", "text": "ye"}]},
            {"content": [{"text": "s"}]},
        ],
    ],
)
def test_a_thought_is_apart_however_it_is_sent(deltas):
    pieces = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode() for delta in deltas]
    with fake(lambda _: streamed(*pieces, chunk(finish="stop"), DONE)) as server:
        remote = talk(server.url)
        text, run = say(remote)
        assert (text, run.text, run.thoughts) == ("yes", "yes", "hm, so")
        say(remote)
        assert [m["content"] for m in server.chats()[1].body["messages"]] == ["hi", "yes", "hi"]


def test_content_in_parts_is_shown():
    parts = [{"type": "text", "text": "泰"}, {"type": "image_url"}, None, {"type": "text", "text": "山"}, {"text": 7}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    with fake(lambda _: answer(200, body, Content_Type="application/json")) as server:
        assert say(talk(server.url))[0] == "泰山"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no\nsuch\r\n  thing\x1b[2J"}}, "no such thing[2J"),
        ({"detail": [{"msg": "坏了", "loc": ["body"]}]}, "坏了"),
        ("<!doctype html>\n<html><head>\n<title>\n502 Bad\nGateway</title></head>\n<body>...", "502 Bad Gateway"),
        ("one\n\ntwo", "one two"),
    ],
)
def test_a_refusal_is_one_line(body, said):
    data = body.encode() if isinstance(body, str) else body
    with fake(lambda _: answer(400, data)) as server, pytest.raises(RemoteError) as caught:
        say(talk(server.url))
    text = str(caught.value)
    assert "\n" not in text
    assert said in text
    assert "<" not in text


def test_what_was_chosen_of_thinking_is_sent():
    with fake(lambda _: streamed(*GOOD, DONE)) as server:
        remote = talk(server.url)
        for typed in ("default", "200", "off"):
            remote.thinking = Thinking.typed(typed)
            say(remote)
    bodies = [asked.body for asked in server.chats()]
    sent = [(b.get("chat_template_kwargs"), b.get("thinking_budget")) for b in bodies]
    on, off = ({"enable_thinking": value, "thinking": value} for value in (True, False))
    assert sent == [(None, None), (on, 200), (off, None)]


def test_settings_models_and_another_answer():
    listing = {"data": [{"id": "a"}, {"id": "b"}]}
    with fake(lambda _: streamed(*GOOD, DONE), models=listing) as server:
        remote = talk(server.url, "a", params={"seed": 5})
        assert remote.models() == ["a", "b"]
        with pytest.raises(RemoteError, match=r"lists no model c; it has a, b$"):
            remote.switch("c")
        say(remote)
        remote.switch("b")
        remote.set("top_p", 0.5)
        remote.undo()
        remote.keep(remote.ask("hi", attempt=2))
        remote.set("top_p", None)
        say(remote)
    bodies = [asked.body for asked in server.chats()]
    assert [(b["model"], b["seed"], b.get("top_p")) for b in bodies] == [("a", 5, None), ("b", 7, 0.5), ("b", 5, None)]
    assert [m["content"] for m in bodies[1]["messages"]] == ["hi"]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([b'data: {"error":{"message":"out of memory"}}\n\n'], "the server broke off: out of memory"),
        ([b"data: {broken\n\n"], r"not JSON: '\{broken'"),
        ([b"data: 7\n\n"], "not an answer: 7"),
        ([None], "broke off: the server closed the connection before its end"),
    ],
)
def test_a_broken_stream_keeps_what_was_said(pieces, said):
    with fake(lambda _: streamed(chunk("so far"), *pieces)) as server:
        remote = talk(server.url)
        run = remote.ask("hi")
        with pytest.raises(RemoteError, match=said):
            list(run)
        remote.keep(run)
    assert [m["content"] for m in remote.messages] == ["hi", "so far"]


def test_a_connection_that_breaks():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n"
    with fake(lambda _: [head, chunk("a")]) as server:
        run = talk(server.url).ask("hi")
        with pytest.raises(RemoteError, match="the answer broke off: "):
            list(run)
        run.close()


# --- the context is full


@pytest.mark.parametrize(
    "error",
    [
        {"message": "m", "code": "context_length_exceeded"},
        {"message": "m", "type": "exceed_context_size_error", "code": 400},
        {"message": "This model's maximum context length is 9 tokens"},
    ],
)
def test_the_oldest_half_is_left_out_when_the_server_says_that_it_is_too_long(error):
    def script(asked: Asked):
        return answer(400, {"error": error}) if len(asked.body["messages"]) > 4 else streamed(*GOOD)

    with fake(script) as server:
        remote = talk(server.url, system="s")
        dropped = []
        for i in range(4):
            say(remote, f"q{i}")
            dropped.append(remote.dropped)
    assert dropped == [0, 0, 2, 2]
    assert remote.forgotten == 4
    assert len(remote.messages) == 9
    last = server.chats()[-1].body["messages"]
    assert [m["content"] for m in last] == ["s", "q2", "Hello", "q3"]


def test_a_single_question_that_is_too_long_is_refused_and_forgotten():
    error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    with fake(lambda _: answer(400, error)) as server:
        remote = talk(server.url)
        with pytest.raises(RemoteError, match="too long"):
            remote.ask("x")
        assert remote.messages == []
        assert len(server.chats()) == 1


# --- the terminal


def test_an_error_is_shown_and_the_chat_goes_on(capsys):
    left = [answer(400, {"error": {"message": "first"}}), streamed(chunk("part"), None), streamed(*GOOD)]
    with fake(lambda _: left.pop(0)) as server:
        chat = Chat(talk(server.url))
        assert [chat.answer(q) for q in ("a", "b", "c")] == [False, False, True]
        assert chat.command("/stats")
    out = capsys.readouterr().out
    assert f"error: {server.url}/v1 answers 400: first\n" in out
    assert re.search(r"part\n1 tokens · .*\nerror: the answer broke off", out)
    assert f"model    one at {server.url}/v1" in out
    assert "answers  2, 3 tokens" in out
    assert "cost" not in out


def test_options_of_the_other_side_are_refused():
    with pytest.raises(ValueError, match=r"--context, --kv: only for a model in this process"):
        check_sides({"connect", "kv", "context", "api_key"})
    with pytest.raises(ValueError, match=r"--api-key, --ca: only for a server"):
        check_sides({"ca", "api_key", "kv"})
    check_sides({"connect", "ca", "insecure", "model"})
    check_sides({"threads"})


def run_chat(*args, **env):
    return subprocess.run(
        [sys.executable, str(DRIVER), "chat", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=environment(**env), timeout=30,
    )  # fmt: skip


def test_without_a_terminal_one_question_is_asked():
    with fake(lambda _: streamed(*GOOD)) as server:
        done = run_chat("--connect", server.url, "--temperature", "0.7", "--max-tokens", "9")
        assert done.returncode == 0, done.stderr
        assert "Hello\n2 tokens" in done.stdout
        body = server.chats()[0].body
        assert body["temperature"] == 0.7  # given, though it is the default here
        assert body["max_tokens"] == 9
        assert "top_p" not in body
        done = run_chat("--connect", server.url, "--context", "99")
        assert (done.returncode, done.stderr[:17]) == (2, "error: --context:")
    done = run_chat("--connect", server.url)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing answers at")
    with fake(lambda _: answer(400, b"no")) as server:
        assert run_chat("--connect", server.url).returncode == 2


def test_ctrl_c_ends_the_answer_keeps_it_and_hangs_up(terminal):  # noqa: F811
    gone = []

    def script(asked: Asked):
        if len(asked.body["messages"]) > 1:
            yield from streamed(*GOOD)
            return
        yield from streamed()
        for _ in range(3000):
            yield chunk("word ")
            time.sleep(0.01)
        gone.append("never")

    with fake(script) as server:
        t = terminal("chat", "--connect", server.url, replies=None)
        t.expect("one at http")
        t.expect(PROMPT)
        t.send("go\n")
        t.expect("word word word")
        t.ctrl_c()
        t.expect(r"\d+ tokens · .* · stopped")
        t.expect(PROMPT)
        t.send("next\n")
        t.expect("Hello\r\n")
        t.expect(PROMPT)
        t.send("/quit\n")
        assert t.wait() == 0
    said = server.chats()[1].body["messages"]
    assert said[1]["content"].startswith("word word")
    assert gone == []


def test_control_characters_do_not_reach_a_terminal(terminal):  # noqa: F811
    with fake(lambda _: streamed(chunk("a\x1b[2Jb\x07\u009bc"), chunk(finish="stop"))) as server:
        t = terminal("chat", "--connect", server.url, replies=None)
        t.expect(PROMPT)
        t.send("go\n")
        t.expect(r"a\[2Jbc\r\n")


# --- our own server


def test_our_own_server_says_what_an_engine_here_says(live_server, reference):
    messages = [{"role": "user", "content": "Name three colours."}]
    chosen = {"temperature": 0, "repetition_penalty": 1, "max_tokens": 24}
    remote = talk(live_server.base_url, live_server.model, params=chosen)
    text, run = say(remote, messages[0]["content"])
    assert text == reference.greedy(messages, 24)
    assert run.stats.completion_tokens == 24 or run.finish_reason == "stop"
    assert run.yuan is not None
    assert re.fullmatch(
        r"\d+ tokens · [\d.]+ tok/s · first after [\d.]+ s( · \d+ of \d+ drafted)? · [\d.]+ yuan", remote.figures(run)
    )
    with pytest.raises(RemoteError, match=f"the server has .*{live_server.model}"):
        talk(live_server.base_url, "no-such-model").ask("hi")


def test_our_own_server_says_that_a_question_is_too_long(live_server):
    remote = talk(live_server.base_url, live_server.model, params={"max_tokens": 4, "seed": 1})
    question = "Name a colour. " * 300
    assert say(remote, question)[0]
    assert say(remote, question)[0]
    assert remote.dropped == 2

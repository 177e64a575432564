"""chat --connect: a conversation with a server over HTTP, with servers that behave and servers that do not."""

import datetime
import re
import socket
import ssl
import subprocess
import sys
import time
from email.utils import format_datetime

import pytest

from gangpao.serve import client, connect
from gangpao.serve.client import RemoteError, address, events
from gangpao.serve.terminal import Chat, check_sides
from tests.child import environment
from tests.serve.fake_server import DONE, Asked, answer, chunk, fake, streamed
from tests.serve.test_terminal import DRIVER, PROMPT, terminal  # noqa: F401

GOOD = [chunk("", id="x"), chunk("Hel"), chunk("lo"), chunk(finish="stop")]


OPEN: list[client.Server] = []


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    while OPEN:
        OPEN.pop().close()


@pytest.fixture
def naps(monkeypatch):
    """Seconds that would have been slept."""
    taken: list[float] = []
    monkeypatch.setattr(client.time, "sleep", taken.append)
    return taken


def talk(url, model=None, **options):
    params = options.pop("params", {})
    remote = connect.connect(url, model, params, **options)
    OPEN.append(remote.server)
    return remote


def server_at(*args):
    OPEN.append(client.Server(*args))
    return OPEN[-1]


def say(remote, text="hi"):
    run = remote.ask(text)
    try:
        return "".join(piece.text for piece in run), run
    finally:
        remote.keep(run)


# --- addresses, models, what is sent


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://host", "http://host/v1"),
        ("http://host:1/", "http://host:1/v1"),
        ("https://host/api/v3/", "https://host/api/v3"),
        ("https://host/v1/chat/completions", "https://host/v1"),
        (" http://[::1]:8 ", "http://[::1]:8/v1"),
    ],
)
def test_address(url, base):
    assert address(url) == base


@pytest.mark.parametrize("url", ["", "ftp://host", "http://", "http://host?x=1", "http://host:x", "http://h/#a"])
def test_a_wrong_address_is_said(url):
    with pytest.raises(ValueError, match="--connect"):
        address(url)


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


# --- keys


def test_a_key_of_the_environment_is_for_this_machine_and_for_tls(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    with fake(lambda _: streamed(*GOOD)) as server:
        talk(server.url)
        talk(server.url, api_key="sk-given")
    assert [a.headers["authorization"] for a in server.asked] == ["Bearer sk-env", "Bearer sk-given"]
    assert server_at("http://192.0.2.1", None, True).withheld
    assert server_at("https://192.0.2.1", None, True).keyed
    assert server_at("http://192.0.2.1", "sk", True).keyed
    with pytest.raises(ValueError, match="characters that no key has"):
        client.Server("http://host", "sk-\n", True)


def test_401_says_what_is_missing(monkeypatch):
    body = {"error": {"message": "no", "type": "x", "code": "invalid_api_key"}}
    with fake(lambda _: answer(401, body), models=None) as server:
        with pytest.raises(RemoteError, match="wants an API key: give it with --api-key, or in OPENAI_API_KEY"):
            talk(server.url, "m")
        with pytest.raises(RemoteError, match="refuses this API key"):
            talk(server.url, "m", api_key="wrong")


# --- refusals


def test_an_unknown_model_is_answered_with_the_known_ones():
    body = {"error": {"message": "no model 'mine'", "code": "model_not_found"}}
    with (
        fake(lambda _: answer(404, body)) as server,
        pytest.raises(RemoteError, match=r"no model 'mine'; the server has one"),
    ):
        talk(server.url, "mine").ask("hi")


def test_404_of_another_kind_of_server():
    script = lambda a: answer(404, b"nothing here") if a.method == "POST" else answer(500, b"")  # noqa: E731
    with fake(script, models=None) as server, pytest.raises(RemoteError, match="is this an OpenAI-compatible address"):
        connect.Remote(server_at(server.url, None, True), "m", {}).ask("hi")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "bad\x1b[31m thing"}}, r"answers 400: bad\[31m thing"),
        ({"error": "just text"}, "answers 400: just text"),
        ({"detail": "from FastAPI"}, "answers 400: from FastAPI"),
        (["odd"], r"answers 400: \['odd'\]"),
        (b"plain\n  text", "answers 400: plain text"),
        (b"", "answers 400: x"),
        (b"[" * 100_000, "answers 400: "),
        ({"error": {"message": "y" * 5000}}, "answers 400: y{400}$"),
    ],
)
def test_refusals_are_quoted_short_and_plain(body, said):
    with fake(lambda _: answer(400, body)) as server, pytest.raises(RemoteError, match=said):
        talk(server.url).ask("hi")


def test_a_redirect_is_said_and_not_followed():
    with fake(lambda _: answer(301, b"", Location="https://else.where/v1")) as server:
        with pytest.raises(RemoteError, match=r"moved to https://else\.where/v1"):
            talk(server.url).ask("hi")
        assert len(server.chats()) == 1


def test_nobody_there():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(RemoteError, match=r"nothing answers at http://127.0.0.1:\d+/v1 .*gangpao serve"):
        talk(f"127.0.0.1:{port}")


# --- a busy server


def test_a_busy_server_is_asked_again_when_it_says(naps):
    soon = format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30))
    left = [
        answer(429, {"error": {"message": "busy"}}, Retry_After="2"),
        answer(503, b"loading", Retry_After=soon),
        answer(429, b"", Retry_After_Ms="250", Retry_After="9"),
        answer(502, b""),
        answer(418, b"", X_Should_Retry="true", Retry_After="nan"),
        streamed(*GOOD),
    ]
    with fake(lambda _: left.pop(0)) as server:
        assert say(talk(server.url))[0] == "Hello"
        assert len(server.chats()) == 6
    assert naps[0] == 2
    assert naps[1] == pytest.approx(30, abs=3)
    assert naps[2:] == [0.25, 8.0, 8.0]


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (429, {"error": {"message": "m", "code": "insufficient_quota"}}, {"Retry_After": "1"}),
        (503, {"error": {"message": "m"}}, {"X_Should_Retry": "false", "Retry_After": "1"}),
        (500, {"error": {"message": "m"}}, {}),
        (429, {"error": {"message": "m"}}, {"Retry_After": "3600"}),
    ],
)
def test_waiting_that_is_pointless_is_not_done(naps, status, body, headers):
    with (
        fake(lambda _: answer(status, body, **headers)) as server,
        pytest.raises(RemoteError, match=f"answers {status}: m"),
    ):
        talk(server.url).ask("hi")
    assert naps == []


def test_patience_ends(naps):
    with fake(lambda _: answer(503, b"loading", Retry_After="25")) as server, pytest.raises(RemoteError, match="busy"):
        talk(server.url).ask("hi")
    assert naps == [25] * 4


def test_loading_is_waited_for_at_the_start(naps):
    left = [answer(503, {"error": {"message": "loading"}}, Retry_After="1"), answer(200, {"data": [{"id": "late"}]})]
    with fake(lambda _: left.pop(0), models=None) as server:
        assert talk(server.url).model == "late"
    assert naps == [1]


# --- the stream


def parsed(raw: bytes, step: int) -> list[str]:
    return list(events(raw[i : i + step] for i in range(0, len(raw), step)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_the_same_however_they_are_cut(end):
    text = ': ping\n\nevent: x\ndata: {"a":\n\ndata:two\ndata:  three \n\nid: 4\nretry: 1\n\n\n\n'
    text += "data: 中\u2028\x85文\n\ndata: last"
    raw = text.encode().replace(b"\n", end)
    want = ['{"a":', "two\n three ", "中\u2028\x85文", "last"]
    for step in (1, 2, 3, 7, len(raw)):
        assert parsed(raw, step) == want


def test_events_have_a_bound(monkeypatch):
    monkeypatch.setattr(client, "MAX_EVENT", 1000)
    with pytest.raises(RemoteError, match="a line of more than"):
        list(events([b"data: " + b"x" * 600] * 2))
    with pytest.raises(RemoteError, match="an event of more than"):
        list(events([b"data: " + b"x" * 100 + b"\n"] * 20))
    assert len(list(events([b"data: " + b"x" * 600 + b"\n\n"] * 9))) == 9


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


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate of 127.0.0.1: (certificate path, server context)."""
    x509 = pytest.importorskip("cryptography.x509")
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tls")
    pem = cert.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(pem)
    (folder / "both.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return folder / "cert.pem", context


def test_a_self_signed_certificate(certificate, tmp_path):
    path, context = certificate
    with fake(lambda _: streamed(*GOOD), context=context) as server:
        with pytest.raises(RemoteError, match=r"not trusted \(.*--ca FILE, or --insecure"):
            talk(server.url)
        assert say(talk(server.url, ca=path))[0] == "Hello"
        assert say(talk(server.url, insecure=True))[0] == "Hello"
        with pytest.raises(RemoteError, match=r"does not speak plain HTTP"):
            talk(server.url.replace("https", "http"))
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(ValueError, match="not a certificate in PEM"):
        talk(server.url, ca=tmp_path / "x.pem")
    with pytest.raises(ValueError, match=r"missing\.pem: No such file"):
        talk(server.url, ca=tmp_path / "missing.pem")


def test_tls_to_a_plain_server():
    with fake(lambda _: streamed(*GOOD)) as server, pytest.raises(RemoteError, match="try http://"):
        talk(server.url.replace("http", "https"))


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
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tok/s · first after [\d.]+ s · [\d.]+ yuan", remote.figures(run))
    with pytest.raises(RemoteError, match=f"the server has .*{live_server.model}"):
        talk(live_server.base_url, "no-such-model").ask("hi")


def test_our_own_server_says_that_a_question_is_too_long(live_server):
    remote = talk(live_server.base_url, live_server.model, params={"max_tokens": 4, "seed": 1})
    question = "Name a colour. " * 300
    assert say(remote, question)[0]
    assert say(remote, question)[0]
    assert remote.dropped == 2

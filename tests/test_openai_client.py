"""What evaluations ask of the client beside what a conversation does: many at once, servers that break off, secrets."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gangpao import openai_client
from gangpao.openai_client import Flags, Patience, RemoteError, Server, address
from tests import seams
from tests.commands.fake_server import answer, fake

PATIENT = Patience(silence_s=5, wait_s=60, broken=3)
GOOD = answer(200, {"choices": []})


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def asking(url, script_patience=PATIENT, key=None, **options):
    server = Server(url, key, True, patience=script_patience, **options)
    try:
        return server.ask("/chat/completions", {})
    finally:
        server.close()


@pytest.mark.parametrize(
    "bad", [[None], [GOOD[0][:-3]], answer(500, b""), answer(200, b"half {"), answer(429, b"", Retry_After="0")]
)
def test_what_breaks_off_is_asked_again(monkeypatch, bad):
    seams.replace(monkeypatch, openai_client, "time", sleep=lambda _: None)
    left = [bad, bad, GOOD]
    with fake(lambda _: left.pop(0)) as server:
        assert asking(server.url) == {"choices": []}
        assert len(server.asked) == 3


@pytest.mark.parametrize("bad", [[None], answer(500, {"error": "no"}), answer(200, b"half {")])
def test_and_given_up_in_the_end(monkeypatch, bad):
    seams.replace(monkeypatch, openai_client, "time", sleep=lambda _: None)
    with fake(lambda _: bad) as server:
        with pytest.raises(RemoteError):
            asking(server.url)
        assert len(server.asked) == 4
        with pytest.raises(RemoteError):
            asking(server.url, Patience())
        assert len(server.asked) == 5


def test_a_silent_server_is_named():
    def script(_):
        time.sleep(0.3)
        return GOOD

    with fake(script) as server, pytest.raises(RemoteError, match="sent nothing for 0 s"):
        asking(server.url, Patience(silence_s=0.05))


def test_nobody_asks_a_busy_server_while_one_waits_for_it():
    at: list[float] = []
    lock = threading.Lock()

    def script(_):
        with lock:
            at.append(time.monotonic())
            first = len(at) == 1
        return answer(429, b"", Retry_After_Ms="300") if first else GOOD

    with fake(script) as fake_server:
        server = Server(fake_server.url, None, True, patience=PATIENT)
        with ThreadPoolExecutor(4) as pool:
            begun = [pool.submit(server.ask, "/x", {})]
            while not server._not_before:
                time.sleep(0.005)
            begun += [pool.submit(server.ask, "/x", {}) for _ in range(3)]
            assert [f.result() for f in begun] == [{"choices": []}] * 4
        server.close()
    assert min(at[1:]) - at[0] > 0.25


def test_an_error_under_a_200_is_an_error():
    with (
        fake(lambda _: answer(200, {"error": {"message": "no credits", "code": 402}})) as server,
        pytest.raises(RemoteError, match="no credits"),
    ):
        asking(server.url)


def test_secrets_are_in_headers_only():
    body = {"error": {"message": "Incorrect API key: sk-secret, or is it pass-word"}}
    with fake(lambda _: answer(400, body)) as server:
        with pytest.raises(RemoteError, match=r"Incorrect API key: \(the key\)"):
            asking(server.url, key="sk-secret")
        client = Server(server.url.replace("//", "//me:pass-word@"), None, True)
        assert "pass-word" not in client.base
        with pytest.raises(RemoteError, match=r"or is it \(the key\)"):
            client.ask("/x", {})
        client.close()
    sent = [a.headers["authorization"] for a in server.asked]
    assert sent == ["Bearer sk-secret", "Basic bWU6cGFzcy13b3Jk"]
    with pytest.raises(ValueError, match="--connect") as said:
        address("ftp://me:pass-word@host")
    assert "pass-word" not in str(said.value)


def test_a_key_of_the_environment_is_for_who_it_is_meant_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-env")
    with fake(lambda _: answer(401, b"")) as server:
        with pytest.raises(RemoteError, match="refuses this API key"):
            asking(server.url)
        with pytest.raises(RemoteError, match=r"give it with --api-key$"):
            asking(server.url, flags=Flags(environment=False))
    assert [a.headers.get("authorization") for a in server.chats()] == ["Bearer sk-env", None]


def test_messages_name_the_options_of_the_command():
    with pytest.raises(ValueError, match="--judge"):
        Server("ftp://x", None, True, flags=Flags(url="--judge"))
    with fake(lambda _: answer(401, b"")) as server, pytest.raises(RemoteError, match="give it with --judge-key"):
        asking(server.url, flags=Flags(key="--judge-key"))
    with fake(lambda _: [], models={"data": [{"id": "a"}, {"id": "b"}]}) as server:
        client = Server(server.url, None, True, flags=Flags(model="--judge-model"))
        with pytest.raises(RemoteError, match="choose with --judge-model: a, b"):
            client.pick(None)
        client.close()

"""Connections on which the other side lets us wait."""

import contextlib
import socket
import time

import pytest

from gangpao.serve import app
from gangpao.serve.http import connection
from gangpao.serve.server import Server, Settings
from tests.serve.test_overload import send, settled

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def live(tiny_path, monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_S", 0.3)
    monkeypatch.setattr(connection, "STALLED_S", 0.3)
    real = app.listen

    def small(*settings):
        """The system would take megabytes off our hands."""
        bound = real(*settings)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return bound

    monkeypatch.setattr(app, "listen", small)
    server = Server(Settings({"tiny": tiny_path}, port=0, batch=2, queue=8, threads=1))
    with app.running(server) as url:
        yield url, server


def opened(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answered(plug):
    plug.sendall(HEALTH)
    data = b""
    while not data.endswith(b"}"):
        data += plug.recv(65536)
    assert data.startswith(b"HTTP/1.1 200")


def drained(plug):
    """All that comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := plug.recv(65536):
            data += more
    return data


def ends(plug):
    """Seconds until the other side closes."""
    began = time.monotonic()
    drained(plug)
    return time.monotonic() - began


def refused(plug, pieces, pause):
    """Seconds until the other side takes no more of the pieces."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            plug.sendall(piece)
            time.sleep(pause)
        pytest.fail("all of it was taken")
    return time.monotonic() - began


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("begun", [b"", b"G", HEALTH[:20]])
def test_a_request_that_does_not_come_is_not_waited_for(live, before, begun):
    url, _ = live
    with opened(url) as plug:
        for _ in range(before):
            answered(plug)
        plug.sendall(begun)
        if begun or not before:
            assert ends(plug) < 3
        else:  # between requests it may be quiet for longer
            time.sleep(0.6)
            answered(plug)


def test_a_request_that_comes_in_drops_has_one_time_for_all_of_them(live):
    url, _ = live
    with opened(url) as plug:
        answered(plug)
        assert refused(plug, (bytes([byte]) for byte in HEALTH * 20), 0.02) < 3


def test_a_body_behind_its_answer_has_an_end(live):
    url, _ = live
    with opened(url) as plug:
        plug.sendall(b"GET /nope HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert refused(plug, [b"3e8\r\n" + b"x" * 1000 + b"\r\n"] * 1000, 0.01) < 3


def test_a_reader_who_takes_nothing_loses_his_answer_and_one_who_is_slow_does_not(live):
    url, server = live
    body = {"prompt": "abc", "max_tokens": 400, "logprobs": 5, "stream": True, "logit_bias": {"256": -100}}
    with send(url, body) as slow, send(url, body | {"n": 8}) as plug:  # of which nobody reads anything
        text = b""
        while b"data: [DONE]" not in text:
            time.sleep(0.01)
            text += slow.recv(4096)
        settled(server)
        until = time.monotonic() + 5
        while server.models.loaded()["tiny"].users and time.monotonic() < until:
            time.sleep(0.01)
        assert server.models.loaded()["tiny"].users == 0
        assert b"[DONE]" not in drained(plug)


def test_one_peer_has_so_many_connections(live, monkeypatch):
    url, _ = live
    monkeypatch.setattr(connection, "PEER_CONNECTIONS", 3)
    with opened(url) as a, opened(url) as b, opened(url) as c, opened(url) as d:
        for plug in (a, b, c, d):  # this machine itself may have more
            answered(plug)
        monkeypatch.setattr(connection, "is_loopback", lambda host: False)
        with opened(url) as late:
            assert ends(late) < 3
        a.close()
        b.close()
        time.sleep(0.1)
        with opened(url) as late:
            answered(late)

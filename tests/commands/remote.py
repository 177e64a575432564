"""Conversations with servers for the tests of chat --connect, closed when a test is over."""

import pytest

from gangpao import openai_client as client
from gangpao.commands.terminal import remote as remote_module
from tests.commands.fake_server import chunk

GOOD = [chunk("", id="x"), chunk("Hel"), chunk("lo"), chunk(finish="stop")]


OPEN: list[client.Server] = []


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    yield
    while OPEN:
        OPEN.pop().close()


def talk(url, model=None, **options):
    params = options.pop("params", {})
    remote = remote_module.connect(url, model, params, **options)
    OPEN.append(remote.server)
    return remote


def server_at(*args):
    OPEN.append(client.Server(*args))
    return OPEN[-1]


def say(remote, text="hi"):
    run = remote.ask(text)
    try:
        return "".join(said.text for said in run if not said.thought), run
    finally:
        remote.keep(run)

"""A chat that is longer than the context: refused, or with --context-shift answered without its oldest turns, which usage says."""

import asyncio
import base64
from dataclasses import replace

import pytest

from gangpao.engine.sessions.shift import ContextShift
from gangpao.serve.answers.chat import Chat, Message, answer
from gangpao.serve.answers.events import Ended, Finished
from gangpao.serve.answers.pictures import Image
from gangpao.serve.http.errors import ApiError
from gangpao.serve.server import Server, Settings
from tests.engine.pictures.linear_sight import LinearSight, png
from tests.engine.tiny import write_tiny


@pytest.fixture
def talk(tmp_path):
    """talk(messages, **limits) answers one chat of a server with a tiny model; the last events."""
    path = write_tiny(tmp_path / "tiny.gguf")

    def events(messages, max_tokens=20, **limits):
        async def run():
            server = Server(Settings({"tiny": path}, context=256, threads=1, **limits))
            chat = Chat(tuple(messages), sampling={"max_tokens": max_tokens, "temperature": 0.0})
            try:
                return [event async for event in answer(server, chat, "somebody")]
            finally:
                await server.models.close()

        return asyncio.run(run())

    return events


def long_chat(turns):
    said = [Message("system", "be brief and kind")]
    for number in range(turns):
        said += [Message("user", f"question number {number}"), Message("assistant", f"answer number {number}")]
    return [*said, Message("user", "and now?")]


def test_a_chat_that_is_too_long_is_refused_without_the_option(talk):
    with pytest.raises(ApiError) as error:
        talk(long_chat(12))
    assert error.value.code == "context_length_exceeded"


def test_with_it_the_oldest_turns_go_and_usage_says_how_many_tokens(talk):
    *_, ended, finished = talk(long_chat(12), context_shift=True)
    assert isinstance(finished, Finished)
    usage = finished.usage
    assert usage["dropped_tokens"] > 200
    assert usage["prompt_tokens"] < 256
    assert usage["completion_tokens"] == 20 or ended.reason == "stop"


def test_a_growing_answer_goes_on_and_a_short_chat_drops_nothing(talk):
    *_, ended, finished = talk(long_chat(1), max_tokens=600, context_shift=True)
    assert isinstance(ended, Ended)
    if ended.reason == "length":
        assert finished.usage["completion_tokens"] == 600
        assert finished.usage["dropped_tokens"] > 300
    *_, finished = talk(long_chat(1), context_shift=True)
    assert "dropped_tokens" not in finished.usage


def test_a_picture_of_the_system_message_stays(talk, monkeypatch):
    """What stays is counted in rows, not in what spells the character that stands for a picture."""
    fitted = []

    def fit(self, ids, room=0):
        fitted.append((self, list(ids), found := real(self, ids, room)))
        return found

    real = ContextShift.fit
    monkeypatch.setattr(ContextShift, "fit", fit)
    system, *turns = long_chat(12)
    image = Image(base64=base64.b64encode(png(300, 300)).decode())
    said = [replace(system, images=(image,)), *turns]
    *_, finished = talk(said, context_shift=True, sights={"tiny": LinearSight()})
    assert finished.usage["dropped_tokens"] > 200
    shift, before, after = fitted[0]
    rows = [at for at, token in enumerate(before) if token >= shift.vocab_size]
    assert len(rows) == 25
    assert shift.keep > rows[-1]
    assert after[: shift.keep] == before[: shift.keep]


def test_prefixes_are_kept_for_the_next_server(talk, tmp_path):
    for cached in (0, 64):
        *_, finished = talk(long_chat(2), prefix_cache=tmp_path / "prefixes")
        assert finished.usage["prompt_tokens_details"]["cached_tokens"] >= cached

"""A picture in every API: the same answer as from the engine itself, counted, found again, and refused with its place."""

import asyncio
import base64
import struct
import threading
import time
from dataclasses import replace

import anthropic
import numpy as np
import ollama
import openai
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import placed
from gangpao.engine.sample import SamplingParams
from gangpao.images import clips
from gangpao.machine import rss_mb
from gangpao.serve.answers import pictures as answer_pictures
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.pictures.linear_sight import LinearSight, picture, png
from tests.engine.tiny import write_tiny
from tests.images.test_video import animated, colours
from tests.serve.conftest import Live

N = 12
GREEDY = SamplingParams(temperature=0, max_tokens=N)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("seeing") / "tiny.gguf", context=2048)


@pytest.fixture(scope="module")
def seeing(path):
    settings = Settings(
        {"tiny": path}, sights={"tiny": LinearSight()}, port=0, batch=4, queue=8, threads=1, context=2048
    )
    server = Server(settings)
    with running(server) as base_url:
        yield Live(base_url, server, "tiny")


@pytest.fixture
def client(seeing):
    with openai.OpenAI(base_url=f"{seeing.base_url}/v1", api_key="x", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def engine(path):
    return Engine.load(path, context=2048, num_threads=1, sight=LinearSight())


def said(engine, *turns):
    """(text, prompt tokens) of the engine alone. turns: (role, text, places and pictures)."""
    messages, shown = placed([{"role": role, "content": text, "pictures": found} for role, text, found in turns])
    ids = engine.prompt_with(messages, shown)
    hold = engine.see(shown.values())
    run = engine.generate(ids, GREEDY, stop=engine.template.stop, pictures=hold)
    list(run)
    return run.text, len(ids)


def url(**options) -> str:
    return "data:image/png;base64," + base64.b64encode(png(**options)).decode()


def image_part(**options) -> dict:
    return {"type": "image_url", "image_url": {"url": url(**options)}}


def test_openai_client(client, seeing, engine):
    content = [{"type": "text", "text": "what "}, image_part(seed=1), {"type": "text", "text": "is it?"}]
    done = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=N
    )
    text, count = said(engine, ("user", "what is it?", [(5, picture(seed=1))]))
    assert (done.choices[0].message.content, done.usage.prompt_tokens) == (text, count)

    more = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": text},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and these?"}, image_part(seed=2), image_part(seed=3, width=150)],
        },
    ]
    before = seeing.engine.seeing.sight.calls
    stream = client.chat.completions.create(model="tiny", messages=more, temperature=0, max_tokens=N, stream=True)
    heard = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    shown = [(10, picture(seed=2)), (10, picture(seed=3, width=150))]
    wanted, _ = said(
        engine, ("user", "what is it?", [(5, picture(seed=1))]), ("assistant", text, []), ("user", "and these?", shown)
    )
    assert heard == wanted
    assert seeing.engine.seeing.sight.calls - before == 1 + len(
        engine.seeing.look(shown[1][1]).rows
    )  # the first is there


def test_a_video_is_its_frames_in_one_place(client, seeing, engine, wire):
    """vLLM's video_url; the rows of all frames follow each other, each is encoded once, and a follow-up encodes none."""
    data = animated("WEBP", colours(4, (40, 40)), duration=1000)
    clip = clips.read(data)
    url = "data:image/webp;base64," + base64.b64encode(data).decode()
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "what moves?"}]
    before = seeing.engine.seeing.sight.calls
    for _ in range(2):
        done = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": content}], temperature=0, max_tokens=N
        )
    assert seeing.engine.seeing.sight.calls - before == 4
    text, count = said(engine, ("user", "what moves?", [(0, clip)]))
    assert (done.choices[0].message.content, done.usage.prompt_tokens) == (text, count)
    for _ in range(clips.AT_ONCE):
        clips._places.acquire()
    try:
        answer = wire.post(
            f"{seeing.base_url}/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}
        )
        assert (answer.status_code, "retry-after" in answer.headers) == (429, True)
    finally:
        for _ in range(clips.AT_ONCE):
            clips._places.release()
    many = animated("GIF", [np.full((8, 8, 3), i, np.uint8) for i in range(60)], duration=1000)
    part = {"type": "video_url", "video_url": {"url": "data:image/gif;base64," + base64.b64encode(many).decode()}}
    answer = wire.post(
        f"{seeing.base_url}/v1/chat/completions", json={"messages": [{"role": "user", "content": [part] * 3}]}
    )
    assert (answer.status_code, "180 images" in answer.text) == (400, True)
    rows = sum(engine.seeing.look(one).tokens for one in clip.clip)
    assert engine.seeing.look(clip).tokens == rows
    assert count > rows
    assert engine.seeing.look(clips.any_of(data)).rows.keys().isdisjoint(engine.seeing.look(clip).rows)


def test_a_follow_up_question_comes_from_the_prefix(client, seeing):
    first = [{"role": "user", "content": [image_part(seed=11, width=200), {"type": "text", "text": "x" * 80}]}]
    create = client.chat.completions.create
    one = create(model="tiny", messages=first, temperature=0, max_tokens=4)
    sight = seeing.engine.seeing.sight
    calls = sight.calls
    follow = [
        *first,
        {"role": "assistant", "content": one.choices[0].message.content},
        {"role": "user", "content": "sure?"},
    ]
    two = create(model="tiny", messages=follow, temperature=0, max_tokens=4)
    assert sight.calls == calls
    assert two.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens // 64 * 64


@pytest.fixture
def claude(seeing):
    with anthropic.Anthropic(base_url=seeing.base_url, api_key="x", max_retries=0, timeout=60) as client:
        yield client


GREEDILY = {"temperature": 0}  # the client has no name for it any more


def test_anthropic_client(claude, engine):
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png(seed=4)).decode()}
    messages = [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": "see?"}]}]
    done = claude.messages.create(model="tiny", messages=messages, max_tokens=N, extra_body=GREEDILY)
    text, count = said(engine, ("user", "see?", [(0, picture(seed=4))]))
    read = done.usage.input_tokens + done.usage.cache_read_input_tokens
    assert (done.content[0].text, read) == (text, count)
    assert claude.messages.count_tokens(model="tiny", messages=messages).input_tokens == count

    calls = [
        {"role": "user", "content": "take a screenshot"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "shot", "input": {}}]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result", "tool_use_id": "t1", "is_error": True,
                    "content": [{"type": "text", "text": "ab"}, {"type": "image", "source": source}],
                }
            ],
        },
    ]  # fmt: skip
    tools = [{"name": "shot", "description": "a screenshot", "input_schema": {"type": "object", "properties": {}}}]
    count_of = claude.messages.count_tokens
    with_picture = count_of(model="tiny", messages=calls, tools=tools)
    assert claude.messages.create(model="tiny", messages=calls, tools=tools, max_tokens=1).type == "message"
    calls[2]["content"][0]["content"].pop()
    without = count_of(model="tiny", messages=calls, tools=tools)
    marks = len(engine.tokenizer.encode("\n")) + 2
    assert with_picture.input_tokens - without.input_tokens == 5 + marks


@pytest.fixture
def llama(seeing):
    with ollama.Client(host=seeing.base_url, timeout=60, trust_env=False) as client:
        yield client


def test_ollama_client(llama, engine):
    options = {"temperature": 0, "num_predict": N}
    asked = {"role": "user", "content": "see?", "images": [png(seed=5)]}
    text, count = said(engine, ("user", "see?", [(0, picture(seed=5))]))
    done = llama.chat("tiny", [asked], options=options)
    assert (done.message.content, done.prompt_eval_count) == (text, count)
    made = llama.generate("tiny", "see?", images=[png(seed=5)], options=options)
    assert made.response == text
    assert "vision" in llama.show("tiny").capabilities


def test_responses(client, engine):
    parts = [{"type": "input_text", "text": "see?"}, {"type": "input_image", "image_url": url(seed=6)}]
    done = client.responses.create(
        model="tiny", input=[{"role": "user", "content": parts}], temperature=0, max_output_tokens=N
    )
    text, count = said(engine, ("user", "see?", [(4, picture(seed=6))]))
    assert (done.output_text, done.usage.input_tokens) == (text, count)


def test_what_sees_is_told_and_counted(seeing, wire, engine):
    (model,) = wire.get(f"{seeing.base_url}/v1/models").json()["data"]
    assert model["architecture"]["input_modalities"] == model["meta"]["input_modalities"] == ["text", "image"]
    assert wire.get(f"{seeing.base_url}/props").json()["modalities"] == {"vision": True, "audio": False}
    messages = [{"role": "user", "content": [image_part(seed=7), {"type": "text", "text": "hm"}]}]
    found = wire.post(f"{seeing.base_url}/tokenize", json={"messages": messages}).json()
    _, count = said(engine, ("user", "hm", [(0, picture(seed=7))]))
    assert found["count"] == count
    assert found["tokens"].count(engine.tokenizer.id_of("<|endoftext|>")) == 5  # the filler
    assert wire.post(f"{seeing.base_url}/detokenize", json={"tokens": found["tokens"]}).status_code == 200
    text = wire.get(f"{seeing.base_url}/metrics").text
    counted = [line for line in text.splitlines() if line.startswith("gangpao:pictures_total{")]
    assert float(counted[0].rsplit(" ", 1)[1]) == seeing.engine.seeing.counters.pictures


def test_ollama_generate_with_a_picture_alone_and_without_a_template(seeing, wire, engine):
    images = [base64.b64encode(png(seed=9)).decode()]
    asked = {"images": images, "stream": False, "options": {"temperature": 0, "num_predict": N}}
    found = wire.post(f"{seeing.base_url}/api/generate", json=asked).json()
    assert found["response"] == said(engine, ("user", "", [(0, picture(seed=9))]))[0]
    for more in ({"raw": True}, {"suffix": "b"}):
        answer = wire.post(f"{seeing.base_url}/api/generate", json=asked | {"prompt": "a"} | more)
        assert (answer.status_code, "images" in answer.text) == (400, True)


def test_ids_behind_the_vocabulary_are_no_clients(seeing, wire):
    shown = wire.post(
        f"{seeing.base_url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": [image_part(seed=8)]}], "max_tokens": 1},
    )
    assert shown.status_code == 200
    ids = seeing.engine.seeing.look(picture(seed=8)).rows
    for body in ({"prompt": [1, *ids]}, {"prompt": [[*ids]]}):
        assert wire.post(f"{seeing.base_url}/v1/completions", json=body | {"max_tokens": 1}).status_code == 400
    assert wire.post(f"{seeing.base_url}/detokenize", json={"tokens": list(ids)}).status_code == 400


def bomb() -> bytes:
    """A PNG that declares 20,000 x 20,000 pixels."""
    return png()[:16] + struct.pack(">II", 20_000, 20_000) + png()[24:]


BROKEN = {
    "empty": b"",
    "text": b"hello, this is no picture at all",
    "header only": png()[:40],
    "cut off": png(300, 300)[: len(png(300, 300)) // 2],
    "bomb": bomb(),
    "damaged": png()[:60] + bytes(40) + png()[100:],
    "lying": png()[:16] + struct.pack(">II", 900, 900) + png()[24:],
}


def bodies(data: bytes):
    """One request to each API with that picture in its second message or item."""
    encoded = base64.b64encode(data).decode()
    at = f"data:image/png;base64,{encoded}"
    before = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]
    asked = [*before, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": at}}]}]
    yield "/v1/chat/completions", {"messages": asked, "max_tokens": 1}
    source = {"type": "base64", "media_type": "image/png", "data": encoded}
    asked = [*before, {"role": "user", "content": [{"type": "image", "source": source}]}]
    yield "/v1/messages", {"messages": asked, "max_tokens": 1}
    yield "/api/chat", {"messages": [*before, {"role": "user", "content": "x", "images": [encoded]}], "stream": False}
    items = [*before, {"role": "user", "content": [{"type": "input_image", "image_url": at}]}]
    yield "/v1/responses", {"input": items, "max_output_tokens": 16}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_picture_is_refused_with_its_place_and_nothing_breaks(seeing, wire, name):
    for path, body in bodies(BROKEN[name]):
        answer = wire.post(f"{seeing.base_url}{path}", json=body)
        assert answer.status_code == 400, (path, answer.text)
        if name != "empty":  # some APIs have no image there
            assert "messages.2" in answer.text, (path, answer.text)
    assert seeing.engine.seeing.table.nbytes <= seeing.engine.seeing.table.limit
    assert wire.get(f"{seeing.base_url}/health").status_code == 200


def test_low_detail_is_one_piece(client, seeing, engine, wire):
    """OpenAI's word for a picture that is not to be cut: fewer rows, less to encode, and nothing is taken for the other."""
    one = replace(picture(seed=21, width=400, height=300), whole=True)
    cut = picture(seed=21, width=400, height=300)
    assert [len(engine.seeing.look(p).rows) for p in (one, cut)] == [1, 5]
    calls = seeing.engine.seeing.sight.calls
    for shown, detail, pieces in ((one, "low", 1), (cut, "auto", 5), (one, "low", 0)):
        part = {"type": "image_url", "image_url": {"url": url(seed=21, width=400, height=300), "detail": detail}}
        done = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": [part]}], temperature=0, max_tokens=N
        )
        assert (done.choices[0].message.content, done.usage.prompt_tokens) == said(engine, ("user", "", [(0, shown)]))
        assert seeing.engine.seeing.sight.calls - calls == pieces
        calls = seeing.engine.seeing.sight.calls
    item = {"type": "input_image", "image_url": url(seed=21, width=400, height=300), "detail": "low"}
    body = {"input": [{"role": "user", "content": [item]}], "temperature": 0, "max_output_tokens": 16}
    usage = wire.post(f"{seeing.base_url}/v1/responses", json=body).json()["usage"]
    assert usage["input_tokens"] == said(engine, ("user", "", [(0, one)]))[1]


def test_which_of_several_pictures_is_damaged_is_said(seeing, wire):
    cut = "data:image/png;base64," + base64.b64encode(BROKEN["cut off"]).decode()
    content = [image_part(seed=1), {"type": "image_url", "image_url": {"url": cut}}]
    answer = wire.post(
        f"{seeing.base_url}/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_image")
    assert answer.json()["error"]["message"].startswith("messages.0, image 2: the PNG image is cut off")


def test_memory_stays_flat(seeing, wire):
    def send(seed: int) -> None:
        for data in (png(900, 700, seed=seed), bomb(), png(900, 900)[:5000]):
            for path, body in list(bodies(data))[:1]:
                wire.post(f"{seeing.base_url}{path}", json=body)

    for seed in range(3):
        send(seed)
    before = rss_mb()
    for seed in range(3, 12):
        send(seed)
    assert rss_mb() - before < 30


def test_too_many_pictures_and_too_many_rows(seeing, wire):
    many = [image_part(seed=1)] * (answer_pictures.MAX_PICTURES + 1)
    answer = wire.post(f"{seeing.base_url}/v1/chat/completions", json={"messages": [{"role": "user", "content": many}]})
    assert (answer.status_code, "at most 128" in answer.text) == (400, True)
    big = [image_part(seed=None, width=300, height=300)] * 100  # 25 rows and marks each
    calls = seeing.engine.seeing.sight.calls
    answer = wire.post(f"{seeing.base_url}/v1/chat/completions", json={"messages": [{"role": "user", "content": big}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert seeing.engine.seeing.sight.calls == calls


def test_a_client_that_leaves_ends_the_work(seeing, monkeypatch):
    """Between two pieces; the others never come to the encoder."""
    sight, entered, go_on = seeing.engine.seeing.sight, threading.Event(), threading.Event()
    encode, begun = sight.encode, []

    def slow(piece, check):
        begun.append(piece)
        entered.set()
        go_on.wait(20)
        return encode(piece, check)

    monkeypatch.setattr(sight, "encode", slow)

    async def leave() -> None:
        client = openai.AsyncOpenAI(base_url=f"{seeing.base_url}/v1", api_key="x", max_retries=0)
        content = [image_part(seed=77, width=300, height=300)]
        task = asyncio.create_task(
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": content}], max_tokens=1)
        )
        assert await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()

    asyncio.run(leave())
    scheduler, until = seeing.server.models.loaded()["tiny"].scheduler, time.monotonic() + 20
    while scheduler.preparing and time.monotonic() < until:
        time.sleep(0.01)
    go_on.set()
    answer_pictures._encoder.submit(lambda: None).result(20)
    assert len(begun) == 1


def test_a_model_that_reads_text_only_says_so(tiny_server, wire):
    for path, body in bodies(png()):
        answer = wire.post(f"{tiny_server.base_url}{path}", json=body)
        assert (answer.status_code, "does not see" in answer.text) == (400, True), path
    (model,) = wire.get(f"{tiny_server.base_url}/v1/models").json()["data"]
    assert model["architecture"]["input_modalities"] == ["text"]

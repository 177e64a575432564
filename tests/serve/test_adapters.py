"""Adapters in a server: each a model of its own to clients, all on one base, several in one step."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx2
import ollama
import openai
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.formats.adapters import write_peft
from gangpao.serve.app import running
from gangpao.serve.models import AdapterFile
from gangpao.serve.server import Server, Settings
from tests.engine.adapters import random_adapter
from tests.engine.tiny import write_tiny

QUESTIONS = ["hello", "what is the time?", "once upon a time"]
MIXES = {"tiny": {}, "law": {"law": 1.0}, "poet": {"poet": 0.5}}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model and two adapters of it."""
    folder = tmp_path_factory.mktemp("served")
    path = write_tiny(folder / "tiny.gguf")
    engine = Engine.load(path, context=512, num_threads=1)
    for seed, name in enumerate(("law", "poet")):
        write_peft(folder / name, random_adapter(engine.model.config, seed))
    return path, folder / "law", folder / "poet"


@pytest.fixture(scope="module")
def reference(places):
    path, law, poet = places
    return Engine.load(path, context=512, num_threads=1, adapters={"law": law, "poet": poet})


@pytest.fixture(scope="module")
def served(places):
    path, law, poet = places
    adapters = {"law": AdapterFile("tiny", law), "poet": AdapterFile("tiny", poet, 0.5)}
    settings = Settings(
        {"tiny": path}, port=0, batch=6, queue=16, threads=1, adapters=adapters, aliases={"lawyer": "law"}
    )
    server = Server(settings)
    with running(server) as url:
        yield url, server


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0, timeout=60) as one:
        yield one


def expected(engine, model, question, max_tokens=24):
    ids = engine.template.encode(engine.tokenizer, [{"role": "user", "content": question}])
    params = SamplingParams(temperature=0, repetition_penalty=1, max_tokens=max_tokens)
    run = engine.generate(ids, params, session=engine.session(MIXES[model]), stop=engine.template.stop)
    for _ in run:
        pass
    return run.text


def ask(client, model, question, max_tokens=24):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=max_tokens,
        extra_body={"repetition_penalty": 1},
    )  # fmt: skip
    assert answer.model == model
    return answer.choices[0].message.content


def test_answers_of_all_at_once_are_those_of_each_alone(client, reference):
    asked = [(model, question) for question in QUESTIONS for model in MIXES] * 2
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda one: ask(client, *one), asked))
    for one, answer in zip(asked, answers, strict=True):
        assert answer == expected(reference, *one), one
    assert len(set(answers)) == len(set(asked))


def test_adapters_are_models_in_every_list(client, served):
    url, server = served
    listed = {m.id: m for m in client.models.list()}
    assert list(listed) == ["tiny", "law", "poet", "lawyer"]
    assert listed["law"].parent == "tiny"
    assert not hasattr(listed["tiny"], "parent")
    assert listed["law"].meta["loaded"] is True
    assert client.models.retrieve("poet").id == "poet"
    assert list(server.models.loaded()) == ["tiny"]
    with ollama.Client(url, trust_env=False) as theirs:
        found = theirs.list().models
    assert [m.model for m in found] == ["tiny", "law", "poet"]


def test_every_dialect_takes_an_adapter(client, served, reference):
    url, _ = served
    text = expected(reference, "law", "hello")
    options = {"temperature": 0, "repeat_penalty": 1, "num_predict": 24}
    talk = [{"role": "user", "content": "hello"}]
    with ollama.Client(url, trust_env=False) as theirs:
        assert theirs.chat("law:latest", talk, options=options).message.content == text
    body = {"model": "law", "max_tokens": 24, "temperature": 0, "repetition_penalty": 1, "messages": talk}
    found = httpx2.post(f"{url}/v1/messages", json=body, timeout=60).json()
    assert found["content"][0]["text"] == text
    plain = {
        name: client.completions.create(model=name, prompt="abc", temperature=0, max_tokens=8).choices[0].text
        for name in MIXES
    }
    assert len(set(plain.values())) == 3
    vectors = [client.embeddings.create(model=name, input="abc").data[0].embedding for name in ("tiny", "law")]
    assert max(abs(a - b) for a, b in zip(*vectors, strict=True)) > 0.01


def test_an_alias_of_an_adapter(client, reference):
    answer = client.chat.completions.create(
        model="lawyer", messages=[{"role": "user", "content": "hello"}], temperature=0, max_tokens=24,
        extra_body={"repetition_penalty": 1},
    )  # fmt: skip
    assert answer.model == "law"
    assert answer.choices[0].message.content == expected(reference, "law", "hello")


def test_an_unknown_name_is_told_those_that_there_are(client):
    with pytest.raises(openai.NotFoundError, match="there are tiny, law, poet"):
        ask(client, "laws", "hello")


def test_a_prompt_is_cached_for_its_adapter_only(client):
    def cached(model):
        answer = client.completions.create(model=model, prompt="z" * 150, temperature=0, max_tokens=1)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached(m) for m in ("tiny", "law", "poet", "law", "tiny")] == [0, 0, 0, 149, 149]


def test_an_adapter_that_cannot_be_loaded_is_an_error_of_the_server(places):
    path, law, _ = places
    settings = Settings({"tiny": path}, port=0, adapters={"gone": AdapterFile("tiny", law.parent / "gone")}, threads=1)
    server = Server(settings)
    reasons = []
    asyncio.run(server.models.start(on_failed=reasons.append))
    assert "no such file" in reasons[0]

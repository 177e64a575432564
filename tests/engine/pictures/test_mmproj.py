"""From an mmproj file to an answer: what an engine sees with the encoder of the device, in one conversation and in a server."""

import base64
from dataclasses import replace

import httpx2
import numpy as np
import pytest

from gangpao.commands import serve
from gangpao.commands.model import loading
from gangpao.commands.show import examine
from gangpao.engine.generate import Engine
from gangpao.engine.memory import EngineOptions
from gangpao.engine.pictures.prompts import placed
from gangpao.engine.sample import SamplingParams
from gangpao.images import decode, slices
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.pictures.linear_sight import picture, png
from tests.engine.tiny import write_tiny

pytest.importorskip("torch")
from tests.engine import vision

GREEDY = SamplingParams(temperature=0, max_tokens=8)
ROWS = ("minicpm-v-2", "minicpm-v-2.6", "minicpm-v-4.6", "llava")


@pytest.fixture(scope="module", params=ROWS)
def seeing(request, tmp_path_factory):
    """A model, and the file of an encoder of that row with small pictures."""
    folder = tmp_path_factory.mktemp("mmproj")
    row = vision.small(request.param)
    row = replace(row, slicing=replace(row.slicing, resolution=64, max_slices=4))
    return write_tiny(folder / "tiny.gguf", context=2048), vision.written(folder, row)


def test_what_an_engine_sees_is_what_its_encoder_gives(seeing):
    model, mmproj = seeing
    engine = Engine.load(model, context=2048, num_threads=1, sight=mmproj)
    shown = picture(150, 90, seed=1)
    messages, pictures = placed([{"role": "user", "content": "what is it?", "pictures": [(0, shown)]}])
    ids = engine.prompt_with(messages, pictures)
    hold = engine.see(pictures.values())
    found = np.array([i for i in ids if i >= engine.model.config.vocab_size])
    sight = engine.seeing.sight
    rows = [sight.encode(piece) for piece in slices.pieces(decode.decode(shown), sight.vision).pieces]
    assert np.array_equal(engine.model.rows.take(found), np.concatenate(rows))
    answers = []
    for _ in range(2):
        generation = engine.generate(ids, GREEDY, pictures=hold)
        list(generation)
        answers.append(generation.text)
    assert answers[0] == answers[1]


def test_it_is_found_beside_the_model_and_served(seeing):
    model, mmproj = seeing
    engine = loading.load_engine(str(model), options=EngineOptions(threads=1, context=2048), mmproj=None)
    assert (
        engine.seeing.sight.vision.name == loading.load_engine(str(model), mmproj=str(mmproj)).seeing.sight.vision.name
    )
    sights = serve.find_sights({"tiny": model}, None)
    assert sights == {"tiny": mmproj}
    server = Server(Settings({"tiny": model}, sights=sights, port=0, batch=2, threads=1, context=2048))
    with running(server) as url:
        part = {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(png(90, 40)).decode()},
        }
        body = {"messages": [{"role": "user", "content": [part]}], "temperature": 0, "max_tokens": 8}
        with httpx2.Client(timeout=60, trust_env=False) as wire:
            answer = wire.post(f"{url}/v1/chat/completions", json=body).json()
    messages, pictures = placed([{"role": "user", "content": "", "pictures": [(0, picture(90, 40))]}])
    ids = engine.prompt_with(messages, pictures)
    generation = engine.generate(ids, GREEDY, stop=engine.template.stop, pictures=engine.see(pictures.values()))
    list(generation)
    assert answer["choices"][0]["message"]["content"] == generation.text
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_file_of_another_kind_is_refused(seeing, tmp_path):
    model, mmproj = seeing
    with pytest.raises(ValueError, match="not an mmproj file"):
        serve.find_sights({"tiny": model}, str(model))
    with pytest.raises(ValueError, match="not an mmproj file"):
        Engine.load(model, context=512, num_threads=1, sight=model)
    with pytest.raises(ValueError, match="architecture"):
        Engine.load(mmproj, context=512, num_threads=1)


def test_show_says_what_sees(seeing):
    model, mmproj = seeing
    assert f"with {mmproj.name}: " in examine(str(model))["sees"]
    found = examine(str(mmproj))
    assert found["state"] == "what a model sees with"
    assert "3 layers of 72" in found["encoder"]
    assert "while a piece is encoded" in found["memory"]

"""The model with eyes that gangpao brings itself: the files of the catalog, and what they see without a network."""

import hashlib
import json

import pytest

from gangpao import catalog, cli
from gangpao.data.pictures.write import pictures, write
from gangpao.engine.generate import Engine
from gangpao.evaluate.models.endpoint import Endpoint
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.results import ModelFacts, read_items
from gangpao.evaluate.sight.rows import questions
from gangpao.evaluate.sight.run import Settings, run

NAME = "gangpao-nano-v"


def bundled(name):
    return catalog.BUNDLED / catalog.entry(name).file


@pytest.fixture(scope="module")
def model():
    eyes = catalog.entry(NAME).mmproj
    engine = Engine.load(bundled(NAME), num_threads=1, sight=bundled(eyes))
    made = EngineModel(engine, ModelFacts(name=NAME, kind="gguf", sha256=catalog.entry(NAME).sha256))
    yield made
    made.close()


def test_the_files_are_those_of_the_catalog():
    total = 0
    for name in (NAME, catalog.entry(NAME).mmproj):
        entry, data = catalog.entry(name), bundled(name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256)
        total += len(data)
    assert total < 20_000_000


def test_it_sees_what_training_never_showed(model, tmp_path):
    """Hands of other skins, turned in other ways, on other grounds (data/pictures/hands.py)."""
    write(tmp_path / "hands", pictures("hands", count=60, size=112, unseen=True, seed=7, questions=1))
    asked = questions(str(tmp_path / "hands" / "rows.jsonl"))
    found = run(model, {"hands": asked}, Settings(among=0), tmp_path / "out").tasks[0]
    assert found.value > 0.9


@pytest.mark.slow
def test_llama_cpp_answers_the_same(model, tmp_path):
    """With its own encoder (mtmd) from the same two files. One answer in 360 differed when 360 were asked: rounding."""
    x = pytest.importorskip("xllamacpp", reason="xllamacpp (llama.cpp) is not installed")
    p = x.CommonParams()
    p.model.path, p.mmproj.path = str(bundled(NAME)), str(bundled(catalog.entry(NAME).mmproj))
    p.mmproj_use_gpu = p.warmup = p.ctx_shift = p.fit_params = False
    p.n_ctx = p.n_batch = p.n_ubatch = 256
    p.n_parallel, p.n_gpu_layers, p.cache_ram_mib, p.verbosity, p.use_jinja = 1, 0, 0, -1, True
    server = x.Server(p)
    for kind in ("hands", "shapes"):
        write(tmp_path / kind, pictures(kind, count=20, size=112, unseen=True, seed=5, questions=2))
        asked = questions(str(tmp_path / kind / "rows.jsonl"))
        theirs = Endpoint(f"{server.listening_address}/v1", concurrency=1)
        try:
            for one, out in ((model, "ours"), (theirs, "theirs")):
                run(one, {kind: asked}, Settings(among=0), tmp_path / kind / out)
        finally:
            theirs.close()
        ours, others = (
            [i.answers[0].text for i in read_items(tmp_path / kind / out, kind)] for out in ("ours", "theirs")
        )
        assert len(ours) == 40
        assert sum(a == b for a, b in zip(ours, others, strict=True)) >= 39


@pytest.mark.usefixtures("nowhere")
def test_rock_paper_scissors(tmp_path, capsys):
    """`gangpao watch` over frames, without a network: each gesture is told, and what beats it."""
    write(tmp_path / "hands", pictures("hands", count=12, size=112, unseen=True, seed=3))
    frames = tmp_path / "hands" / "images"
    expected = [row.about["gesture"] for row in _scenes(12, 3)]
    for prompt, answers in (
        ("what gesture is this?", expected),
        ("what beats it?", [{"rock": "paper", "paper": "scissors", "scissors": "rock"}[one] for one in expected]),
    ):
        assert cli.main(["watch", str(frames), "-m", NAME, "--prompt", prompt, "--changed", "0"]) == 0
        out = capsys.readouterr().out
        told = [line.split("] ", 1)[1].split("  ")[0] for line in out.splitlines() if line.startswith("[")]
        assert sum(a == b for a, b in zip(told, answers, strict=True)) >= 10, json.dumps([told, answers])


def _scenes(count, seed):
    from random import Random

    from gangpao.data.pictures import hands

    return [hands.draw(Random(f"hands {seed} True {i}"), True, 112) for i in range(count)]

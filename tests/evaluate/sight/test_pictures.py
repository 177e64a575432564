"""`gangpao eval pictures`: rows become questions, answers are those of the engine alone, and texts and pictures find each other."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from gangpao.commands import eval as command
from gangpao.data.pictures.write import pictures as drawn
from gangpao.data.pictures.write import write
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.score import Scorer
from gangpao.evaluate.models.endpoint import Endpoint
from gangpao.evaluate.models.gguf import EngineModel
from gangpao.evaluate.results import ModelFacts, read_items, read_run
from gangpao.evaluate.sight import choose
from gangpao.evaluate.sight.rows import questions
from gangpao.evaluate.sight.run import Settings, read, right, run
from gangpao.serve.app import running
from gangpao.serve.server import Server
from gangpao.serve.server import Settings as Serving
from tests.engine.pictures.linear_sight import LinearSight
from tests.engine.tiny import write_tiny

FACTS = ModelFacts(name="tiny", kind="gguf", sha256="0" * 64)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures") / "shapes"
    write(folder, drawn("shapes", count=12, size=40))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf", context=512)


@pytest.fixture(scope="module")
def engine(path):
    return Engine.load(path, context=512, num_threads=1, sight=LinearSight())


def alone(engine, question, most):
    ids = engine.prompt_with([{"role": "user", "content": question.text}], question.pictures)
    hold = engine.see(question.pictures.values())
    params = SamplingParams(temperature=0, max_tokens=most)
    generation = engine.generate(ids, params, stop=engine.template.stop, pictures=hold)
    list(generation)
    return generation.text


def test_every_question_stands_alone_behind_its_pictures(rows):
    found = questions(str(rows))
    told = [json.loads(line)["messages"] for line in rows.read_text().splitlines()]
    pairs = [(turns[i]["content"], turns[i + 1]["content"]) for turns in told for i in range(0, len(turns), 2)]
    assert [(q.words, q.wanted) for q in found] == [(q.removeprefix("<image>"), a) for q, a in pairs]
    assert all(len(q.pictures) == 1 and q.text[0] in q.pictures for q in found)
    assert len({q.where for q in found}) == len(found)
    assert [q.where for q in questions(str(rows), limit=1)] == [q.where for q in found if "line 1," in q.where]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "has no picture"),
        (
            {
                "messages": [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}],
                "images": ["none.png"],
            },
            r"none\.png: there is no such picture",
        ),
        ({"messages": [{"role": "user", "content": "<image>a"}], "images": ["none.png"]}, "line 1"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, row, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=why):
        questions(str(path))


def test_answers_are_those_of_the_engine_alone(engine, path, rows, tmp_path):
    """Batched and resumed: the same words, and what was answered is not asked again."""
    asked = questions(str(rows), limit=5)
    expected = [alone(engine, question, 8) for question in asked]
    other = Engine.load(path, context=512, num_threads=1, sight=LinearSight())
    model = EngineModel(other, FACTS, batch=4)
    settings = Settings(among=0, max_tokens=8)
    try:
        first = run(model, {"shapes": asked[:3]}, settings, tmp_path / "out")
        written = model.usage.completion
        again = run(model, {"shapes": asked}, settings, tmp_path / "out")
        total = model.usage.completion
        assert run(model, {"shapes": asked}, settings, tmp_path / "out").tasks == again.tasks
        assert 0 < written < total == model.usage.completion
        assert other.seeing.sight.calls == len({p.data for q in asked for p in q.pictures.values()})
        blind = EngineModel(other, FACTS.model_copy(update={"mmproj_sha256": "1" * 64}))
        with pytest.raises(ValueError, match="model"):  # another encoder is another model
            run(blind, {"shapes": asked}, settings, tmp_path / "out")
    finally:
        model.close()
    items = list(read_items(tmp_path / "out", "shapes"))
    assert [item.answers[0].text for item in items] == expected
    assert first.tasks[0].items == 3
    assert again.tasks[0].value == np.mean([right(a, q.wanted) for a, q in zip(expected, asked, strict=True)])
    assert read_run(tmp_path / "out").tasks == again.tasks


def test_a_server_gets_pictures_in_parts(path, engine, rows, tmp_path):
    asked = questions(str(rows), limit=3)
    server = Server(Serving({"tiny": path}, sights={"tiny": LinearSight()}, port=0, batch=2, threads=1, context=512))
    with running(server) as url:
        model = Endpoint(f"{url}/v1", "tiny")
        try:
            run(model, {"shapes": asked}, Settings(max_tokens=8), tmp_path / "out")
        finally:
            model.close()
    said = [item.answers[0].text for item in read_items(tmp_path / "out", "shapes")]
    assert said == [alone(engine, question, 8) for question in asked]


def test_groups_hold_different_texts_of_one_question(rows):
    asked = questions(str(rows))
    assert choose.groups(asked, 3)
    for group in choose.groups(asked, 3):
        assert len({q.words for q in group}) == 1
        assert len({q.wanted for q in group}) == len({p.data for q in group for p in q.pictures.values()}) == 3
    assert choose.groups(asked, 1000) == []


def test_who_finds_whom():
    """Text 1 is likely behind every picture: it hides no text, and is found where it is likelier than elsewhere."""
    likely = np.array([[-5.0, -1.0, -9.0], [-8.0, -0.5, -9.0], [-8.0, -1.0, -6.0]])
    found = choose.found(likely)
    assert found.texts == (True, True, True)
    assert found.pictures == (True, True, True)
    assert choose.found(likely[::-1]).texts == (False, True, False)


def test_likelihoods_are_those_of_texts_behind_their_pictures(engine, rows):
    asked = questions(str(rows))
    group = [next(q for q in asked if q.wanted == wanted) for wanted in dict.fromkeys(q.wanted for q in asked)][:3]
    together = choose.likelihoods(engine, Scorer(engine), group)
    for i, one in enumerate(group):
        ids = engine.prompt_with([{"role": "user", "content": one.text}], one.pictures)
        hold = engine.see(one.pictures.values())
        for j, other in enumerate(group):
            talk = [{"role": "user", "content": one.text}, {"role": "assistant", "content": other.wanted}]
            whole = engine.prompt_with(talk, one.pictures, add_generation_prompt=False)
            assert whole[: len(ids)] == ids
            ((_, (score,)),) = Scorer(engine).score([(ids, [whole[len(ids) :]])])
            assert score.total == together[i, j]
        del hold


@pytest.mark.parametrize(
    ("said", "wanted", "share"),
    [("abc", "abc", 1), ("abd", "abc", 2 / 3), ("", "abc", 0), ("abcd", "abc", 0.75), ("", "", 1)],
)
def test_how_much_of_a_text_was_read(said, wanted, share):
    assert read(said, wanted) == pytest.approx(share)
    assert read(wanted, said) == pytest.approx(share)
    assert right(f" {said}.", wanted) == (said == wanted)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["{rows}", "{rows}"], "there is a 'shapes' already"),
        (["{rows}", "--among", "1"], "one of one"),
        (["{rows}"], "does not see"),
        (["none.jsonl"], "there is no such file"),
    ],
)
def test_what_cannot_be_asked_is_said(path, rows, tmp_path, arguments, why):
    given = [one.format(rows=rows) for one in arguments]
    result = CliRunner().invoke(command.app, ["pictures", "-m", str(path), *given, "--out", str(tmp_path / "out")])
    assert result.exit_code
    assert why in str(result.exception) + result.output
    assert not (tmp_path / "out" / "results.json").exists()

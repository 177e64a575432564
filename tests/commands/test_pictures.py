"""Pictures from the command line: paths as they are typed and dragged, files found beside a model, questions about them."""

import io
import json
from contextlib import closing
from dataclasses import replace

import pytest

from gangpao import cli
from gangpao.commands import run
from gangpao.commands.chat import Chat, Local
from gangpao.commands.model.loading import load_engine
from gangpao.commands.model.sight import sight_of
from gangpao.commands.terminal import attach, kept, remote
from gangpao.cost import Meter
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import placed
from gangpao.engine.sample import SamplingParams
from gangpao.images import clips, look
from gangpao.serve.app import running
from gangpao.serve.server import Server, Settings
from tests.engine.pictures.linear_sight import LinearSight, picture, png
from tests.engine.tiny import write_tiny
from tests.formats.clip import clip
from tests.images.test_video import animated, colours

GREEDY = SamplingParams(temperature=0, max_tokens=10)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture(scope="module")
def engine(path):
    return Engine.load(path, context=512, num_threads=1, sight=LinearSight())


@pytest.fixture
def cat(tmp_path):
    folder = tmp_path / "my pictures"
    folder.mkdir()
    file = folder / "a cat's.png"
    file.write_bytes(png(seed=1))
    return file


def expected(engine, *turns):
    messages, shown = placed(turns)
    ids = engine.prompt_with(messages, shown)
    generation = engine.generate(ids, GREEDY, stop=engine.template.stop, pictures=engine.see(shown.values()))
    list(generation)
    return generation.text


def test_paths_as_terminals_write_them(cat, monkeypatch):
    text = str(cat)
    escaped = text.replace(" ", "\\ ").replace("'", "\\'")
    uri = cat.as_uri()
    for typed in (text, escaped, f'"{text}"', uri, f" {escaped} "):
        assert attach.dragged(typed) == (cat, ""), typed
    for typed in (escaped, f'"{text}"', uri):
        assert attach.dragged(f"{typed} what is it?") == (cat, "what is it?")
        assert attach.dragged(f"what is it? {typed}") == (cat, "what is it?")
        assert attach.split_path(f"{typed} what is it?") == (cat, "what is it?")
    monkeypatch.setenv("HOME", str(cat.parent.parent))
    assert attach.dragged("~/my\\ pictures/a\\ cat\\'s.png") == (cat, "")


@pytest.mark.parametrize(
    "words",
    [
        "what is /tmp?",
        "I'm here",
        "/no/such/cat.png",
        "cat.png",
        'don\'t say "cat"',
        "file:///none.png",
        "",
        "x" * 5000,
        "a\0b",
    ],
)
def test_words_are_no_paths(words):
    assert attach.dragged(words) == (None, words)


def test_files_that_are_no_pictures_say_why(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"text.png: the image is not a PNG, JPEG, WebP or GIF"):
        attach.load(text)
    with pytest.raises(ValueError, match="No such file"):
        attach.load(tmp_path / "none.png")
    with pytest.raises(ValueError, match="directory"):
        attach.load(tmp_path)


def cut_off(path):
    """A picture whose header is whole and whose pixels are not."""
    path.write_bytes(png(seed=4)[:-40])
    return path


def test_a_damaged_picture_is_named(engine, tmp_path, cat, monkeypatch, capsys):
    """By `run` among several, and in a conversation before anything is asked about it, so that the next question is asked."""
    broken = cut_off(tmp_path / "broken.png")
    monkeypatch.setattr(run.loading, "load_engine", lambda *_, **__: engine)
    monkeypatch.setattr(run.sys, "stdin", io.StringIO())
    assert cli.main(["run", "-m", "tiny", "what?", "--image", str(cat), "--image", str(broken)]) == 2
    assert f"{broken}: the PNG image is cut off" in capsys.readouterr().err
    chat = Chat(talk(engine))
    with pytest.raises(ValueError, match=r"broken\.png: the PNG image is cut off"):
        chat._attach(broken)
    assert chat.pictures == []


def test_run_answers_about_pictures(engine, cat):
    shown = attach.load(cat)
    found = run.start(engine, "what is it?", GREEDY, pictures=[shown, picture(seed=2)])
    list(found)
    turn = {"role": "user", "content": "what is it?", "pictures": [(0, shown), (0, picture(seed=2))]}
    assert found.text == expected(engine, turn)
    assert run.document(engine, found, Meter(None))["prompt_tokens"] > 10


def test_run_refuses_what_it_cannot_see(path):
    blind = Engine.load(path, context=512, num_threads=1)
    with pytest.raises(ValueError, match="does not see: it reads text only"):
        run.start(blind, "x", GREEDY, pictures=[picture()])


def talk(engine, **options):
    return Local(engine, {"temperature": 0, "max_tokens": 10}, meter=Meter(None), load=load_engine, **options)


def test_a_conversation_about_a_picture(engine, cat, capsys, tmp_path):
    chat = Chat(talk(engine))
    chat.command(f"/image {attach_text(cat)}")
    assert "1 picture (40 x 40) for your next question" in capsys.readouterr().out
    chat._ask("what is it?")
    first = {"role": "user", "content": "what is it?", "pictures": [(0, attach.load(cat))]}
    said = expected(engine, first)
    turns = chat.conversation.turns
    assert turns[1]["content"] == said
    calls = engine.seeing.sight.calls
    chat._ask("and then?")  # the picture went with the first question, and stays in the conversation
    assert engine.seeing.sight.calls == calls
    answer = {"role": "assistant", "content": said}
    assert turns[3]["content"] == expected(engine, first, answer, {"role": "user", "content": "and then?"})
    chat.command(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert saved[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert saved[0]["content"][1] == {"type": "text", "text": "what is it?"}
    chat.command(f"/save {tmp_path / 'talk.md'}")
    assert "[png 40 x 40]" in (tmp_path / "talk.md").read_text()


def attach_text(file) -> str:
    return f'"{file}"'


def test_a_dragged_picture_waits_for_a_question_and_a_retry_keeps_it(engine, cat, capsys):
    chat = Chat(talk(engine))
    chat._ask(attach_text(cat))
    assert (len(chat.pictures), chat.conversation.turns) == (1, [])
    chat._ask(f"{attach_text(cat)} which is larger?")
    assert chat.pictures == []
    assert len(chat.conversation.turns[0]["pictures"]) == 2
    chat.conversation.set("temperature", 1.0)
    chat.command("/retry")
    assert len(chat.conversation.turns[0]["pictures"]) == 2
    chat.command("/image none")
    capsys.readouterr()


def test_a_model_that_does_not_see_says_so_at_once(path, cat, capsys):
    chat = Chat(talk(Engine.load(path, context=512, num_threads=1)))
    chat._ask(attach_text(cat))
    chat.command(f"/image {attach_text(cat)}")
    assert capsys.readouterr().out.count("does not see") == 2
    assert chat.pictures == []


def test_connect_sends_pictures(path, engine):
    settings = Settings({"tiny": path}, sights={"tiny": LinearSight()}, port=0, batch=2, threads=1, context=512)
    with (
        running(Server(settings)) as url,
        closing(remote.connect(url, None, {"temperature": 0, "max_tokens": 10})) as there,
    ):
        answer = there.ask("what is it?", pictures=[picture(seed=3)])
        for _ in answer:
            pass
        there.keep(answer)
        asked = {"role": "user", "content": "what is it?", "pictures": [(0, picture(seed=3))]}
        assert answer.text == expected(engine, asked)
        again = there.ask("sure?")
        for _ in again:
            pass
        turns = [asked, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "sure?"}]
        assert again.text == expected(engine, *turns)


def test_what_a_model_sees_with_is_found_beside_it(tmp_path):
    model = write_tiny(tmp_path / "Tiny-V-Q4_K_M.gguf")
    assert sight_of(model) is None
    clip(tmp_path / "mmproj-model-f16.gguf", width=64)
    assert sight_of(model).name == "mmproj-model-f16.gguf"
    clip(tmp_path / "Tiny-V.mmproj-Q8_0.gguf", width=64)
    assert sight_of(model).name == "Tiny-V.mmproj-Q8_0.gguf"
    clip(tmp_path / "mmproj-Tiny-V-f16.gguf", width=64)
    assert sight_of(model).name == "mmproj-Tiny-V-f16.gguf"
    clip(tmp_path / "mmproj-Tiny-V-BF16.gguf", width=64)
    assert sight_of(model).name == "mmproj-Tiny-V-f16.gguf"
    other = write_tiny(tmp_path / "other.gguf")
    assert sight_of(other) is None  # which of two models a nameless file belongs to cannot be told
    assert sight_of(model, given="none") is None
    assert sight_of(model, given=str(tmp_path / "mmproj-model-f16.gguf")).name == "mmproj-model-f16.gguf"
    with pytest.raises(ValueError, match="there is no such file"):
        sight_of(model, given="/none.gguf")


def test_a_video_is_kept_and_sent(tmp_path):
    data = animated("GIF", colours(2), duration=1000)
    clip = clips.read(data)
    assert kept._are_places([[0, kept._file_of(clip)]])
    assert kept._are_places([[0, kept._file_of(replace(clip, kind="mp4"))]])
    sent = attach.as_parts({"role": "user", "content": "what?", "pictures": [(0, clip)]})["content"]
    assert [part["type"] for part in sent] == ["video_url", "text"]
    assert clips.read(look.in_data_url(sent[0]["video_url"]["url"])).clip == clip.clip


def test_an_encoder_of_another_width_is_passed_over(tmp_path):
    model = write_tiny(tmp_path / "tiny.gguf")
    clip(tmp_path / "mmproj-tiny.gguf", width=32)
    assert sight_of(model) is None

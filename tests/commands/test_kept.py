"""A conversation that outlives its process, and an answer in it that outgrows the context."""

import pytest

from gangpao import cost
from gangpao.commands.terminal.kept import KeptChat
from gangpao.commands.terminal.local import Local
from gangpao.engine.generate import Engine
from tests.engine.pictures.linear_sight import LinearSight, picture
from tests.engine.tiny import write_tiny


@pytest.fixture
def local(tmp_path, monkeypatch):
    """local(system) is a conversation that is kept as "work"."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = write_tiny(tmp_path / "tiny.gguf")

    def make(system="", max_tokens=12, sight=None):
        engine = Engine.load(path, context=512, num_threads=1, sight=sight)
        chosen = {"temperature": 0.0, "max_tokens": max_tokens}
        return Local(engine, chosen, meter=cost.Meter(), load=lambda _: engine, system=system, kept=KeptChat("work"))

    return make


def say(talk, text, *pictures):
    run = talk.ask(text, pictures=pictures)
    list(run)
    talk.keep(run)
    return run


def test_it_goes_on_where_it_was(local):
    first = local("be kind")
    assert "new" in first.kept.begin(first)
    for question in ("one", "two"):
        say(first, question)
    first.kept.end(first)
    second = local()
    assert "tokens of them read already" in second.kept.begin(second)
    assert (second.system, second.turns) == (first.system, first.turns)
    run, fresh = say(second, "three"), say(first, "three")
    assert run.text == fresh.text
    assert run.stats.cached_tokens == fresh.stats.cached_tokens > 0


def test_a_damaged_cache_costs_reading_and_nothing_else(local):
    first = local()
    first.kept.begin(first)
    say(first, "one")
    first.kept.end(first)
    first.kept.cache.write_bytes(first.kept.cache.read_bytes()[:-1])
    second = local()
    assert "anew" in second.kept.begin(second)
    assert second.turns == first.turns
    with pytest.raises(ValueError, match="another system message"):
        (third := local("be rude")).kept.begin(third)
    first.kept.said.write_text("{}")
    with pytest.raises(ValueError, match="no conversation"):
        second.kept.begin(second)
    with pytest.raises(ValueError, match="a name has"):
        KeptChat("../x")


def test_an_answer_that_outgrows_the_context_goes_on(local):
    talk = local("be kind", max_tokens=900)
    talk.chosen = {**talk.chosen, "temperature": 1.5, "seed": 3}
    for number in range(4):
        run = say(talk, f"question {number} " * 6)
        assert run.finish_reason == "stop" or run.stats.completion_tokens == 900
    assert talk.cached_tokens <= 512
    talk.shifts = False
    run = say(talk, "and now?")
    assert run.stats.dropped_tokens == 0


def test_pictures_are_kept_as_they_came(local):
    first = local(sight=LinearSight())
    first.kept.begin(first)
    say(first, "what is it?", picture(seed=1), picture(seed=2))
    say(first, "and these?", picture(seed=1), picture(seed=3))  # the first one again
    first.kept.end(first)
    assert len(list(first.kept.images.iterdir())) == 3
    second = local(sight=LinearSight())
    second.kept.begin(second)
    assert second.turns == first.turns
    assert say(second, "sure?").text == say(first, "sure?").text
    second.undo()
    second.undo()  # nobody shows the third picture any more
    second.kept.keep(second)
    assert len(list(second.kept.images.iterdir())) == 2


def test_a_picture_that_is_gone_is_missed_in_its_turn(local):
    first = local(sight=LinearSight())
    first.kept.begin(first)
    say(first, "what is it?", picture(seed=1), picture(seed=2))
    first.kept.end(first)
    gone, there = sorted(first.kept.images.iterdir(), key=lambda path: path.read_bytes() == picture(seed=2).data)
    gone.write_bytes(b"not what it was")
    second = local(sight=LinearSight())
    second.kept.begin(second)
    assert second.turns[0]["content"] == "[a picture that is not here any more]\nwhat is it?"
    assert second.turns[0]["pictures"] == [(len("[a picture that is not here any more]\n"), picture(seed=2))]
    assert say(second, "sure?").text
    assert there.exists()
    first.kept.said.write_text(first.kept.said.read_text().replace(there.name, "../../x.png"))
    with pytest.raises(ValueError, match="no conversation"):
        second.kept.begin(second)


def test_a_model_that_reads_text_only_goes_on_and_the_pictures_stay(local):
    first = local(sight=LinearSight())
    first.kept.begin(first)
    say(first, "what is it?", picture(seed=1))
    first.kept.end(first)
    blind = local()
    blind.kept.begin(blind)
    assert "pictures of this conversation are left out" in blind.greeting()
    assert say(blind, "sure?").text
    blind.kept.end(blind)
    again = local(sight=LinearSight())
    again.kept.begin(again)
    assert again.turns[0] == first.turns[0]
    assert again.greeting().endswith("sees pictures (/image FILE)")

"""What a chat remembers, computes again and drops."""

import pytest

from gangpao.commands.terminal.conversation import Conversation, fit
from tests.engine.fakes import fake_engine

GREEDY = {"temperature": 0, "max_tokens": 40}


def say(conversation, text):
    run = conversation.ask(text)
    list(run)
    conversation.keep(run)
    return run


def test_turns_reuse_the_cache():
    c = Conversation(fake_engine("one", "two", "three"), GREEDY, system="be brief")
    runs = [say(c, f"question {i}") for i in range(3)]
    assert [r.text for r in runs] == ["one", "two", "three"]
    for run in runs[1:]:
        assert run.stats.prompt_tokens - run.stats.cached_tokens < 16
    assert [m["role"] for m in c.messages] == ["system"] + ["user", "assistant"] * 3


def test_an_interrupted_answer_stays_in_the_history():
    c = Conversation(fake_engine("a long answer", "next"), GREEDY)
    run = c.ask("q")
    for piece in run:
        if piece.text == "l":
            break
    c.keep(run)
    assert c.turns[-1] == {"role": "assistant", "content": "a l"}
    assert say(c, "more").text == "next"


def test_a_question_interrupted_before_any_answer_is_forgotten():
    engine = fake_engine("x")
    c = Conversation(engine, GREEDY)
    engine.model.interrupt_at = 0
    run = c.ask("q" * 30)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    c.keep(run)
    assert c.turns == []
    engine.model.interrupt_at = None
    assert say(c, "again").text == "x"


def test_the_oldest_turns_are_dropped_to_half_and_the_system_message_stays():
    engine = fake_engine("r" * 20, context=200)
    c = Conversation(engine, GREEDY, system="sys")
    dropped = []
    for i in range(30):
        run = say(c, f"question number {i:03}")
        dropped.append(c.dropped)
        assert run.text == "r" * 20
        assert run.stats.prompt_tokens <= 200 - 40
    assert sum(dropped) == c.forgotten > 0
    assert all(d % 2 == 0 for d in dropped)  # a question goes with its answer
    assert sum(d > 0 for d in dropped) <= 15  # rarely, because each time half the context is freed
    assert len(c.messages) == 61
    ids = c._session.ids
    assert bytes(i for i in ids if i < 256).startswith(b"sys")


def test_fit_refuses_what_can_never_fit():
    engine = fake_engine("x", context=50)
    with pytest.raises(ValueError, match="holds 50"):
        fit(engine, "s" * 60, [{"role": "user", "content": "q"}], room=1)
    ids, dropped, _ = fit(engine, "", [{"role": "user", "content": "q" * 40}], room=30)
    assert dropped == 0
    assert len(ids) < 50


def test_reset_and_a_new_system_message():
    c = Conversation(fake_engine("one", "two"), GREEDY, system="a")
    say(c, "q")
    c.reset()
    assert c.messages == [{"role": "system", "content": "a"}]
    c.system = "b"
    assert say(c, "q").text == "one"

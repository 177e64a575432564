"""A budget of thinking: kept to the token, closed as the template closes it, never inside a character, the same in any company."""

import random
from dataclasses import replace

import numpy as np
import pytest

from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.thinking.options import NO_LIMIT, Thinking
from gangpao.engine.thinking.rule import NOTHING_SAID, rule_of
from gangpao.text.thoughts import KNOWN, Splitter, split
from tests.engine.company import ask
from tests.engine.fakes import fake_engine
from tests.engine.tiny import write_tiny
from tests.text.templates import thinkers

THINK = KNOWN[0]
CLOSE = "\n</think>\n\n"
ASK = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module", params=["one token", "many tokens"])
def thinker(request, tmp_path_factory):
    """A random model whose prompts open a thought; its marks are pieces of the vocabulary, or text."""
    path = tmp_path_factory.mktemp("m") / "tiny.gguf"
    marks = tuple(THINK) if request.param == "one token" else ()
    return Engine.load(write_tiny(path, template=thinkers.QWEN35, marks=marks), context=512, num_threads=1)


def prompt_of(engine, said=NOTHING_SAID):
    return engine.template.encode(engine.tokenizer, ASK, variables=said.variables())


def answer_of(engine, said, ids=None, speculate=True, **settings):
    ids = prompt_of(engine, said) if ids is None else ids
    never = dict.fromkeys(engine.tokenizer.end_ids, -100.0)  # a random model ends at any time
    params = SamplingParams(**{"max_tokens": 60, "seed": 1, "logit_bias": never, **settings})
    rule = rule_of(engine.template, engine.tokenizer, ids, said)
    generation = engine.generate(ids, params, speculate=speculate, thinking=rule)
    pieces = list(generation)
    return generation, pieces


def thought_of(generation, opened=True):
    return split(generation.text, Splitter(THINK, opened=opened))


@pytest.mark.parametrize("budget", [0, 1, 5, 12, 20, 33])
def test_a_budget_is_kept_and_the_answer_goes_on(thinker, budget):
    for seed in range(4):
        generation, pieces = answer_of(thinker, Thinking(think_budget=budget, think=True), seed=seed)
        stats = generation.stats
        close = len(thinker.tokenizer.encode(CLOSE, parse_special=True, start=False))
        assert stats.completion_tokens == 60
        assert 0 < stats.reasoning_tokens <= max(budget, close) + 3
        assert CLOSE.lstrip("\n") in generation.text
        thought, answer = thought_of(generation)
        assert answer
        assert sum(len(piece.ids) for piece in pieces) == 60
        if budget == 0:
            assert not thought
            assert generation.text.startswith(CLOSE)
        _, behind, _ = generation.text.partition("</think>\n\n")
        assert behind


def test_a_budget_that_is_not_used_up_changes_nothing(thinker):
    free = answer_of(thinker, Thinking(think_budget=NO_LIMIT))[0]
    plain = thinker.generate(prompt_of(thinker), SamplingParams(
        max_tokens=60, seed=1, logit_bias=dict.fromkeys(thinker.tokenizer.end_ids, -100.0)
    ))  # fmt: skip
    list(plain)
    assert free.text == plain.text
    assert free.stats.reasoning_tokens == 60


def test_max_tokens_never_leaves_an_empty_answer(thinker):
    generation, _ = answer_of(thinker, Thinking())
    assert 30 <= generation.stats.reasoning_tokens <= 45 + 3
    assert thought_of(generation)[1]
    generation, _ = answer_of(thinker, Thinking(think_budget=1000), max_tokens=20)
    assert thought_of(generation)[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_any_company_and_with_drafts_the_same_answer(thinker, temperature):
    rng = random.Random(3)
    said = [Thinking(think_budget=rng.choice([0, 7, 16, 25]), think=True) for _ in range(6)]
    settings = [{"seed": i, "temperature": temperature, "logprobs": i % 2 or None} for i in range(6)]
    expected = [answer_of(thinker, s, speculate=False, **more) for s, more in zip(said, settings, strict=True)]
    drafted = [answer_of(thinker, s, **more)[0].text for s, more in zip(said, settings, strict=True)]
    assert drafted == [generation.text for generation, _ in expected]
    running = Scheduler(thinker, batch=4)
    try:
        asked = []
        for s, more in zip(said, settings, strict=True):
            never = dict.fromkeys(thinker.tokenizer.end_ids, -100.0)
            ids = prompt_of(thinker, s)
            rule = rule_of(thinker.template, thinker.tokenizer, ids, s)
            asked.append(ask(running, ids, SamplingParams(max_tokens=60, logit_bias=never, **more), thinking=rule))
        for listener, (generation, pieces) in zip(asked, expected, strict=True):
            assert listener.wait() == generation.text
            assert [x for p in listener.pieces for x in p.logprobs] == [x for p in pieces for x in p.logprobs]
            assert listener.handle.stats.reasoning_tokens == generation.stats.reasoning_tokens
    finally:
        running.close(finish=False)


def test_forced_tokens_are_drafts(thinker):
    """The close of many tokens takes fewer steps than it has tokens."""
    generation, _ = answer_of(thinker, Thinking(think_budget=0, think=True), max_tokens=20)
    close = len(thinker.tokenizer.encode(CLOSE, parse_special=True, start=False))
    assert generation.stats.accepted >= close - 1


class Form:
    """A form that allows one letter only, and counts what it is told."""

    def __init__(self, token, length):
        self.token, self.left, self.heard = token, length, []

    @property
    def finished(self):
        return self.left == 0

    def apply(self, logits):
        value = logits[self.token]
        logits[:] = -np.inf
        logits[self.token] = value

    def accept(self, token):
        self.heard.append(token)
        self.left -= 1

    def forced(self):
        return [self.token] * min(self.left, 3)


@pytest.mark.parametrize("budget", [0, 9, 21])
def test_a_form_begins_behind_the_thought(thinker, budget):
    said = Thinking(think_budget=budget, think=True)
    ids = prompt_of(thinker, said)
    rule = replace(rule_of(thinker.template, thinker.tokenizer, ids, said), form="whole")
    running = Scheduler(thinker, batch=2)
    try:
        (letter,) = thinker.tokenizer.encode("x", start=False)
        form = Form(letter, 5)
        listener = ask(running, ids, SamplingParams(max_tokens=60, seed=2), thinking=rule, constraint=form)
        text = listener.wait()
    finally:
        running.close(finish=False)
    assert form.heard == [letter] * 5
    assert text.endswith(f"{THINK.end}\n\nxxxxx")
    assert listener.pieces[-1].finish_reason == "stop"


def thinks(reply, budget, message="", context=512, **settings):
    engine = fake_engine(reply, context=context)
    engine.template.thoughts = THINK
    said = Thinking(think_budget=budget, think_message=message)
    ids = engine.template.encode(engine.tokenizer, ASK)
    params = SamplingParams(temperature=0, max_tokens=400, **settings)
    generation = engine.generate(ids, params, thinking=rule_of(engine.template, engine.tokenizer, ids, said))
    list(generation)
    return generation


@pytest.mark.parametrize("budget", range(20, 60, 3))
def test_never_inside_a_character(budget):
    generation = thinks("<think>\n泰山很高，黄河很长，长江更长</think>\n\n好。" + "好" * 99, budget)
    thought, mark, _ = generation.text.partition("</think>\n\n")
    assert mark
    assert "\ufffd" not in thought  # what comes behind is this fake's reply, from somewhere in it


def test_between_words_and_behind_sentences():
    """One byte is one token here: the close comes at a blank near the limit, or at the end of a sentence somewhat before it."""
    reply = "<think>\n" + "wonderful things happen. " * 20 + "</think>\n\nYes." + "." * 200
    for budget in range(60, 200, 7):
        thought, _ = thought_of(thinks(reply, budget), opened=False)
        last = thought.split()[-1]
        whole = ("wonderful", "things", "happen.", "happen")
        # Within four tokens before the limit there may be no end of a word of nine letters.
        assert last in whole or any(word.startswith(last) for word in whole if len(word) > 4), thought
    ends = [
        thought_of(thinks(reply, budget), opened=False)[0] for budget in (95, 98, 104)
    ]  # the third sentence ends at 82
    assert all(thought.endswith("happen.") for thought in ends), ends


def test_a_message_comes_before_the_close():
    message = "Time is up."
    generation = thinks("<think>\n" + "so and so " * 30 + "</think>\n\nYes.", 60, message)
    assert f"{message}\n</think>\n\n" in generation.text
    assert generation.stats.reasoning_tokens <= 60
    assert message not in thinks("<think>\nso</think>\n\nYes.", 60, message).text


def test_a_thought_that_ends_in_time_is_left_alone():
    reply = "<think>\nso\n</think>\n\nYes."
    generation = thinks(reply, 100)
    assert generation.text == reply
    assert generation.stats.reasoning_tokens == len("<think>\nso\n</think>\n\n")
    generation = thinks("Yes, `<think>` is a mark.", 5)
    assert generation.text == "Yes, `<think>` is a mark."
    assert generation.stats.reasoning_tokens == 0


def test_an_open_backtick_does_not_quote_the_close():
    reply = "<think>" + "`" * 300
    generation = thinks(reply, 40)
    thought, answer = thought_of(generation, opened=False)
    assert set(thought) == {"`"}
    assert answer


def test_a_stop_string_in_a_thought_ends_nothing():
    reply = "<think>\none\n\ntwo\n</think>\n\nthree\n\nfour"
    generation = thinks(reply, 100, stop=("\n\n",))
    assert generation.text == "<think>\none\n\ntwo\n</think>\n\nthree"
    assert generation.finish_reason == "stop"
    assert thinks("one\n\ntwo", 100, stop=("\n\n",)).text == "one"
    assert thinks("<think>\nso</think>three", 100, stop=("thr",)).text == "<think>\nso</think>"


def test_what_is_said_becomes_a_limit():
    assert Thinking().most(100) == 75
    assert Thinking(think_budget=10).most(100) == 10
    assert Thinking(think_budget=1000).most(100) == 75
    assert Thinking(think_budget=NO_LIMIT).most(100) is None
    assert Thinking(think=False, think_budget=10).most(100) == 0
    assert [Thinking(effort=e).most(100) for e in ("low", "medium", "high", "huge")] == [20, 50, 75, 75]
    assert Thinking(effort="low").most(100_000) == 1024
    assert Thinking(effort="low").most(100, knows_effort=True) == 75
    assert Thinking(think_budget=0).on is False
    assert Thinking(think_budget=5).on is True
    assert Thinking.asked(None, "minimal").on is False
    assert Thinking.asked(None, "low").on is True
    assert Thinking(effort="high").on is None


def test_a_server_s_word_holds_where_a_request_has_none():
    own = Thinking(think_budget=100, think_message="m")
    assert Thinking().over(own) == own
    assert Thinking(think=False).over(own) == Thinking(think=False, think_message="m")
    assert Thinking(think=True).over(own).think_budget == 100
    assert Thinking(think_budget=7).over(own).think_budget == 7
    assert Thinking(think=True).over(Thinking(think=False)).on is True


def test_what_is_typed():
    assert [Thinking.typed(t) for t in ("on", "off", "default")] == [Thinking(think=b) for b in (True, False, None)]
    assert Thinking.typed("200") == Thinking(think_budget=200)
    assert Thinking.typed("low").effort == "low"
    assert str(Thinking.typed("200")) == "at most 200 tokens"
    assert [str(Thinking.typed(t)) for t in ("on", "off", "default", "-1")] == [
        "on", "off", "the model's own choice", "no limit"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="on, off, default"):
        Thinking.typed("much")

"""Generation over a fake model: stop strings, characters, ends, the cache across turns, and interrupts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.engine.answer import StopFilter
from gangpao.engine.sample import SamplingParams
from tests.engine.fakes import AI, BOS, END, USER, fake_engine

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=100)


def prompt(text: str) -> list[int]:
    return [BOS, USER, *text.encode(), END, AI]


def greedy(**kw) -> SamplingParams:
    return SamplingParams(temperature=0, repetition_penalty=1.0, **{"max_tokens": 100, **kw})


def test_streams_whole_characters_and_ends_at_the_end_token():
    reply = "the 山东 peak 🏔️ is 泰山"
    run = fake_engine(reply).generate(prompt("hi"), GREEDY)
    pieces = list(run)
    assert "".join(p.text for p in pieces) == run.text == reply
    assert not any("�" in p.text for p in pieces)
    assert bytes(i for p in pieces for i in p.ids) == reply.encode()
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert run.stats.completion_tokens == len(reply.encode())
    assert run.stats.prompt_tokens == len(prompt("hi"))
    assert run.stats.decode_steps == len(reply.encode())
    assert run.stats.prefill_tps > 0
    assert run.stats.decode_tps > 0


def test_max_tokens_flushes_a_half_character_as_a_replacement():
    run = fake_engine("a山").generate(prompt("x"), greedy(max_tokens=2))
    assert "".join(p.text for p in run) == "a�"
    assert run.finish_reason == "length"
    assert run.stats.completion_tokens == 2


@pytest.mark.parametrize(
    ("reply", "stops", "text"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one EN", ("END",), "one EN"),
        ("abababc!", ("ababc",), "ab"),
        ("你好用户再见", ("用户",), "你好"),
        ("x\n\ny", ("\n\n", "zzz"), "x"),
        ("stop", ("s",), ""),
        ("both first second", ("second", "first"), "both "),
    ],
)
def test_stop_strings_across_token_borders(reply, stops, text):
    run = fake_engine(reply).generate(prompt("q"), greedy(stop=stops))
    pieces = list(run)
    assert run.text == text
    assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("reply", "stops"),
    [("aaab", ("aab",)), ("天地玄黄x宇宙", ("x宇",)), ("天地", ("玄",)), ("abc", ("bc", "abcd")), ("ab", ("ab",))],
)
def test_tokens_go_out_with_their_text_and_those_of_text_that_was_cut_off_do_not(reply, stops):
    run = fake_engine(reply).generate(prompt("q"), greedy(stop=stops, logprobs=0))
    text, listed, offsets = "", [], []
    for piece in run:
        assert all(len(text) <= at < len(text) + len(piece.text) for at in piece.offsets)
        assert len(piece.ids) == len(piece.offsets) == len(piece.logprobs)
        text += piece.text
        listed += piece.ids
        offsets += piece.offsets
    assert bytes(listed).decode() == text  # one token a byte
    assert offsets == [i for i, c in enumerate(text) for _ in c.encode()]


@given(
    text=st.text(alphabet="ab<", max_size=30),
    stops=st.lists(st.text(alphabet="ab<", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(1, 6), min_size=30, max_size=30),
)
@settings(max_examples=300, deadline=None)
def test_stop_filter_emits_exactly_the_text_before_the_first_stop(text, stops, cuts):
    stop_filter, out, at = StopFilter(stops), "", 0
    for size in cuts:
        if at >= len(text) or stop_filter.found:
            break
        piece = stop_filter.push(text[at : at + size])
        at += size
        out += piece
        # Held back: never more than could still begin a stop string.
        held = text[len(out) : at]
        assert stop_filter.found or not held or any(s.startswith(held) and s != held for s in stops)
    # The filter sees pieces, so the first stop is the one that is complete first.
    ends = [(text[:n], s) for n in range(len(text) + 1) for s in stops if s in text[:n]]
    out += stop_filter.flush()
    if not ends:
        assert out == text
    else:
        assert stop_filter.found
        assert text.startswith(out)
        assert not any(s in out for s in stops)
        assert any(text[len(out) :].startswith(s) for s in stops)


def test_template_stops_are_added_to_the_request():
    run = fake_engine("hello<user>").generate(prompt("q"), greedy(stop=("zz",)), stop=("<user>",))
    assert "".join(p.text for p in run) == "hello"


def test_seed_repeats_and_is_reported():
    engine = fake_engine()
    wide = {"max_tokens": 30, "temperature": 1.5, "top_k": 0, "top_p": 1.0}
    first = engine.generate(prompt("q"), SamplingParams(**wide))
    ids = [i for p in first for i in p.ids]
    again = engine.generate(prompt("q"), SamplingParams(**wide, seed=first.seed))
    assert [i for p in again for i in p.ids] == ids
    other = engine.generate(prompt("q"), SamplingParams(**wide))
    assert other.seed != first.seed


def test_logprobs_ride_with_the_ids():
    run = fake_engine("山 ok").generate(prompt("q"), greedy(logprobs=2))
    for piece in run:
        assert [p.id for p in piece.logprobs] == list(piece.ids)
        assert all(p.top[0] == (p.id, p.logprob) and len(p.top) == 2 and p.logprob <= 0 for p in piece.logprobs)
    assert all(p.logprobs == () for p in fake_engine("a").generate(prompt("q"), GREEDY))


def test_a_second_turn_computes_only_what_is_new():
    engine = fake_engine("first", "second")
    session = engine.session()
    one = engine.generate(prompt("q1"), GREEDY, session=session)
    list(one)
    follow = [*prompt("q1"), *b"first", END, USER, *b"q2", END, AI]
    before = engine.model.computed
    two = engine.generate(follow, GREEDY, session=session)
    list(two)
    assert two.text == "second"
    assert two.stats.cached_tokens == len(prompt("q1")) + len("first")
    assert engine.model.computed - before == len(follow) - two.stats.cached_tokens + len("second")
    fresh = engine.generate(follow, GREEDY)
    assert "".join(p.text for p in fresh) == "second"
    assert session.ids == session.cache.ids


@given(
    turns=st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.integers(0, 12)), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_reuse_never_changes_the_text(turns):
    """Any sequence of prompts and early closes on one session gives what a fresh cache gives."""
    engine = fake_engine()
    session = engine.session()
    params = SamplingParams(seed=5, max_tokens=10, temperature=1.0)
    for prompt_ids, stop_after in turns:
        run = engine.generate(list(prompt_ids), params, session=session)
        ids = []
        for n, piece in enumerate(run):
            ids += piece.ids
            if n >= stop_after:
                break
        run.close()
        assert session.ids == session.cache.ids
        fresh = [i for p in engine.generate(list(prompt_ids), params) for i in p.ids]
        assert ids == fresh[: len(ids)]


def test_close_midway_keeps_text_stats_and_cache():
    engine = fake_engine("a long answer")
    session = engine.session()
    run = engine.generate(prompt("q"), GREEDY, session=session)
    for piece in run:
        if piece.text == "n":
            break
    run.close()
    assert run.text == "a lon"
    assert run.finish_reason is None
    assert run.stats.completion_tokens == 5
    assert run.stats.seconds > 0
    assert session.ids == session.cache.ids == [*prompt("q"), *b"a lo"]
    assert list(run) == []


@pytest.mark.parametrize("when", [0, 8, 16, 30, 33])
def test_ctrl_c_inside_the_model_leaves_a_usable_session(when):
    engine = fake_engine("some answer")
    session = engine.session()
    engine.model.interrupt_at = when
    run = engine.generate(prompt("a question of some length"), GREEDY, session=session)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert session.ids == session.cache.ids
    held = list(session.ids)
    engine.model.interrupt_at = None
    again = engine.generate(prompt("a question of some length"), GREEDY, session=session)
    assert "".join(p.text for p in again) == "some answer"
    assert again.stats.cached_tokens == min(len(held), len(prompt("a question of some length")) - 1)


def test_a_full_context_ends_the_answer():
    engine = fake_engine("x", context=20, end=False)
    session = engine.session()
    run = engine.generate(prompt("q"), greedy(max_tokens=1000), session=session)
    list(run)
    assert run.finish_reason == "length"
    assert len(session.ids) == 20
    # 15 fit beside the prompt, and the last one chosen needs no place in the cache.
    assert run.stats.completion_tokens == 20 - len(prompt("q")) + 1


def test_prompts_that_cannot_be_answered():
    engine = fake_engine("x", context=20)
    with pytest.raises(ValueError, match="empty"):
        engine.generate([])
    with pytest.raises(ValueError, match="25 tokens and the context holds 20"):
        engine.generate(prompt("q" * 21))


def test_prefill_progress():
    seen = []
    list(fake_engine("x").generate(prompt("q" * 20), GREEDY, on_prefill=lambda *a: seen.append(a)))
    assert seen == [(8, 24), (16, 24), (24, 24)]

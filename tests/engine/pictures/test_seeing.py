"""Rows of pictures in prompts: by ids = as token embeddings, in any company, from any cache."""

import gc
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from gangpao.engine.cache import PAGE
from gangpao.engine.generate import Engine
from gangpao.engine.pictures.prompts import placed
from gangpao.engine.pictures.rows import RowsFull
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Request, Scheduler
from gangpao.engine.transformer import Segment
from gangpao.formats.vision import Marks, Merger, Slicing
from gangpao.images import slices
from gangpao.images.canvas import Crop, MarkIds, canvas
from tests.engine.adapters import random_adapter
from tests.engine.company import GREEDY, alone, ask
from tests.engine.pictures.linear_sight import VISION, LinearSight, picture
from tests.engine.tiny import HIDDEN, write_tiny

VOCAB = 259


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("see") / "tiny.gguf")


@pytest.fixture
def engine(path):
    return Engine.load(path, context=512, num_threads=1, sight=LinearSight())


def turn(text: str, *pictures, at: int = 0) -> dict:
    return {"role": "user", "content": text, "pictures": [(at, p) for p in pictures]}


def prompt(engine, *turns):
    messages, pictures = placed(turns)
    return engine.prompt_with(messages, pictures), engine.see(pictures.values())


def rows_in(ids):
    return [i for i in ids if i >= VOCAB]


def test_ids_give_the_same_bits_as_the_floats_themselves(engine):
    """The floats go in through the embedding, under ids that stand for them there."""
    ids, hold = prompt(engine, turn("what is it?", picture(100, 60)))
    count = len(rows_in(ids))
    assert count > 5
    model, embed = engine.model, engine.model.embed
    values = {i: model.rows.take(np.array([i]))[0] for i in rows_in(ids)}
    by_ids = model.forward(ids, model.new_cache(512), all_logits=True)
    model.embed = lambda asked: np.stack(
        [values[i] if i in values else embed(np.array([i]))[0] for i in asked.tolist()]
    )
    model.rows, table = None, model.rows
    try:
        model.check_ids = lambda _: None
        by_floats = model.forward(ids, model.new_cache(512), all_logits=True)
    finally:
        model.embed, model.rows = embed, table
    assert np.array_equal(by_ids.view(np.uint32), by_floats.view(np.uint32))
    assert hold.rows


def test_an_answer_is_the_same_alone_and_in_company_cached_and_uncached(engine):
    asked = [
        [turn("what is it?", picture(seed=1))],
        [turn("what is it?", picture(seed=2))],
        [turn("and here?", picture(seed=1), picture(seed=2))],
        [turn("no picture at all")],
        [turn("a wide one", picture(200, 50, seed=3))],
    ]
    prompts = [prompt(engine, *turns) for turns in asked]
    expected = [alone(engine, ids)[0] for ids, _ in prompts]
    assert len(set(expected)) == len(expected)
    with_batch = Scheduler(engine, batch=4)
    try:
        for _ in range(2):  # the second time from what is remembered
            heard = [ask(with_batch, ids, pictures=hold) for ids, hold in prompts]
            assert [one.wait() for one in heard] == expected
        assert with_batch.counters.cached_tokens > sum(len(ids) - PAGE for ids, _ in prompts)
    finally:
        with_batch.close(finish=False)


def test_a_follow_up_question_encodes_nothing(engine):
    sight = engine.seeing.sight
    first, _ = prompt(engine, turn("what is it?", picture(seed=5)))
    assert sight.calls == 1
    second, _ = prompt(
        engine, turn("what is it?", picture(seed=5)), {"role": "assistant", "content": "a"}, turn("sure?")
    )
    assert sight.calls == 1
    assert rows_in(first) == rows_in(second)
    assert second[: len(first) - 1] == first[:-1]
    session = engine.session()
    list(engine.generate(first, GREEDY, session=session))
    run = engine.generate(second, GREEDY, session=session)
    list(run)
    assert run.stats.cached_tokens >= len(first)
    assert run.text == alone(engine, second)[0]


def test_rows_that_went_are_encoded_again(engine):
    table, sight = engine.seeing.table, engine.seeing.sight
    table.limit = 2 * 5 * HIDDEN * 4  # two pictures
    ids, hold = prompt(engine, turn("x", picture(seed=1)))
    text = alone(engine, ids)[0]
    del hold
    for seed in (2, 3):
        prompt(engine, turn("x", picture(seed=seed)))
    assert table.nbytes <= table.limit
    with pytest.raises(ValueError, match="outside the vocabulary"):
        engine.generate(ids, GREEDY)
    calls = sight.calls
    again, hold = prompt(engine, turn("x", picture(seed=1)))
    assert (again, sight.calls) == (ids, calls + 1)
    assert alone(engine, again)[0] == text
    assert hold.rows


def test_what_is_held_stays_and_what_does_not_fit_is_refused(engine):
    table = engine.seeing.table
    table.limit = 2 * 5 * HIDDEN * 4
    ids, hold = prompt(engine, turn("x", picture(seed=1), picture(seed=2)))
    with pytest.raises(RowsFull):
        prompt(engine, turn("x", picture(seed=3)))
    prompt(engine, turn("x", picture(seed=2)))  # is there
    with pytest.raises(ValueError, match="15 rows of pictures do not fit into the 10"):
        prompt(engine, turn("x", *(picture(seed=s) for s in (1, 2, 3))))
    assert table.missing(np.array(rows_in(ids))) is None
    del hold
    gc.collect()
    prompt(engine, turn("x", picture(seed=3)))
    assert table.nbytes <= table.limit


def test_preempted_answers_with_pictures_go_on_where_they_were(engine):
    """A pool with room for one and a half contexts: answers give their pages back and read their rows again."""
    prompts = [prompt(engine, turn("look" * 12, picture(120, 60, seed=s))) for s in range(4)]
    params = SamplingParams(temperature=0, max_tokens=150, logit_bias={256: -100.0, 258: -100.0})  # none ends early
    expected = [alone(engine, ids, params)[0] for ids, _ in prompts]
    small = Scheduler(engine, batch=4, pool_tokens=640)
    try:
        heard = [ask(small, ids, params, pictures=hold) for ids, hold in prompts]
        assert [one.wait() for one in heard] == expected
        assert small.counters.preempted > 0
    finally:
        small.close(finish=False)


def test_penalties_drafts_and_logprobs_pass_over_rows(engine):
    shown = picture(seed=7)
    ids, hold = prompt(
        engine, turn("say it again", shown, shown, shown), {"role": "assistant", "content": "a"}, turn("x", shown)
    )
    params = SamplingParams(temperature=0, max_tokens=60, repetition_penalty=1.3, presence_penalty=0.5, logprobs=2)
    text, said, _ = alone(engine, ids, params)
    assert all(i < VOCAB for i in said)
    many = Scheduler(engine, batch=2)
    try:
        heard = ask(many, ids, params, pictures=hold, prompt_logprobs=1)
        assert heard.wait() == text
        scores = heard.handle.prompt_logprobs
        assert [s is None for s in scores] == [i == 0 or token >= VOCAB for i, token in enumerate(ids)]
        again = ask(many, ids, params, pictures=hold, prompt_logprobs=1)  # from what is remembered
        assert again.wait() == text
        assert again.handle.prompt_logprobs == scores
    finally:
        many.close(finish=False)


def test_an_embedding_of_a_text_with_a_picture(engine):
    ids, hold = prompt(engine, turn("x", picture(seed=1)))
    cache = engine.model.new_cache(512)
    assert cache.reserve(len(ids))
    (states,) = engine.model.step([Segment(cache, ids, hidden=True)])
    found = []
    many = Scheduler(engine, batch=2)
    try:
        many.embed(ids, found.append, pictures=hold)
        many.close()
    finally:
        many.close(finish=False)
    np.testing.assert_allclose(found[0], states.mean(axis=0), rtol=1e-5)


def test_another_models_encoder_and_a_model_that_does_not_see_are_refused(path, engine):
    with pytest.raises(ValueError, match="belongs to another model"):
        Engine.load(path, context=512, num_threads=1, sight=LinearSight(text_size=32))
    blind = Engine.load(path, context=512, num_threads=1)
    messages, pictures = placed([turn("x", picture())])
    with pytest.raises(ValueError, match="does not see"):
        blind.prompt_with(messages, pictures)
    ids, _ = prompt(engine, turn("x", picture()))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        blind.generate(ids)


def test_work_can_be_ended_between_pieces(engine):
    def stop():
        if engine.seeing.sight.calls == 2:
            raise KeyboardInterrupt

    _, pictures = placed([turn("x", picture(200, 50))])
    with pytest.raises(KeyboardInterrupt):
        engine.see(pictures.values(), stop)
    assert engine.seeing.sight.calls == 2
    engine.see(pictures.values())
    assert engine.seeing.counters.pieces_cached == 2


def test_damaged_rows_of_an_encoder_are_refused(engine):
    engine.seeing.sight.encode = lambda piece, check=None: np.full((5, HIDDEN), np.nan, np.float32)
    with pytest.raises(ValueError, match="damaged or belongs to another model"):
        prompt(engine, turn("x", picture(seed=9)))


def test_positions_on_a_canvas(path):
    """Of a model that has them (MiniCPM-V 4.7), from the ids of the prompt; one of rows that follow each other has none."""
    marks = Marks(image=("<|im_start|>", "<|im_end|>"), slice=("<|endoftext|>", "<|endoftext|>"))
    merger = Merger(kind="merge", times=1)
    row = replace(VISION, merger=merger, slicing=Slicing(resolution=112, multiple=28, max_slices=4), marks=marks)
    shown, found = picture(260, 120, seed=1), []
    for one in (row, replace(row, canvas=True)):
        engine = Engine.load(path, context=512, num_threads=1, sight=LinearSight(vision=one))
        messages, pictures = placed([turn("see?", shown)])
        ids = engine.prompt_with(messages, pictures)
        found.append(engine.axes(ids, pictures.values()))
    plan = slices.sizes(260, 120, row)
    assert found[0] is None
    assert found[1].shape == (3, len(ids))
    starts = [ids.index(first) for first in engine.seeing.look(shown).rows]
    crops = [Crop(at, h // 2, w // 2) for at, (h, w) in zip(starts, plan.grids, strict=True)]
    newline = engine.tokenizer.encode("\n")[0]
    begin, end, cut = (engine.tokenizer.id_of(text) for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))
    assert np.array_equal(found[1], canvas(ids, crops, MarkIds(begin, end, cut, cut, newline)))
    assert len(crops) > 1


def test_adapters_beside_each_other_with_one_picture(path):
    """What one mix computed of a picture is never taken for another's."""
    config = Engine.load(path, context=64, num_threads=1).model.config
    made = {name: random_adapter(config, seed) for seed, name in enumerate("ab")}
    engine = Engine.load(path, context=512, num_threads=1, sight=LinearSight(), adapters=made)
    engine.use({})
    ids, hold = prompt(engine, turn("what is it?", picture(seed=1)))
    mixes = ({}, {"a": None}, {"b": 0.5}, {"a": 1.0, "b": None})
    expected = []
    for mix in mixes:
        run = engine.generate(ids, GREEDY, session=engine.session(mix), pictures=hold)
        list(run)
        expected.append(run.text)
    assert len(set(expected)) == len(mixes)
    many = Scheduler(engine, batch=4)
    try:
        for _ in range(2):
            heard = [ask(many, ids, pictures=hold, adapters=mix) for mix in mixes]
            assert [one.wait() for one in heard] == expected
    finally:
        many.close(finish=False)


def test_an_answer_that_ended_or_was_left_holds_no_rows(path):
    """At once, without the garbage collector."""
    engine = Engine.load(path, context=256, num_threads=1, sight=LinearSight())
    with closing(Scheduler(engine, batch=1, queue=4)) as scheduler:
        gc.disable()
        try:
            handles, ended = [], threading.Semaphore(0)
            for seed in range(4):
                messages, shown = placed([{"role": "user", "content": "a", "pictures": [(0, picture(seed=seed))]}])
                request = Request(engine.prompt_with(messages, shown), GREEDY, pictures=engine.see(shown.values()))
                handles.append(scheduler.submit(request, lambda piece: piece.finish_reason and ended.release()))
                del request
            handles[3].cancel()
            for _ in range(3):
                assert ended.acquire(timeout=20)
            until = time.monotonic() + 10
            while len(engine.seeing.table._holds) and time.monotonic() < until:
                time.sleep(0.01)
            assert len(engine.seeing.table._holds) == 0
        finally:
            gc.enable()
    assert len(handles) == 4

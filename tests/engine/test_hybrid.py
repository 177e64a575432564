"""Layers with a recurrent state in the engine: torch, llama.cpp, and the same bits in any company, cut and taken back."""

import random

import gguf
import numpy as np
import pytest
import torch

from gangpao.engine import memory
from gangpao.engine.cache import PAGE, bytes_needed
from gangpao.engine.generate import Engine
from gangpao.engine.layers.states import EVERY, slot_bytes
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.score import Scorer
from gangpao.engine.transformer import Segment, Transformer, greedy
from gangpao.formats.gguf import GGUF
from tests.engine import hybrid
from tests.engine.company import alone, ask
from tests.engine.speculate.heads import drafting, head_tensors, write_head
from tests.engine.test_scheduler import OnlyTokens, prompts, settings
from tests.llama_oracle import LlamaBatch

CONTEXT = 1024


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return hybrid.write(tmp_path_factory.mktemp("hybrid") / "m.gguf", hybrid.build(hybrid.hybrid()))


@pytest.fixture(scope="module")
def engine(path):
    return Engine.load(path, context=CONTEXT, num_threads=1)


@pytest.fixture(scope="module")
def model(engine):
    return engine.model


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(5).integers(0, 256, 700).tolist()


@pytest.fixture(scope="module")
def whole(model, ids):
    return model.forward(ids, model.new_cache(CONTEXT), all_logits=True)


def check(pool, live):
    """Every slot is free, or counted once for each text, snapshot and remembered state."""
    users = [0] * pool.states.native.num_slots
    for cache in live:
        state = cache.state
        for slot in [state.slot, state._spare, *state.snapshots.values()]:
            if slot is not None:
                users[slot] += 1
    for node in pool._nodes.values():
        for slot in node.states.values():
            users[slot] += 1
    assert users == pool.states._users
    assert sorted(pool.states._free) == [slot for slot, n in enumerate(users) if n == 0]
    assert pool.states.held == sum(len(cache.state.snapshots) for cache in live)


def test_it_is_torch_and_llama_cpp(path, tmp_path, ids):
    """In float32; keys and values are rounded to F16 in the engine."""
    built = hybrid.build(hybrid.hybrid())
    with torch.no_grad():
        expected = built.logits(built(torch.tensor([ids[:90]])).hidden)[0].numpy()
    with GGUF.open(path) as file:
        exact = Transformer.load(file, float32=True)
        ours = exact.forward(ids[:90], exact.new_cache(CONTEXT), all_logits=True)
        said = greedy(exact, ids[:90], 40)
    size = np.abs(expected).max()
    assert np.abs(ours - expected).max() < 2e-4 * size
    with LlamaBatch(path, n_ctx=256, exact=True) as llama:
        theirs = llama.logits(ids[:90])
        assert np.abs(theirs - expected).max() < 1e-4 * size
        text = ids[:90]
        for token in said:
            row = llama.logits(text)[-1]
            assert row.max() - row[token] < 1e-3 * size, "not what llama.cpp says"
            text.append(token)


def test_cut_is_whole(model, ids, whole):
    for cuts in ([1, 2, 63, 64, 65, 300, 700], [*range(0, 700, 37), 700]):
        cache, begin, rows = model.new_cache(CONTEXT), 0, []
        for end in cuts:
            if end > begin:
                rows.append(model.forward(ids[begin:end], cache, all_logits=True))
            begin = end
        assert np.array_equal(np.concatenate(rows), whole)


def test_texts_in_one_step_are_those_alone(model, ids, whole):
    pool = model.new_pool(CONTEXT, tokens=8 * CONTEXT)
    caches, segments = [], []
    for begin, more in ((10, 20), (0, 1), (65, 40), (640, 7)):
        cache = pool.new()
        if begin:
            model.forward(ids[:begin], cache)
        assert cache.reserve(more)
        caches.append(cache)
        segments.append(Segment(cache, ids[begin : begin + more], more))
    for segment, rows, begin in zip(segments, model.step(segments), (10, 0, 65, 640), strict=True):
        assert np.array_equal(rows, whole[begin : begin + len(segment.ids)])
    check(pool, caches)


def test_those_that_share_a_state_go_apart(model, ids, whole):
    """All in one step, none of them writing into what the others read."""
    pool = model.new_pool(CONTEXT, tokens=8 * CONTEXT)
    first = pool.new()
    model.forward(ids[:70], first)
    caches = [first, pool.fork(first), pool.fork(first)]
    for begin in (70, 75):
        segments = []
        for i, cache in enumerate(caches):
            assert cache.reserve(5)
            segments.append(Segment(cache, [*ids[begin : begin + 4], i], 5, drafts=1))
        for rows in model.step(segments):
            assert np.array_equal(rows[:4], whole[begin : begin + 4])
        for cache in caches:
            assert cache.truncate(begin + 4) == begin + 4
            assert cache.reserve(1)
            model.step([Segment(cache, ids[begin + 4 : begin + 5])])
        check(pool, caches)


def test_drafts_are_taken_back(model, ids, whole):
    cache, rng = model.new_cache(CONTEXT), random.Random(1)
    model.forward(ids[:100], cache)
    at = 100
    while at < 600:
        right, wrong = rng.randrange(4), rng.randrange(12)
        tried = [*ids[at : at + 1 + right], *(rng.randrange(256) for _ in range(wrong))]
        rows = model.forward(tried, cache, all_logits=True, drafts=len(tried) - 1)
        assert np.array_equal(rows.reshape(len(tried), -1)[: 1 + right], whole[at : at + 1 + right])
        at += 1 + right
        assert cache.truncate(at) == at
        check(cache.pool, [cache])


def test_a_text_is_cut_back_to_a_snapshot(model, ids, whole):
    cache = model.new_cache(CONTEXT)
    for length in (699, 698, 640, 513, 90, 30):
        if cache.length < 700:
            rows = model.forward(ids[cache.length :], cache, all_logits=True)
            assert np.array_equal(rows, whole[700 - len(rows) :])
        left = cache.truncate(length)
        assert left == {699: 640, 698: 640, 640: 640, 513: 512, 90: 0, 30: 0}[length]
        check(cache.pool, [cache])


def test_a_prefix_is_found_up_to_a_state(model, ids, whole):
    pool = model.new_pool(CONTEXT, tokens=4 * CONTEXT)
    cache = pool.new()
    model.forward(ids, cache)
    pool.finish(cache, ids)
    check(pool, [])
    for shared, known in ((700, 699 // PAGE * PAGE), (690, 640), (520, EVERY), (300, 0)):
        text = [*ids[:shared], 7, 8] if shared < 700 else ids
        found = pool.match_prefix(text)
        assert found.length == known
        rows = model.forward(text[known:], found, all_logits=True)
        assert np.array_equal(rows[: shared - known], whole[known:shared])
        check(pool, [found])
        pool.finish(found, text)
    longer = pool.match_prefix([*ids, 1, 2])  # the state at the very end
    assert longer.length == 700
    a = model.forward([1, 2], longer)
    assert np.array_equal(a, model.forward([*ids, 1, 2], model.new_cache(CONTEXT)))


def test_slots_are_never_lost(model, ids):
    rng = random.Random(3)
    pool = model.new_pool(300, tokens=900)
    live: list = []
    for _ in range(120):
        action = rng.random()
        if action < 0.5 or not live:
            text = [*ids[: rng.randrange(250)], *(rng.randrange(256) for _ in range(rng.randrange(1, 40)))]
            cache = pool.match_prefix(text)
            if cache.reserve(len(text) - cache.length):
                for begin in range(cache.length, len(text), 100):
                    assert cache.reserve(len(text[begin : begin + 100]))
                    model.step([Segment(cache, text[begin : begin + 100])])
                live.append((cache, text))
            else:
                pool.release(cache)
        elif action < 0.7:
            cache, text = rng.choice(live)
            del text[cache.truncate(rng.randrange(cache.length + 1)) :]
        else:
            cache, text = live.pop(rng.randrange(len(live)))
            pool.finish(cache, text)
        check(pool, [cache for cache, _ in live])


def test_answers_in_any_company(engine):
    """With drafts, little memory and common beginnings; a state is found again for many of them."""
    rng = random.Random(1)
    scheduler = Scheduler(engine, batch=5, pool_tokens=2 * CONTEXT)
    try:
        asked = [(ids, params, ask(scheduler, ids, params)) for ids in prompts(rng, 16) for params in [settings(rng)]]
        for ids, params, listener in asked:
            assert listener.wait() == alone(engine, ids, params)[0]
        for _ in range(2):
            assert ask(scheduler, asked[0][0], asked[0][1]).wait() == alone(engine, *asked[0][:2])[0]
        words = b'{"answer": 42, "why": "because"}'
        kept = ask(scheduler, [1, 2, 3], SamplingParams(max_tokens=100, seed=1), constraint=OnlyTokens(words))
        assert kept.wait() == words.decode()
    finally:
        scheduler.close()
    assert scheduler.counters.cached_tokens > 0
    assert scheduler.pool.pages_used == scheduler.pool.pages_kept
    check(scheduler.pool, [])


def test_those_that_wait_for_a_beginning_share_it(engine, ids):
    """The border of what they have in common is no border that is kept otherwise."""
    scheduler = Scheduler(engine, batch=4, pool_tokens=4 * CONTEXT)
    try:
        texts = [[*ids[:200], *range(n, n + 40)] for n in (1, 3, 5)]
        greedy_params = SamplingParams(temperature=0, max_tokens=4, repetition_penalty=1.0)
        listeners = [ask(scheduler, text, greedy_params) for text in texts]
        for text, listener in zip(texts, listeners, strict=True):
            assert listener.wait() == alone(engine, text, greedy_params)[0]
    finally:
        scheduler.close()
    assert scheduler.counters.cached_tokens == 2 * 192


def test_a_talk_goes_on_and_back(engine, ids):
    params = SamplingParams(temperature=0, max_tokens=30, repetition_penalty=1.0)
    session = engine.session()
    for prompt in (ids[:300], ids[:300], [*ids[:300], 5, 6, 7], ids[:130], ids[:650]):
        run = engine.generate(prompt, params, session=session)
        assert "".join(p.text for p in run) == alone(engine, prompt, params)[0]


def test_endings_are_scored(engine, ids, whole):
    logits = whole.astype(np.float64)
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    contexts = [ids[:n] for n in (100, 150, 200, 230, 300, 301, 302, 303)]
    items = [
        (context, [ids[len(context) : len(context) + 5], [9, 9], ids[len(context) : len(context) + 3]])
        for context in contexts
    ]
    for number, scores in Scorer(engine).score(items):
        n = len(contexts[number])
        expected = [logp[n - 1 + i, ids[n + i]] for i in range(5)]
        assert np.allclose(scores[0].logprobs, expected, atol=1e-5)
        assert scores[2].logprobs == scores[0].logprobs[:3]


def test_memory_counts_states(engine, path):
    config = engine.model.config
    kernel = engine.model.new_pool(CONTEXT).states.native
    assert kernel.nbytes == kernel.num_slots * slot_bytes(config.recurrent_layers, config.delta)
    assert slot_bytes(3, config.delta) == 3 * 4 * (4 * 16 * 16 + 3 * (2 * 32 + 64))
    for tokens in (CONTEXT, 5 * CONTEXT):
        assert engine.model.new_pool(CONTEXT, "f16", tokens).nbytes == bytes_needed(config, tokens, "f16", CONTEXT)
    size = bytes_needed(config, 4 * CONTEXT, "f16", CONTEXT)
    fits = memory.tokens_in(config, CONTEXT, "f16", size)
    assert 3 * CONTEXT <= fits <= 4 * CONTEXT
    with GGUF.open(path) as file:
        assert memory.estimate(file, config, CONTEXT, "f16").cache == bytes_needed(config, CONTEXT, "f16")


def test_positions_of_three_axes(engine, path, ids):
    """Rows and columns of a picture in the middle of a text; behind it the text goes on at the largest number and one."""
    built = hybrid.build(hybrid.hybrid())
    axes = np.stack([np.arange(60)] * 3)
    axes[0, 20:44] = 20
    axes[1, 20:44] = 20 + np.arange(24) // 6
    axes[2, 20:44] = 20 + np.arange(24) % 6
    axes[:, 44:] = np.arange(26, 42)
    text = ids[:80]
    places = np.concatenate([axes, np.tile(np.arange(42, 62), (3, 1))], axis=1)
    with torch.no_grad():
        expected = built.logits(built(torch.tensor([text]), positions_3BT=torch.tensor(places)[:, None]).hidden)[
            0
        ].numpy()
    with GGUF.open(path) as file:
        exact = Transformer.load(file, float32=True)
        rows = []
        cache = exact.new_cache(CONTEXT)
        cache.axes = axes
        for begin, end in ((0, 30), (30, 61), (61, 80)):
            rows.append(exact.forward(text[begin:end], cache, all_logits=True))
        plain = exact.forward(text, exact.new_cache(CONTEXT), all_logits=True)
        same = exact.new_cache(CONTEXT)
        same.axes = np.stack([np.arange(50)] * 3)
        assert np.array_equal(exact.forward(text, same, all_logits=True), plain)
    found = np.concatenate(rows)
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
    assert np.abs(found - plain).max() > 1e-2 * np.abs(expected).max()


def test_answers_to_pictures_keep_their_positions(engine, ids):
    """In a talk, in company, and from a remembered beginning; others beside it are not turned."""
    axes = np.stack([np.arange(80)] * 3)
    axes[:, 10:70] = np.array([[10], [11], [12]])
    axes[2, 10:70] += np.arange(60) % 9
    axes[:, 70:] = np.arange(21, 31)
    params = SamplingParams(temperature=0, max_tokens=20, repetition_penalty=1.0)
    expected = "".join(p.text for p in engine.generate(ids[:80], params, axes=axes))
    plain = alone(engine, ids[:80], params)[0]
    assert expected != plain
    scheduler = Scheduler(engine, batch=3, pool_tokens=3 * CONTEXT)
    try:
        listeners = [ask(scheduler, ids[:80], params, axes=axes), ask(scheduler, ids[100:180], params)]
        assert listeners[0].wait() == expected
        assert listeners[1].wait() == alone(engine, ids[100:180], params)[0]
        assert ask(scheduler, ids[:80], params, axes=axes).wait() == expected
    finally:
        scheduler.close()
    assert scheduler.counters.cached_tokens == 64


def test_a_draft_head_in_the_file_is_not_read(path, tmp_path, ids, whole):
    """As llama.cpp's converter writes it: a block more, which the header names."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen35")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = 5 if name == "qwen35.block_count" else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_uint32("qwen35.nextn_predict_layers", 1)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
        if tensor.name.startswith("blk.3."):
            writer.add_tensor(tensor.name.replace("blk.3.", "blk.4."), np.array(tensor.data))
    writer.add_tensor("blk.4.nextn.eh_proj.weight", np.ones((64, 128), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUF.open(tmp_path / "m.gguf") as found:
        model = Transformer.load(found)
        assert (model.config.num_hidden_layers, model.config.draft_layers) == (4, 1)
        assert np.array_equal(model.forward(ids[:50], model.new_cache(64)), whole[49])
        with GGUF.open(path) as plain:
            assert memory.estimate(found, model.config, 64, "f16") == memory.estimate(plain, model.config, 64, "f16")
        del model


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_a_draft_head_beside_recurrent_layers(path, tmp_path, kv):
    """Its part of the pages follows a text whose states are taken back; the text is the same."""
    width = hybrid.hybrid().hidden_size
    keys = {"embedding_length": width, "target_layers": [2, 4]}
    file = write_head(tmp_path / "head.gguf", path, head_tensors(hybrid.VOCAB, hidden=width), **keys)
    plain = Engine.load(path, context=CONTEXT, num_threads=1, kv_dtype=kv)
    model = drafting(path, file, kv_dtype=kv)
    ids = list(b"the quick brown fox ")
    for params in (
        SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=60),
        SamplingParams(temperature=0.9, seed=5, top_k=20, max_tokens=60),
    ):
        generation = model.generate(ids, params)
        list(generation)
        assert generation.text == alone(plain, ids, params)[0]
        assert generation.stats.drafted > 20
    assert model.speculation.draft.guesses_made > 20

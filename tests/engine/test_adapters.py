"""Adapters at work in the engine: the same bits in any company, prefixes of their own, the base untouched."""

from dataclasses import replace

import numpy as np
import pytest

from gangpao.engine import adapters, memory
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.score import Scorer
from gangpao.engine.transformer import Segment
from gangpao.formats.adapters import Adapter, Part, write_peft
from gangpao.formats.gguf import GGUF
from tests.engine.adapters import EVERY, random_adapter
from tests.engine.company import GREEDY, ask
from tests.engine.tiny import CONTEXT, write_tiny

IDS = np.random.default_rng(5).integers(0, 256, 150).tolist()
ALL = ("q_proj", "v_proj", "down_proj", "lm_head")
MIXES = [{}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5}, {"a": 1.0, "b": 0.25}, {"head": 1.0}]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("m") / "tiny.gguf")


@pytest.fixture(scope="module")
def engine(path):
    """With three adapters: on all layers, on few modules with another rank, and on the head, too."""
    engine = Engine.load(path, context=CONTEXT, num_threads=1)
    config = engine.model.config
    engine.model.add_adapter("a", random_adapter(config, 1))
    engine.model.add_adapter("b", random_adapter(config, 2, rank=3, modules=("k_proj", "up_proj")))
    engine.model.add_adapter("head", random_adapter(config, 3, modules=ALL))
    return engine


def logits(engine, mix, ids=IDS, **options):
    return engine.session(mix).engine.model.forward(
        ids, engine.model.new_cache(CONTEXT, "f16", engine.mix(mix)), **options
    )


def test_every_mix_is_a_model_of_its_own(engine):
    found = [logits(engine, mix) for mix in MIXES]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 0.1 for other in found[:i])


def test_the_base_and_scale_0_are_bits_of_the_engine_without_adapters(engine, path):
    plain = Engine.load(path, context=CONTEXT, num_threads=1)
    expected = plain.model.forward(IDS, plain.model.new_cache(CONTEXT), all_logits=True)
    for mix in ({}, {"a": 0.0}, {"a": 0, "b": 0.0, "head": 0.0}):
        assert np.array_equal(logits(engine, mix, all_logits=True), expected)


def test_a_step_of_mixed_adapters_is_each_alone(engine):
    """Prompts of many lengths, rows of the head at several places, and then a token each."""
    pool = engine.model.new_pool(CONTEXT, "f16", 8 * CONTEXT)
    prompts = [
        (mix, IDS[i : i + n])
        for i, (mix, n) in enumerate(zip([*MIXES, {"a": 1.0}], (9, 40, 1, 17, 30, 12, 50), strict=True))
    ]
    caches = [pool.new(engine.mix(mix)) for mix, _ in prompts]
    assert all(cache.reserve(64) for cache in caches)
    first = engine.model.step([Segment(c, ids, min(3, len(ids))) for c, (_, ids) in zip(caches, prompts, strict=True)])
    then = engine.model.step([Segment(cache, [7], 1) for cache in caches])
    for (mix, ids), rows, row in zip(prompts, first, then, strict=True):
        alone = logits(engine, mix, [*ids, 7], all_logits=True)
        assert np.array_equal(rows, alone[:-1][-3:])
        assert np.array_equal(row[0], alone[-1])


def test_cuts_threads_and_instruction_sets_change_no_bit(engine):
    from gangpao import kernels

    isa, threads = kernels.isa_name(), kernels.num_threads()
    mix = {"a": 1.0, "head": 0.5}
    expected = logits(engine, mix)
    try:
        for name in kernels.available_isas():
            kernels.set_isa(name)
            for count in (1, 3):
                kernels.set_num_threads(count)
                cache = engine.model.new_cache(CONTEXT, "f16", engine.mix(mix))
                for part in (IDS[:1], IDS[1:20], IDS[20:87], IDS[87:]):
                    got = engine.model.forward(part, cache)
                assert np.array_equal(got, expected), (name, count)
    finally:
        kernels.set_isa(isa)
        kernels.set_num_threads(threads)


def test_int8_is_close_to_float32(engine, path):
    """What rounding A and B costs, against an engine whose adapter is exact; the base's own int8 is not in it (F32 weights)."""
    exact = Engine.load(path, context=CONTEXT, num_threads=1, float32=True)
    exact.model.add_adapter("a", random_adapter(exact.model.config, 1))
    base, there, here = logits(exact, {}), logits(exact, {"a": 1.0}), logits(engine, {"a": 1.0})
    assert np.abs(here - there).std() < 0.03 * np.abs(there - base).std()


def test_quantized_matrices_are_close_to_what_they_were():
    rng = np.random.default_rng(1)
    a = (rng.normal(size=(5, 70)) * np.exp(rng.normal(size=(5, 1)) * 3)).astype(np.float32)
    b = (rng.normal(size=(37, 5)) * np.exp(rng.normal(size=(37, 1)))).astype(np.float32)
    b[16:32] = 0.0
    a8, b8, ranks, panels = adapters.quantize(a, b)
    got = np.repeat(panels, 16)[:37, None] * ((b8 * ranks) @ a8.astype(np.float32))
    assert np.abs(got - b @ a).std() < 0.02 * (b @ a).std()
    assert not got[16:32].any()
    assert not np.isnan(np.concatenate([x.ravel() for x in adapters.quantize(0 * a, 0 * b)])).any()


# --- answers


def alone(engine, ids, mix, **options):
    generation = engine.generate(ids, GREEDY, session=engine.session(mix), **options)
    for _ in generation:
        pass
    return generation


def test_answers_with_many_adapters_at_once_are_those_of_each_alone(engine):
    scheduler = Scheduler(engine, batch=6)
    try:
        asked = [(mix, IDS[:n]) for n in (100, 33) for mix in MIXES]
        listeners = [ask(scheduler, ids, adapters=mix) for mix, ids in asked]
        for listener, (mix, ids) in zip(listeners, asked, strict=True):
            assert listener.wait() == alone(engine, ids, mix).text
    finally:
        scheduler.close()


def test_a_prefix_is_shared_by_the_same_adapter_only(engine):
    scheduler = Scheduler(engine, batch=1, pool_tokens=4096)
    try:
        cached = []
        for mix in ({"a": 1.0}, {"b": 1.0}, None, {"a": 0.5}, {"a": 1.0}, {"a": None}, {}, {"a": 0.0}):
            listener = ask(scheduler, IDS, adapters=mix)
            listener.wait()
            cached.append(listener.handle.stats.cached_tokens)
        whole = len(IDS) - 1
        assert cached == [0, 0, 0, 0, whole, whole, whole, whole]
    finally:
        scheduler.close()


def test_scores_of_prompts_are_remembered_for_each_adapter(engine):
    scheduler = Scheduler(engine, batch=1)
    try:
        found = []
        for mix in ({}, {"a": 1.0}, {}):
            listener = ask(scheduler, IDS, adapters=mix, prompt_logprobs=1, prompt_only=True)
            listener.wait()
            found.append([x.logprob for x in listener.handle.prompt_logprobs[1:]])
        assert found[0] == found[2] != found[1]
        assert np.abs(np.array(found[0]) - found[1]).max() > 0.1
    finally:
        scheduler.close()


def test_roots_without_prefixes_go(engine):
    """A server whose clients name ever other scales must not remember all of them."""
    pool = engine.model.new_pool(CONTEXT, "f16", CONTEXT)
    for i in range(1, 40):
        cache = pool.match_prefix(IDS, engine.mix({"a": i / 7}))
        assert cache.length == 0
        assert cache.reserve(len(IDS))
        cache.length = len(IDS)
        pool.finish(cache, IDS)
    assert len(pool._roots) <= pool.pages


def test_drafts_do_not_change_an_answer_with_an_adapter(engine):
    ids = IDS[:20] * 4
    params = replace(GREEDY, max_tokens=60)
    texts = []
    for speculate in (True, False):
        generation = engine.generate(ids, params, session=engine.session({"a": 1.0}), speculate=speculate)
        list(generation)
        texts.append(generation.text)
    assert texts[0] == texts[1]


def test_embeddings_are_those_of_the_adapter(engine):
    scheduler = Scheduler(engine, batch=4)
    try:
        import queue

        found = {}
        for name, mix in (("base", {}), ("a", {"a": 1.0})):
            done = queue.SimpleQueue()
            scheduler.embed(IDS[:30], done.put, adapters=mix)
            found[name] = done.get(timeout=30)
        assert np.abs(found["base"] - found["a"]).max() > 0.1
    finally:
        scheduler.close()


def test_scores_of_endings(engine):
    items = [(IDS[:40], [IDS[40:44], IDS[60:61]]), (IDS[:40], [IDS[41:43]])]
    found = dict(Scorer(engine, adapters={"a": 1.0}).score(items))
    engine.use({"a": None})
    try:
        assert dict(Scorer(engine).score(items)) == found
        rows = engine.model.forward(IDS[:44], engine.model.new_cache(CONTEXT), all_logits=True).astype(np.float64)
    finally:
        engine.use({})
    logprobs = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    expected = [logprobs[39 + i, token] for i, token in enumerate(IDS[40:44])]
    np.testing.assert_allclose(found[0][0].logprobs, expected, atol=1e-4)
    assert dict(Scorer(engine).score(items)) != found


# --- loading


def test_a_peft_folder_is_loaded_with_the_model_and_used(path, engine, tmp_path):
    adapter = random_adapter(engine.model.config, 1)
    write_peft(tmp_path / "adapter", adapter)
    loaded = Engine.load(path, context=CONTEXT, num_threads=1, adapters={"x": tmp_path / "adapter", "y": adapter})
    assert loaded.model.adapters.names() == ["x", "y"]
    loaded.use({"x": 1.0})
    expected = logits(engine, {"a": 1.0})
    assert np.array_equal(loaded.session().feed(IDS), expected)
    assert np.array_equal(loaded.session({"y": None}).feed(IDS), expected)
    assert not np.array_equal(loaded.session({}).feed(IDS), expected)


def test_memory_counts_adapters(path, engine, monkeypatch):
    adapter = random_adapter(engine.model.config, 1, rank=64)
    size = adapters.bytes_of(adapter)
    with GGUF.open(path) as gguf:
        config = engine.model.config
        without = memory.estimate(gguf, config, 64, "f16").total
        assert memory.estimate(gguf, config, 64, "f16", adapters=size).total == without + size
    monkeypatch.setattr(memory.machine, "available_memory", lambda: without + size // 2)
    Engine.load(path, context=64)
    with pytest.raises(ValueError, match="not enough memory"):
        Engine.load(path, context=64, adapters={"a": adapter})


def one(name, rows, cols, **more):
    return Adapter({name: Part(np.ones((2, cols), np.float32), np.ones((rows, 2), np.float32), 1.0, **more)})


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (one("model.layers.0.self_attn.q_proj", 64, 96), r"an adapter of another base: its .*q_proj.weight is \[64, 96\]"),
        (one("model.layers.2.mlp.up_proj", 128, 64), "another base.*model.layers.2.mlp.up_proj"),
        (one("model.layers.0.mlp.experts.0.up_proj", 128, 64), "another base"),
        (one("model.embed_tokens", 259, 64), "embedding.*gangpao merge"),
        (one("model.layers.1.mlp.down_proj", 64, 128, magnitude=np.ones(64, np.float32)), "DoRA.*gangpao merge"),
        (Adapter({}), "changes nothing"),
        (Adapter({}, whole={"model.norm.weight": np.ones(64, np.float32)}), "model.norm.weight"),
        (
            Adapter({"lm_head": Part(np.full((1, 64), np.nan, np.float32), np.ones((259, 1), np.float32), 1.0)}),
            "not a number",
        ),
    ],
)  # fmt: skip
def test_what_is_not_computed_is_refused(engine, adapter, message):
    with pytest.raises(ValueError, match=message):
        engine.model.add_adapter("x", adapter)
    assert engine.model.adapters.names() == ["a", "b", "head"]


def test_names_and_scales_are_checked(engine):
    with pytest.raises(ValueError, match="no adapter 'c' here; there are a, b, head"):
        engine.session({"c": 1.0})
    for scale in (float("nan"), float("inf"), 1e9):
        with pytest.raises(ValueError, match="scale"):
            engine.mix({"a": scale})
    with pytest.raises(ValueError, match="called a already"):
        engine.model.add_adapter("a", random_adapter(engine.model.config, 9))


@pytest.mark.parametrize("modules", [ALL, ("k_proj", "up_proj"), ("lm_head",)])
def test_an_adapter_in_the_place_of_another_is_as_if_it_had_come_first(path, modules):
    """On fewer modules, and on the head alone: nothing of the one before is left. Its scale stays, and so does its neighbour."""
    replaced, fresh = (Engine.load(path, context=CONTEXT, num_threads=1) for _ in range(2))
    config = replaced.model.config
    replaced.model.add_adapter("a", random_adapter(config, 1, modules=(*EVERY, "lm_head")), scale=0.5)
    fresh.model.add_adapter("a", random_adapter(config, 4, modules=modules), scale=0.5)
    for one in (replaced, fresh):
        one.model.add_adapter("b", random_adapter(config, 2, rank=3, modules=("q_proj", "lm_head")))
    replaced.model.replace_adapter("a", random_adapter(config, 4, modules=modules))
    for mix in ({"a": None}, {"b": None}, {"a": None, "b": 0.5}):
        assert np.array_equal(logits(replaced, mix), logits(fresh, mix))


def test_sampled_answers_differ_by_adapter_alone(engine):
    """The same seed, another adapter: the settings of an answer stay its own."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20)
    texts = set()
    for mix in MIXES:
        generation = engine.generate(IDS[:10], params, session=engine.session(mix))
        list(generation)
        texts.add(generation.text)
    assert len(texts) == len(MIXES)

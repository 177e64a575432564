"""Draft heads: what they compute is llama.cpp's, the text is the same with them, and their part of the cache follows the text."""

import numpy as np
import pytest

from gangpao.engine import memory
from gangpao.engine.cache import PAGE
from gangpao.engine.config import ModelConfig
from gangpao.engine.generate import Engine
from gangpao.engine.sample import SamplingParams
from gangpao.engine.saved.session import restore, save
from gangpao.engine.scheduler import Scheduler
from gangpao.engine.sessions.store import PrefixFolder
from gangpao.engine.speculate.heads.head import DraftHead
from gangpao.engine.speculate.loading import open_draft
from gangpao.engine.transformer import CHUNK
from gangpao.formats.gguf import GGUF, ModelFileError
from gangpao.text.tokenizer import Tokenizer
from tests.engine.company import alone, ask
from tests.engine.speculate.head_oracle import LlamaHead
from tests.engine.speculate.heads import BLOCK, MASK, drafting, head_tensors, write_head
from tests.engine.tiny import HIDDEN, write_tiny

VOCAB = 259
IDS = [*b"the quick brown fox "]
LONG = [*b"0123456789 the quick brown fox jumps over the lazy dog " * 5]
SETTINGS = [
    SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=60),
    SamplingParams(temperature=0.9, seed=5, top_k=20, repetition_penalty=1.1, max_tokens=60),
    SamplingParams(temperature=1.4, seed=6, max_tokens=60, logprobs=2),
]
# Keys of the file, and what its tensors are.
KINDS = {
    "dspark": ({}, {}),
    "dspark behind a bonus token": ({"sample_from_anchor": False}, {}),
    "dspark without confidence": ({"has_confidence_head": False}, {"confidence": False}),
    "dflash": ({"sample_from_anchor": None, "has_confidence_head": None}, {"markov": False}),
    "causal": ({"attention__causal": True}, {}),
    "windows": ({"attention__sliding_window": 100, "attention__sliding_window_pattern": [True, False]}, {}),
    "windows, causal": (
        {
            "attention__sliding_window": 70,
            "attention__sliding_window_pattern": [False, True],
            "attention__causal": True,
        },
        {},
    ),
    "quantized": ({"kind": "Q8_0"}, {}),
    "three layers, scaled": ({"target_layers": [1, 0, 1], "embedding_scale": 1.7, "block_size": 3}, {"reads": 3}),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("large") / "large.gguf", seed=0)


@pytest.fixture(scope="module")
def head_path(path, tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("head") / "head.gguf", path)


def guesses(head: DraftHead, cache, last: int):
    """The most likely token of each guess of a block one after the other: logits [guesses, V], and how sure the head is."""
    number = head.run(cache, last)
    assert number is not None
    logits, sure = [], []
    for row in head.rows:
        found, told = head.guess(number, row, last)
        last = int(found.argmax())
        logits.append(found)
        sure.append(told)
    return np.stack(logits), sure


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [IDS, LONG], ids=["short", "long"])
def test_states_logits_and_confidence_are_llama_cpps(path, tmp_path, kind, ids):
    keys, tensors = KINDS[kind]
    file = write_head(tmp_path / "head.gguf", path, head_tensors(VOCAB, own=True, **tensors), **keys)
    engine = Engine.load(path, context=512, num_threads=1, draft=file)
    head = engine.speculation.draft
    cache = engine.model.new_cache(400)
    engine.model.forward(ids[:-1], cache)
    found, sure = guesses(head, cache, ids[-1])
    with LlamaHead(path, file, HIDDEN) as peer:
        assert peer.reads == list(head.config.reads)
        states = peer.states(ids[:-1])[-10:]
        end = (len(ids) - 2) % CHUNK + 1  # of the last step
        ours = head._reading.view[end - 10 : end]
        assert np.abs(states - ours).max() < 0.01 * np.abs(states).max()  # keys and values in f16 here, in f32 there
        rows, told = peer.block(ids[:-1], ids[-1], MASK, head.config.block, causal=head.config.causal)
    expected = rows[list(head.rows)]
    assert (
        len(expected)
        == head.config.guesses
        == (head.config.block if head.config.from_anchor else head.config.block - 1)
    )
    error = 0.05 if kind == "quantized" else 0.01  # activations in int8 on both sides, in groups of other sizes
    assert np.abs(found - expected).max() < error * np.abs(expected).max()
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    if head.weights.markov is not None and head.weights.markov.sure is not None:
        np.testing.assert_allclose(sure, told[list(head.rows)], atol=error / 5)
    else:
        assert sure == [None] * len(sure)


@pytest.mark.parametrize("params", SETTINGS)
@pytest.mark.parametrize("kind", ["dspark", "dspark behind a bonus token", "dflash"])
def test_the_same_text_with_a_head(engine, path, tmp_path, params, kind):
    keys, tensors = KINDS[kind]
    file = write_head(tmp_path / "head.gguf", path, head_tensors(VOCAB, **tensors), **keys)
    model = drafting(path, file)
    generation = model.generate(IDS, params)
    pieces = list(generation)
    expected = alone(engine, IDS, params)
    assert (generation.text, [i for p in pieces for i in p.ids], [x for p in pieces for x in p.logprobs]) == expected
    assert model.speculation.draft.guesses_made > 10
    assert generation.stats.drafted > 20


def foreseeing(monkeypatch, head, ids, wrong=lambda place: False):
    """Have a head guess the tokens of a text that is known, but for the places where it is wrong; its forward pass goes on."""
    real, at = DraftHead.guess, {}

    def run(self, cache, last, run=DraftHead.run):
        at["length"] = cache.length
        return run(self, cache, last)

    def guess(self, number, row, before):
        found = real(self, number, row, before)
        place = at["length"] + 1 + row - self.rows.start
        if found is None or place >= len(ids):
            return found
        logits = np.full_like(found[0], -50.0)
        logits[ids[place] if not wrong(place) else (ids[place] + 1) % 256] = 0.0
        return logits, found[1]

    monkeypatch.setattr(DraftHead, "run", run)
    monkeypatch.setattr(DraftHead, "guess", guess)


@pytest.mark.parametrize("wrong", [lambda place: False, lambda place: place % 3 == 0, lambda place: place % 7 < 4])
def test_right_guesses_save_steps_and_wrong_ones_leave_nothing(engine, path, head_path, monkeypatch, wrong):
    """The head's part of the cache behind an answer has the bits of one that read the text at once."""
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=150)
    text, said, _ = alone(engine, IDS, params)
    model = drafting(path, head_path)
    head = model.speculation.draft
    session = model.session()
    with monkeypatch.context() as m:
        foreseeing(m, head, [*IDS, *said], wrong)
        generation = model.generate(IDS, params, session=session)
        list(generation)
    assert generation.text == text
    assert 0 < generation.stats.accepted <= generation.stats.drafted
    if not wrong(0) and not wrong(3):
        assert generation.stats.accepted > 80
    else:
        assert generation.stats.accepted < generation.stats.drafted
    known = [*IDS, *said][: session.cache.length]
    fresh = model.model.new_cache(512)
    model.model.forward(known, fresh)
    for last in (65, 66):
        ours, theirs = guesses(head, session.cache, last), guesses(head, fresh, last)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]


def test_the_models_own_embedding_and_output_head_are_used(path, tmp_path, head_path):
    """A head that brings the same ones computes the same."""
    with GGUF.open(path) as gguf:
        table = gguf.array("token_embd.weight").copy()
    own = head_tensors(VOCAB) | {"token_embd.weight": table}  # no output.weight: theirs are tied, too
    found = []
    for file in (head_path, write_head(tmp_path / "own.gguf", path, own)):
        model = drafting(path, file)
        cache = model.model.new_cache(128)
        model.model.forward(IDS, cache)
        found.append(guesses(model.speculation.draft, cache, 65)[0])
        assert (model.speculation.draft.weights.output is model.model.weights.head) == (file == head_path)
    np.testing.assert_array_equal(*found)


def test_a_block_sees_all_of_the_text_and_of_itself(path, head_path):
    model = drafting(path, head_path)
    head = model.speculation.draft

    def found(ids, last):
        cache = model.model.new_cache(512)
        model.model.forward(ids, cache)
        return guesses(head, cache, last)[0]

    first = found(LONG, 65)
    assert not np.array_equal(first, found([1, *LONG[1:]], 65))
    head.config = type(head.config)(
        **{name: getattr(head.config, name) for name in head.config.__slots__} | {"causal": True}
    )
    assert not np.array_equal(first[:1], found(LONG, 65)[:1])


def test_answers_in_company_share_a_beginning_with_what_the_head_keeps_of_it(engine, path, head_path):
    """Guesses behind a prefix that was remembered, and behind a page that was copied, are those behind one that was computed."""
    model = drafting(path, head_path)
    head = model.speculation.draft
    prompts = [[*LONG[:100], i, i + 1] for i in (65, 70, 75, 80)]
    scheduler = Scheduler(model, batch=3)
    try:
        for params in SETTINGS:
            several = [ask(scheduler, ids, params) for ids in prompts]
            assert [one.wait() for one in several] == [alone(engine, ids, params)[0] for ids in prompts]
        assert head.guesses_made > 20
        assert scheduler.counters.cached_tokens > 0
        pool = scheduler.pool
    finally:
        scheduler.close()
    cache = pool.match_prefix([*LONG[:100], 65, 66, 0, 0])
    assert cache.length > PAGE
    fresh = model.model.new_cache(512)
    model.model.forward([*LONG[:100], 65, 66][: cache.length], fresh)
    np.testing.assert_array_equal(guesses(head, cache, 3)[0], guesses(head, fresh, 3)[0])


def test_pages_from_a_file_have_nothing_of_a_head(engine, path, head_path, tmp_path):
    """They lack what the head keeps: it sees the text behind them, and the answer is the same."""
    model = drafting(path, head_path)
    head = model.speculation.draft
    session = model.session()
    list(model.generate(LONG, SETTINGS[0], session=session))
    save(tmp_path / "talk", session)
    again = model.session()
    length = restore(tmp_path / "talk", again)
    assert length > 4 * PAGE
    assert head.run(again.cache, 65) is None  # nothing is known yet
    more = [*again.ids, *LONG[:100]]
    generation = model.generate(more, SETTINGS[0], session=again)
    before = head.guesses_made
    list(generation)
    assert generation.stats.cached_tokens == length
    assert generation.text == alone(engine, more, SETTINGS[0])[0]
    assert head.guesses_made > before

    folder = PrefixFolder(tmp_path / "prefixes", 10_000_000)
    for _ in range(2):
        scheduler = Scheduler(model, prefixes=folder)
        try:
            assert ask(scheduler, LONG, SETTINGS[0]).wait() == alone(engine, LONG, SETTINGS[0])[0]
        finally:
            scheduler.close()
        cache = scheduler.pool.match_prefix(LONG)
        seen = scheduler.pool.beside.first_seen(cache.pages[: cache.length // PAGE])
    assert scheduler.store.read_pages == 4
    assert seen == 4


def test_what_a_page_lacks_goes_with_its_copies_and_ends_with_it(path, head_path):
    pool = drafting(path, head_path).model.new_pool(512)
    one = pool.new()
    assert one.reserve(3 * PAGE)
    pool.page_for_file(one.pages[0])
    one.length = 10
    other = pool.fork(one)
    assert pool.beside.first_seen(other.pages) == 1
    assert other.reserve(1)
    assert other.pages[0] != one.pages[0]  # it is written to, so it is a page of its own
    assert pool.beside.first_seen(other.pages) == pool.beside.first_seen(one.pages) == 1
    pool.release(one)
    pool.release(other)
    new = pool.new()
    assert new.reserve(512)
    assert pool.beside.first_seen(new.pages) == 0


def test_a_head_goes_as_far_as_there_is_room(engine, path, tmp_path):
    """At the end of the context and of the positions that it knows nothing is guessed; the answer goes on."""
    for keys, most in (({}, 512), ({"context_length": 100}, 100)):
        model = drafting(path, write_head(tmp_path / "head.gguf", path, **keys))
        head = model.speculation.draft
        for length, fits in ((most - BLOCK, True), (most - BLOCK + 1, False)):
            cache = model.model.new_cache(512)
            model.model.forward((LONG * 2)[:length], cache)
            assert (head.run(cache, 65) is not None) == fits
    params = SamplingParams(temperature=0, repetition_penalty=1.0, max_tokens=300)
    ids = (LONG * 2)[:480]
    generation = model.generate(ids, params)
    list(generation)
    assert generation.text == alone(engine, ids, params)[0]


def test_the_last_block_is_the_one_that_is_read(path, head_path):
    model = drafting(path, head_path)
    head = model.speculation.draft
    cache = model.model.new_cache(128)
    assert head.run(cache, 65) is None  # an empty text
    model.model.forward(IDS, cache)
    first = head.run(cache, 65)
    assert head.guess(first, 0, 65) is not None
    assert head.run(cache, 66) == first + 1
    assert head.guess(first, 1, 65) is None
    assert cache.length == len(IDS)


def head_without(name):
    tensors = head_tensors(VOCAB)
    del tensors[name]
    return tensors


REFUSED = [
    ({"target_layers": [0, 3]}, None, ValueError, r"head cannot draft .* goes into layer 3, and this model has 2"),
    ({"target_layers": [0, 1, 1, 0]}, None, ValueError, r"head cannot draft .* reads 4 layers"),
    ({"target_layers": None}, None, ModelFileError, r"dflash.target_layers must be numbers"),
    ({"block_size": 1}, None, ModelFileError, r"dflash.block_size is 1, and 2 to 64"),
    ({"selector_top_k": 4}, None, ModelFileError, r"dflash.selector_top_k is 4: this kind of draft head is not supported"),
    ({"hidden_activation": "gelu"}, None, ModelFileError, r"dflash.hidden_activation is 'gelu'"),
    ({"attention__sliding_window": 64}, None, ModelFileError, r"sliding_window_pattern must say of each of 2 layers"),
    ({"embedding_length": 128}, None, ValueError, r"head cannot draft .* 128 numbers, and this model's have 64"),
    ({}, head_without("fc.weight"), ModelFileError, r"tensor fc.weight is missing"),
    ({}, head_tensors(VOCAB - 1), ModelFileError, r"markov_w1.weight has shape \(258, 32\), expected \(259, 32\)"),
    ({"target_layers": [1]}, None, ModelFileError, r"fc.weight has shape \(64, 128\), expected \(64, 64\)"),
    ({}, head_tensors(VOCAB) | {"fc.scale": np.ones(1, np.float32)}, ModelFileError, r"no place .*fc.scale"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "tensors", "error", "said"), REFUSED)
def test_what_cannot_draft_is_refused(path, tmp_path, keys, tensors, error, said):
    file = write_head(tmp_path / "head.gguf", path, tensors, **keys)
    with pytest.raises(error, match=said):
        Engine.load(path, context=64, draft=file)


def test_a_head_of_another_vocabulary_is_refused_by_the_token_that_differs(path, tmp_path):
    other = write_tiny(tmp_path / "other.gguf", marks=("<think>",))
    file = write_head(tmp_path / "head.gguf", other, head_tensors(VOCAB + 1))
    with pytest.raises(ValueError, match=r"head cannot draft .*260 tokens and this model 259.*<think>"):
        Engine.load(path, context=64, draft=file)


def test_a_head_is_no_model(head_path):
    with pytest.raises(ModelFileError, match=r"'dflash' is not supported; it is a draft head, .* \(--draft FILE\)"):
        Engine.load(head_path)


def test_memory_is_planned_with_a_head(path, head_path, monkeypatch):
    large = GGUF.open(path)
    config = ModelConfig.from_gguf(large)
    file = open_draft(head_path, Tokenizer.from_gguf(large.metadata), config)

    def planned(**positions):
        return memory.draft_bytes(file.gguf, file.config, 512, "f16", work=file.work, **positions)

    model = drafting(path, head_path)
    pool, wide = model.model.new_pool(512), model.model.new_pool(512, tokens=1024)
    assert wide.beside.native.nbytes - pool.beside.native.nbytes == planned(positions=1024) - planned()
    assert pool.nbytes == pool.native.nbytes + pool.beside.native.nbytes
    assert planned() > model.speculation.draft.nbytes + pool.beside.native.nbytes
    need = memory.estimate(large, config, 512, "f16", draft=planned()).total
    monkeypatch.setattr(memory.machine, "available_memory", lambda: need - 1)
    with pytest.raises(ValueError, match=r"Ways out: no draft model, which saves .* \(--draft none\)"):
        Engine.load(path, context=512, draft=head_path)

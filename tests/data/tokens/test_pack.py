"""The loader: nothing lost, nothing twice, the same for every number of ranks, and exactly resumable."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gangpao.data.tokens import pack
from gangpao.data.tokens.order import Permutation, choose, key_of, normalised
from gangpao.data.tokens.pack import IGNORE, Loader, Part, evaluation_batches, rows_in_epoch
from tests.data import makers


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Sources of different sizes whose tokens never repeat: a from 0, b from 100,000, c from 200,000."""
    folder = tmp_path_factory.mktemp("three")
    random = np.random.default_rng(0)
    lengths = {"a": [*random.integers(1, 90, 40), 1, 500], "b": random.integers(1, 12, 300), "c": [700, 3, 64, 64, 128]}
    return {
        name: makers.numbered(folder / name, list(n), start=i * 100_000) for i, (name, n) in enumerate(lengths.items())
    }


def loader(three, weights=(5, 3, 2), **options):
    parts = [Part(name, s, w) for (name, s), w in zip(three.items(), weights, strict=True)]
    return Loader(parts, **{"seq_len": 64, "seed": 1, **options})


def same(a, b):
    return all((getattr(a, f) == getattr(b, f)).all() for f in ("ids", "labels", "documents"))


def check_rows(batch, all_shards):
    """Labels and documents of a batch against the shards they come from."""
    ends = {int(s.tokens[o - 1]) for s in all_shards for o in s.offsets[1:]}
    starts = {int(s.tokens[o]) for s in all_shards for o in s.offsets[:-1]}
    for ids, labels, documents in zip(batch.ids.tolist(), batch.labels.tolist(), batch.documents.tolist(), strict=True):
        for t, token in enumerate(ids):
            assert labels[t] == (IGNORE if token in ends else token + 1)
            if t:
                assert documents[t] == documents[t - 1] + (token in starts)
        assert documents[0] == 0


def test_rows_are_documents_end_to_end(three):
    check_rows(loader(three).take(200), three.values())


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("seq_len", [1, 7, 64, 1000])
@pytest.mark.parametrize("window", [1, 5, 1024])
def test_every_epoch_has_every_token_once(three, name, seq_len, window, monkeypatch):
    """Up to the row in which an epoch ends nothing is seen twice but what that row holds of the next one."""
    monkeypatch.setattr(pack, "WINDOW", window)
    shards = three[name]
    one = Loader([Part(name, shards, 1.0)], seq_len=seq_len, seed=3)
    everything, seen, orders = shards.tokens.astype(int), np.zeros(0, int), []
    for epoch in (1, 2, 3):
        rows = -(-(epoch * shards.num_tokens) // seq_len) - one.rows_seen
        if not rows:  # documents shorter than a row: this epoch ended in the row before
            continue
        ids = one.take(rows).ids.reshape(-1)
        seen = np.append(seen, ids)
        counts = np.bincount(seen, minlength=everything.max() + 1)[everything]
        assert counts.min() == epoch
        assert counts.sum() == len(seen)
        assert (counts - epoch).sum() == len(seen) - epoch * shards.num_tokens < seq_len
        orders.append(ids[: shards.num_tokens - seq_len].tobytes())
    if shards.num_documents > 10 and shards.num_tokens > 4 * seq_len:
        assert len(set(orders)) == 3


def test_the_rows_of_a_long_document_do_not_follow_each_other(tmp_path):
    shards = makers.numbered(tmp_path / "s", [6400] * 20)
    ids = Loader([Part("s", shards, 1.0)], seq_len=64, seed=0).take(1000).ids
    document = ids[:, 0] // 6400
    alike = (document[1:] == document[:-1]).mean()
    assert alike < 0.2  # by chance one in ten: a window has ten documents
    batches = document.reshape(-1, 10)
    assert np.mean([len(set(batch)) for batch in batches.tolist()]) > 5


def test_every_label_once_an_epoch(three):
    shards = three["a"]
    one = Loader([Part("a", shards, 1.0)], seq_len=shards.num_tokens, seed=0)
    labels = one.take(1).labels
    assert sorted(labels[labels != IGNORE].tolist()) == sorted(
        set(shards.tokens.tolist()) - {int(t) for t in shards.tokens[shards.offsets[:-1].astype(int)]}
    )


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_the_order_does_not_depend_on_the_world(three, world):
    whole = loader(three).take(24)
    ranks = [loader(three) for _ in range(world)]
    parts = [ranks[r].take(24, r, world) for r in range(world)]
    for field in ("ids", "labels", "documents"):
        rows = [getattr(parts[i % world], field)[i // world] for i in range(24)]
        assert (np.stack(rows) == getattr(whole, field)).all()
    assert len({json.dumps(one.state()) for one in ranks}) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_batches_may_be_of_any_size(three, first, second):
    """However the rows are asked for, they are the same rows."""
    a, b = loader(three), loader(three)
    left = np.concatenate([a.take(n).ids for n in first] + [np.zeros((0, 64), np.int64)])
    right = np.concatenate([b.take(n).ids for n in second])
    n = min(len(left), len(right))
    assert (left[:n] == right[:n]).all()


@pytest.mark.parametrize("at", [0, 1, 5, 33, 150])
@pytest.mark.parametrize("whole", [False, True])
def test_resume_is_exact_also_with_another_world(three, at, whole):
    def make():
        return Loader(
            [Part(n, s, w, whole=whole) for (n, s), w in zip(three.items(), (1, 1, 3), strict=True)], seq_len=64, seed=9
        )

    uninterrupted = make()
    if at:
        uninterrupted.take(at)
    state = json.loads(json.dumps(uninterrupted.state()))
    assert len(json.dumps(state)) < 2000
    expected = uninterrupted.take(12)
    resumed = make()
    resumed.take(3)  # somewhere else first
    resumed.restore(state)
    assert same(resumed.take(12), expected)
    assert resumed.state() == uninterrupted.state()
    assert (resumed.tokens_seen, resumed.epochs) == (uninterrupted.tokens_seen, uninterrupted.epochs)
    two = [make(), make()]
    for one in two:
        one.restore(state)
    halves = [one.take(12, rank, 2) for rank, one in enumerate(two)]
    assert (np.stack([halves[0].ids, halves[1].ids], 1).reshape(12, 64) == expected.ids).all()


def test_a_wrong_state_is_refused_and_changes_nothing(three, tmp_path):
    one = loader(three)
    one.take(10)
    good = one.state()
    other = {**three, "b": makers.numbered(tmp_path / "b", [5, 6], start=100_000)}
    for strange in (
        loader(other),
        loader(three, seed=2),
        loader(three, seq_len=32),
        loader(three, window=9),
        loader(three, weights=(5, 3, 1)),
    ):
        before = strange.state()
        with pytest.raises(ValueError, match=r"saved|seed|fingerprint"):
            strange.restore(good)
        assert strange.state() == before
    bad_positions = (
        {"index": 10**6},
        {"offset": 10**6},
        {"taken": 10**6},
        {"epoch": -1},
        {"tokens": "many"},
        {"extra": 1},
    )
    damaged = [{}, {**good, "rows": -1}, {**good, "version": 99}, {**good, "parts": {}}]
    damaged += [{**good, "parts": {**good["parts"], "c": {**good["parts"]["c"], **bad}}} for bad in bad_positions]
    for state in damaged:
        with pytest.raises(ValueError, match="saved data position"):
            one.restore(state)
        assert one.state() == good


def test_shares_follow_the_weights_from_the_start(three):
    random = np.random.default_rng(4)
    for trial in range(12):
        weights = random.dirichlet([0.5] * 3) + 1e-3
        one = loader(three, weights=tuple(weights), seed=trial)
        target = weights / weights.sum()
        for rows in range(1, 300):
            one.take(1)
            seen = np.array(list(one.tokens_seen.values()))
            assert seen.sum() == rows * 64
            assert (abs(seen - target * rows * 64) <= 2.5 * 64).all()


def test_many_sources_keep_their_shares():
    """The choice alone, with 40 sources: never more than a few rows off, and no source is always with the same rank."""
    random = np.random.default_rng(5)
    shares = list(normalised({str(i): w for i, w in enumerate(random.dirichlet([1.0] * 40))}).values())
    seen = [0] * 40
    for row in range(4000):
        seen[choose(shares, seen, 1, key_of(row))] += 1
    assert max(abs(n - share * 4000) for n, share in zip(seen, shares, strict=True)) < 6
    order, seen = [], [0, 0]
    for row in range(400):
        order.append(choose([0.5, 0.5], seen, 1, key_of(row)))
        seen[order[-1]] += 1
    assert 40 < sum(order[::2]) < 160


def test_counts_are_what_was_handed_out(three):
    one = loader(three)
    ids = one.take(90).ids
    for i, (name, shards) in enumerate(three.items()):
        mine = int(((ids >= i * 100_000) & (ids < (i + 1) * 100_000)).sum())
        assert one.tokens_seen[name] == mine
        assert one.epochs[name] == mine / shards.num_tokens
    assert one.rows_seen == 90


def test_a_weight_of_zero_is_never_drawn_and_may_be_empty(three, tmp_path):
    parts = [
        Part("a", three["a"], 1.0),
        Part("none", makers.shards(tmp_path / "n", []), 0.0),
        Part("b", three["b"], 0.0),
    ]
    one = Loader(parts, seq_len=64, seed=0)
    assert one.take(50).ids.max() < 100_000
    assert one.tokens_seen == {"a": 3200, "none": 0, "b": 0}
    again = Loader(parts, seq_len=64, seed=0)
    again.restore(one.state())
    assert same(again.take(3), one.take(3))


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, -1, 1), (1, float("nan"), 1), (1, float("inf"), 1)])
def test_bad_weights(three, weights):
    with pytest.raises(ValueError, match="weight"):
        loader(three, weights=weights)


def test_bad_arguments(three, tmp_path):
    with pytest.raises(ValueError, match="same name"):
        Loader([Part("a", three["a"], 1), Part("a", three["b"], 1)], seq_len=4, seed=0)
    with pytest.raises(ValueError, match="no documents"):
        Loader([Part("n", makers.shards(tmp_path / "n", []), 1)], seq_len=4, seed=0)
    with pytest.raises(ValueError, match="seq_len"):
        loader(three, seq_len=0)
    for arguments in ((0,), (4, 1), (4, -1, 2), (4, 2, 2)):
        with pytest.raises(ValueError, match="rank"):
            loader(three).take(*arguments)


def test_masked_tokens_are_never_labels(tmp_path):
    random = np.random.default_rng(6)
    documents = [list(range(i * 100, i * 100 + n)) for i, n in enumerate(random.integers(1, 60, 50))]
    masks = [random.integers(0, 2, len(d)).tolist() for d in documents]
    shards = makers.shards(tmp_path / "s", documents, masks=masks)
    learned = sorted(
        t for d, m in zip(documents, masks, strict=True) for t, one in list(zip(d, m, strict=True))[1:] if one
    )
    one = Loader([Part("s", shards, 1.0)], seq_len=shards.num_tokens, seed=0).take(1)
    batches = list(evaluation_batches(shards, 32, 4))
    for labels in (one.labels, np.concatenate([b.labels for b in batches])):
        assert sorted(labels[labels != IGNORE].tolist()) == learned


def test_whole_documents_are_not_cut(tmp_path):
    random = np.random.default_rng(7)
    shards = makers.numbered(tmp_path / "s", [*random.integers(1, 64, 100), 64, 200])
    one = Loader([Part("s", shards, 1.0, whole=True)], seq_len=64, seed=0)
    seen = []
    while one.tokens_seen["s"] < shards.num_tokens:
        batch = one.take(1)
        documents, ids, labels = batch.documents[0], batch.ids[0], batch.labels[0]
        groups = [ids[documents == n].tolist() for n in range(documents[-1] + 1)]
        if (labels[documents == documents[-1]] == IGNORE).all() and not any(groups[-1]):
            groups.pop()  # padding
        seen += groups
    assert sum(map(len, seen)) == one.tokens_seen["s"]
    lengths = dict(
        zip(shards.tokens[shards.offsets[:-1].astype(int)].tolist(), np.diff(shards.offsets).tolist(), strict=True)
    )
    for group in seen:
        if group[0] in lengths and lengths[group[0]] <= 64:
            assert len(group) == lengths[group[0]]


def test_whole_documents_leave_little_room_and_are_seen_once_an_epoch(tmp_path):
    random = np.random.default_rng(8)
    shards = makers.numbered(tmp_path / "s", random.integers(5, 60, 300))
    part = Part("s", shards, 1.0, whole=True)
    rows = rows_in_epoch(part, 64, 3)
    assert rows * 64 < 1.05 * shards.num_tokens
    one = Loader([part], seq_len=64, seed=3)
    batch = one.take(rows)
    assert one.tokens_seen == {"s": shards.num_tokens}
    assert len(np.unique(batch.ids)) == shards.num_tokens
    small = Loader([part], seq_len=64, seed=3, window=4)
    while small.tokens_seen["s"] < shards.num_tokens:
        small.take(1)
    assert small.epochs == {"s": 1.0}  # the last row of an epoch holds nothing of the next one
    batches = list(evaluation_batches(shards, 64, 8, whole=True))
    starts = {int(shards.tokens[int(start)]) for start in shards.offsets[:-1]}
    for ids, documents in ((i, d) for b in batches for i, d in zip(b.ids, b.documents, strict=True)):
        assert all(int(ids[documents == n][0]) in starts | {0} for n in np.unique(documents))


def test_a_new_stage_goes_on_where_the_old_one_was(three):
    stable = loader(three)
    stable.take(5)
    position = stable.state()
    rest = Loader([Part("a", three["a"], 1)], seq_len=64, seed=1)
    assert rest.adopt(position) == ["a"]
    assert rest.tokens_seen == {"a": 0}
    alone = Loader([Part("a", three["a"], 1)], seq_len=64, seed=1)
    alone.take(position["parts"]["a"]["tokens"] // 64)
    assert same(rest.take(4), alone.take(4))
    with pytest.raises(ValueError, match="seed"):
        Loader([Part("a", three["a"], 1)], seq_len=64, seed=2).adopt(position)


def test_a_border_inside_one_mixture_is_none(three):
    """Cut anywhere, also in the middle of a window: the rows of every batch are those of the uncut run, in their order."""
    whole, cut = loader(three, window=8), loader(three, window=8)
    for rows in (1, 5, 8, 3, 16, 2, 7):
        assert same(cut.take(rows), whole.take(rows))
        after = loader(three, window=8)
        assert after.adopt(cut.state()) == list(three)
        assert (after.tokens_seen, after.rows_seen) == (whole.tokens_seen, whole.rows_seen)
        cut = after
    for rank in range(2):
        one, two = loader(three, window=8), loader(three, window=8)
        one.adopt(cut.state())
        two.restore(cut.state())
        assert same(one.take(6, rank, 2), two.take(6, rank, 2))


def test_another_mixture_counts_its_shares_from_zero(three):
    stable = loader(three)
    stable.take(9)
    changes = [{"weight": 7.0}, {"whole": True}]
    for change in changes:
        parts = [dataclasses.replace(part, **(change if part.name == "b" else {})) for part in stable._parts]
        decay = Loader(parts, seq_len=64, seed=1)
        decay.adopt(stable.state())
        assert (decay.rows_seen, set(decay.tokens_seen.values())) == (0, {0})


def test_a_new_stage_with_longer_rows_sees_what_is_left(three, monkeypatch):
    """It begins behind the window that was begun: nothing that was seen comes again before the rest."""
    monkeypatch.setattr(pack, "WINDOW", 4)
    parts = [Part("a", three["a"], 1.0)]
    stable = Loader(parts, seq_len=64, seed=1)
    before = stable.take(6).ids
    rest = Loader(parts, seq_len=128, seed=1)
    rest.adopt(stable.state())
    after = rest.take(-(-(three["a"].num_tokens - 8 * 64) // 128)).ids
    left = after.reshape(-1)[: three["a"].num_tokens - 8 * 64]
    assert not set(before.reshape(-1)) & set(left)


def test_a_window_as_long_as_the_source_mixes_all_of_it(three):
    shards = three["a"]
    rows = -(-shards.num_tokens // 64)
    one, whole = (Loader([Part("a", shards, 1.0)], seq_len=64, seed=1, window=n) for n in (2, 10**6))
    assert sorted(whole.take(rows).ids[:, 0].tolist()) == sorted(one.take(rows).ids[:, 0].tolist())
    again = Loader([Part("a", shards, 1.0)], seq_len=64, seed=1, window=10**6)
    again.restore(whole.state())
    assert same(again.take(5), whole.take(5))


def test_a_new_stage_with_another_window_sees_what_is_left(three):
    parts = [Part("a", three["a"], 1.0)]
    stable = Loader(parts, seq_len=64, seed=1, window=4)
    before = stable.take(6).ids
    rest = Loader(parts, seq_len=64, seed=1, window=7)
    rest.adopt(stable.state())
    left = rest.take((three["a"].num_tokens - 8 * 64) // 64).ids
    assert not set(before.reshape(-1)) & set(left.reshape(-1))


def test_restoring_works_a_window_out_once(three, monkeypatch):
    one = loader(three)
    one.take(7)
    state, other, seen = one.state(), loader(three), []
    look = pack._Stream._look_ahead
    monkeypatch.setattr(pack._Stream, "_look_ahead", lambda self: (seen.append(not self.rows), look(self))[1])
    other.restore(state)
    other.take(3)
    assert sum(seen) <= len(three)


def test_a_position_from_before_rows_were_shuffled_is_taken(three):
    """Its rows were those up to here, in the order of the stream: what follows is what was not seen."""
    one = loader(three)
    state = one.state()
    for part in state["parts"].values():
        del part["taken"]
    one.restore({**state, "version": 1})
    assert same(one.take(5), loader(three).take(5))


@pytest.mark.parametrize(("seq_len", "rows"), [(16, 4), (64, 1), (1000, 3), (1, 50)])
def test_evaluation_sees_everything_once_in_order(three, seq_len, rows):
    shards = three["a"]
    batches = list(evaluation_batches(shards, seq_len, rows))
    assert {b.ids.shape for b in batches} == {(rows, seq_len)}
    ids = np.concatenate([b.ids.reshape(-1) for b in batches])
    labels = np.concatenate([b.labels.reshape(-1) for b in batches])
    assert (ids[: shards.num_tokens] == shards.tokens).all()
    assert not ids[shards.num_tokens :].any()
    assert (labels[shards.num_tokens :] == IGNORE).all()
    assert len(ids) - shards.num_tokens < rows * seq_len
    assert (labels != IGNORE).sum() == shards.num_tokens - shards.num_documents
    limit = min(100, shards.num_tokens)
    short = np.concatenate(
        [b.labels.reshape(-1) for b in evaluation_batches(shards, seq_len, rows, limit_tokens=limit)]
    )
    assert (short[:limit] == labels[:limit]).all()
    assert (short[limit:] == IGNORE).all()
    assert not list(evaluation_batches(shards, seq_len, rows, limit_tokens=0))


def test_padding_is_a_document_of_its_own(tmp_path):
    (batch,) = evaluation_batches(makers.numbered(tmp_path / "s", [5, 3]), 16, 2)
    assert batch.documents[0].tolist() == [0] * 5 + [1] * 3 + [2] * 8


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1009, 4096])
def test_permutations_are_permutations(count):
    orders = [[Permutation(count, key)(i) for i in range(count)] for key in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count >= 16:
        assert len({tuple(order) for order in orders}) == 3


def test_permutations_are_shuffled():
    """Chi-squared of where 8 elements go, over 4,000 keys; neighbours and fixed points as often as chance has them."""
    count, keys = 8, 4000
    table = np.zeros((count, count))
    for key in range(keys):
        order = Permutation(count, key_of(key))
        table[range(count), [order(i) for i in range(count)]] += 1
    expected = keys / count
    assert ((table - expected) ** 2 / expected).sum() < 49 + 4 * (2 * 49) ** 0.5
    large = [Permutation(5000, 7)(i) for i in range(5000)]
    assert sum(i == n for i, n in enumerate(large)) < 8
    assert sum(b - a == 1 for a, b in itertools.pairwise(large)) < 8
    assert abs(np.corrcoef(large, range(5000))[0, 1]) < 0.06

"""Sparse attention: as the reference in torch, the same bits everywhere, and plain attention where everything is looked at."""

import itertools

import numpy as np
import pytest

from gangpao import kernels
from gangpao.kernels import reference

HEADS, KV_HEADS, WIDTH, TOTAL = 6, 2, 32, 64 * 11 + 13
RULE = (192, 1, 2, 3)  # from position 192 on one first block, two newest, three chosen


class Case:
    """Rows of q, k and v that lie in pages out of order."""

    def __init__(self, bits=(16, 16), seed=5):
        rng = np.random.default_rng(seed)
        self.qkv = rng.normal(size=(TOTAL, (HEADS + 2 * KV_HEADS) * WIDTH)).astype(np.float32)
        self.spec = kernels.attention_spec(HEADS, KV_HEADS, WIDTH, 0, 0.5, 1e-5)
        self.cache = kernels.Cache(2, KV_HEADS, WIDTH, 14, *bits)
        self.means = kernels.PageMeans(self.cache)
        self.pages = [int(page) for page in rng.permutation(14)[: -(-TOTAL // 64)]]

    def run(self, begin, end, rule=RULE, *, at=None):
        """Attention of some rows; at: where they are written instead."""
        places, n = kernels.Rows(), end - begin
        places.add(self.pages, begin if at is None else at, n)
        rows, one = kernels.Array(n, self.qkv.shape[1]), kernels.Array(n, 8)
        rows.numpy()[:], one.numpy()[:] = self.qkv[begin:end], 1
        result, out = kernels.Array(n, HEADS * WIDTH), kernels.Activation(n, HEADS * WIDTH, [], keep_float=True)
        kernels.rope_append(rows, places, self.spec, one, one, self.cache, 1)
        if rule is None:
            kernels.attend(rows, places, self.spec, self.cache, 1, result, out)
        else:
            how = kernels.SparseRule(*rule)
            kernels.attend_sparse(rows, places, self.spec, self.cache, 1, self.means, how, result, out)
        return out.floats().copy()


@pytest.fixture(autouse=True)
def restore():
    isa, threads = kernels.isa_name(), kernels.num_threads()
    yield
    kernels.set_isa(isa)
    kernels.set_num_threads(threads)


@pytest.mark.parametrize(("bits", "close"), [(16, 2e-3), (8, 2e-2)])
def test_it_is_what_torch_says(bits, close):
    torch = pytest.importorskip("torch")
    from gangpao.model.layers import Sparse, sparse_attention

    case = Case((bits, bits))
    q, k, v = np.split(case.qkv.reshape(TOTAL, -1, WIDTH), [HEADS, HEADS + KV_HEADS], axis=1)
    k, v = ((x.astype(np.float16) if bits == 16 else reference.through_int8(x)) for x in (k, v))
    q, k, v = (torch.from_numpy(x.astype(np.float64)) for x in (q, k, v))
    expected = sparse_attention(q, k, v, 0, 0.5, Sparse(*RULE)).reshape(TOTAL, -1).numpy()
    dense = sparse_attention(q, k, v, 0, 0.5, Sparse(TOTAL, 1, 2, 3)).reshape(TOTAL, -1).numpy()
    got = case.run(0, TOTAL)
    np.testing.assert_allclose(got, expected, atol=close)
    assert np.abs(dense[448:] - expected[448:]).max() > 0.1  # and it is another thing than looking at all
    np.testing.assert_allclose(got[:192], dense[:192], atol=close)


def test_the_same_bits_on_every_instruction_set_in_pieces_and_with_any_number_of_threads():
    first = None
    for isa in kernels.available_isas():
        kernels.set_isa(isa)
        for threads, cuts in [(1, [TOTAL]), (2, [1, 190, 2, 255, 64, TOTAL - 512]), (3, [400, TOTAL - 400])]:
            kernels.set_num_threads(threads)
            case, ends = Case(), np.cumsum([0, *cuts])
            got = np.concatenate([case.run(a, b) for a, b in itertools.pairwise(ends)])
            first = got if first is None else first
            assert np.array_equal(got, first), (isa, threads)


def test_where_all_is_looked_at_it_is_plain_attention_to_the_last_bit():
    plain = Case().run(0, TOTAL, None)
    assert np.array_equal(Case().run(0, TOTAL, (192, 1, 2, 9)), plain)
    assert np.array_equal(Case().run(0, TOTAL, (TOTAL, 1, 2, 3)), plain)
    chosen = Case().run(0, TOTAL)
    assert np.array_equal(chosen[: 64 * 6], plain[: 64 * 6])  # up to there six blocks are all there are
    assert not np.array_equal(chosen, plain)


def test_a_page_whose_keys_changed_is_judged_by_the_new_ones():
    old, new = Case(), Case()
    old.run(0, TOTAL)
    other = Case(seed=6)
    old.qkv[64:128] = new.qkv[64:128] = other.qkv[64:128]
    old.run(64, 128, None)
    stale = old.run(TOTAL - 1, TOTAL)
    old.means.forget(old.pages[1])
    fresh = old.run(TOTAL - 1, TOTAL)
    new.run(0, TOTAL, None)
    assert np.array_equal(fresh, new.run(TOTAL - 1, TOTAL))
    assert not np.array_equal(fresh, stale)


def test_what_cannot_be_is_refused():
    case = Case()
    for rule in [(0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)]:
        with pytest.raises(ValueError, match="its own page"):
            case.run(0, 64, rule)
    with pytest.raises(ValueError, match="no such page"):
        case.means.forget(14)
    case.means = kernels.PageMeans(kernels.Cache(1, KV_HEADS, WIDTH, 14, 16, 16))
    with pytest.raises(ValueError, match="another cache"):
        case.run(0, 64)

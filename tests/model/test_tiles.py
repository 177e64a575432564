"""Products with frozen matrices: those of their floats, forward and backward, and nothing of them kept in between."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from gangpao.model import tiles
from gangpao.model.layers import Linear, project
from gangpao.model.tiles import Stored, product, scratch, spans

G = torch.Generator().manual_seed(0)


def frozen(rows, cols, dtype, bias=False):
    linear = Linear(cols, rows, bias=bias, dtype=dtype)
    return linear.requires_grad_(False)


def saved_bytes(run):
    """Bytes of all that autograd keeps for the backward pass, each storage once, and the result."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    return sum(kept.values()), out


@pytest.mark.parametrize("tile", [100 * 24, 1 << 18])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float64, torch.float32])
def test_a_product_is_that_of_the_floats(monkeypatch, tile, kept):
    monkeypatch.setattr(tiles, "TILE_WEIGHTS", tile)
    weight = torch.randn(331, 24, generator=G).to(kept)
    x = torch.randn(2, 7, 24, generator=G, requires_grad=True)
    ours, theirs = product(x, Stored(weight)), F.linear(x, weight.float())
    g = torch.randn(ours.shape, generator=G)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (mine,), (others,) = (torch.autograd.grad(y, x, g) for y in (ours, theirs))
    torch.testing.assert_close(mine, others, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(product(x, Stored(weight)), theirs, rtol=1e-5, atol=1e-5)


def test_tiles_cover_all_rows_once():
    for rows, cols, weights in ((1, 1, 1), (64, 8, 1), (65, 8, 1), (1000, 576, 1 << 18), (122_753, 2304, 1 << 18)):
        found = list(spans(rows, cols, weights))
        assert found[0][0] == 0
        assert found[-1][1] == rows
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
        assert max(e - b for b, e in found) <= max(64, weights // cols)


@pytest.mark.parametrize("bias", [False, True])
def test_a_small_frozen_weight_leaves_no_floats_behind(bias):
    linear = frozen(512, 256, torch.bfloat16, bias)
    x = torch.randn(4, 256, generator=G, requires_grad=True)
    kept, y = saved_bytes(lambda: linear(x))
    assert kept == 0
    expected = F.linear(x, linear.weight.float(), None if linear.bias is None else linear.bias.float())
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_that_share_an_input_keep_no_second_copy_of_their_weights(trained, dtype):
    linears = [frozen(128, 64, dtype).requires_grad_(trained) for _ in range(2)]
    x = torch.randn(3, 64, generator=G, requires_grad=True)
    kept, ys = saved_bytes(lambda: project(x, linears))
    of_weights = sum(linear.weight.nbytes for linear in linears)
    assert kept <= of_weights + (x.nbytes if trained else 0)
    theirs = [F.linear(x, linear.weight.float()) for linear in linears]
    gs = [torch.randn(y.shape, generator=G) for y in ys]
    wanted = [x, *(linear.weight for linear in linears if trained)]
    for a, b in zip(torch.autograd.grad(ys, wanted, gs), torch.autograd.grad(theirs, wanted, gs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_every_thread_has_its_own_buffer():
    def address(_):
        return scratch(4, 4, torch.float32, torch.device("cpu")).data_ptr()

    with ThreadPoolExecutor(1) as lane:
        assert len({*lane.map(address, range(5)), address(0), address(1)}) == 2

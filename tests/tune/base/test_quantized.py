"""Layers over blocks are the layers over their floats: values, gradients, the order of rows, and what they keep."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gangpao.data.tokens.pack import Batch
from gangpao.engine.weights import rotate_half_order
from gangpao.formats import blocks
from gangpao.model.layers import Linear, replace_linears
from gangpao.train.step.lanes import Lanes
from gangpao.train.step.loss import NextToken
from gangpao.tune.base import nf4
from gangpao.tune.base.load import load_base
from gangpao.tune.base.quantized import Blocks, QuantizedEmbedding, QuantizedLinear
from tests.engine.tiny import write_tiny
from tests.kernels.random_blocks import SHAPES, random_rows
from tests.model.test_tiles import saved_bytes
from tests.tune.base.test_memory import with_adapters

G = torch.Generator().manual_seed(0)


def of(kind, rows=96, cols=256, order=None):
    raw = random_rows(np.random.default_rng(1), kind, rows, cols)
    floats = torch.from_numpy(blocks.dequantize(raw, kind))
    raw.setflags(write=False)  # as a memory map is
    return Blocks(raw, kind, cols, order), floats


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("bias", [None, torch.randn(96, generator=G)])
def test_a_layer_in_blocks_is_the_layer_of_its_floats(kind, bias):
    tiles, weight = of(kind)
    layer = QuantizedLinear(tiles, bias)
    x = torch.randn(2, 5, 256, generator=G, requires_grad=True)
    kept, ours = saved_bytes(lambda: layer(x))
    theirs = F.linear(x, weight, bias)
    g = torch.randn(ours.shape, generator=G)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (mine,), (others,) = (torch.autograd.grad(y, x, g) for y in (ours, theirs))
    torch.testing.assert_close(mine, others, rtol=1e-5, atol=1e-5)
    assert kept == 0
    assert torch.equal(layer.dense(), weight)
    assert (layer.in_features, layer.out_features) == (256, 96)
    assert [name for name, _ in layer.named_parameters()] == ([] if bias is None else ["bias"])
    assert not any(p.requires_grad for p in layer.parameters())


def test_it_computes_in_the_dtype_of_its_input():
    tiles, weight = of("Q4_K")
    x = torch.randn(7, 256, generator=G, dtype=torch.bfloat16, requires_grad=True)
    y = QuantizedLinear(tiles)(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, F.linear(x, weight.bfloat16()), rtol=0.02, atol=0.02)
    (g,) = torch.autograd.grad(y.sum(), x)
    assert g.dtype == torch.bfloat16


def test_pairs_of_rows_come_out_in_halves():
    order = rotate_half_order(3, 32, 32)
    tiles, weight = of("Q8_0", order=order)
    assert torch.equal(QuantizedLinear(tiles).dense(), weight[torch.from_numpy(order).long()])
    assert torch.equal(tiles.take(torch.tensor([5, 0, 5])), weight[torch.from_numpy(order).long()][[5, 0, 5]])


def test_an_embedding_makes_the_rows_of_its_ids():
    tiles, weight = of("Q6_K")
    embedding = QuantizedEmbedding(tiles)
    ids = torch.tensor([[3, 95, 3], [0, 0, 17]])
    assert torch.equal(embedding(ids), F.embedding(ids, weight))
    assert torch.equal(embedding.dense(), weight)
    assert embedding(torch.empty(1, 0, dtype=torch.int64)).shape == (1, 0, 256)
    for wrong in (96, -1):
        with pytest.raises(IndexError, match="96 rows"):
            embedding(torch.tensor([[wrong]]))


def test_lanes_compute_what_one_thread_does():
    layers = [QuantizedLinear(of(kind)[0]) for kind in ("Q4_0", "Q5_K", "TQ1_0")]
    xs = [torch.randn(9, 256, generator=G) for _ in range(12)]
    expected = [[layer(x) for layer in layers] for x in xs]
    with ThreadPoolExecutor(3) as lanes:
        found = list(lanes.map(lambda x: [layer(x) for layer in layers], xs))
    assert all(
        torch.equal(a, b) for one, two in zip(found, expected, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_a_step_in_lanes_has_the_gradients_of_a_step_in_one_thread(tmp_path):
    base = load_base(write_tiny(tmp_path / "a.gguf"))
    model = with_adapters(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, (4, 33))
    batch = Batch(ids[:, :-1], ids[:, 1:], np.zeros((4, 32), np.int64))
    found = []
    for count in (1, 2, 4):
        lanes = Lanes(count)
        values = lanes.backward(NextToken(dtype=torch.float32), model, batch, 1 / batch.labels.size, trained)
        lanes.close()
        found.append([values["loss"], *(p.grad.clone() for p in trained)])
        model.zero_grad()
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert max(float(g.abs().max()) for g in found[0][1:]) > 1e-3


def test_adapters_find_it_as_any_other_linear_layer():
    root = torch.nn.Sequential(QuantizedLinear(of("Q4_0")[0]))
    assert replace_linears(root, lambda name, linear: torch.nn.Identity() if isinstance(linear, Linear) else None) == [
        "0"
    ]
    adapter = type("Adapter", (QuantizedLinear,), {})(of("Q4_0")[0])
    assert adapter.frozen_tiles() is None
    assert QuantizedLinear(of("Q4_0")[0]).frozen_tiles() is not None


def test_bytes_of_another_shape_are_refused():
    raw = random_rows(np.random.default_rng(1), "Q4_0", 4, 64)
    with pytest.raises(ValueError, match="rows of 96 weights"):
        Blocks(raw, "Q4_0", 96)
    with pytest.raises(ValueError, match="order of 3 rows for a tensor of 4"):
        Blocks(raw, "Q4_0", 64, np.arange(3, dtype=np.int32))


# --- NF4


def test_nf4_is_as_near_as_published():
    """Normal weights: bitsandbytes' own test has 0.0728 for the mean error of NF4 in blocks of 64 (0.203 relative)."""
    weight = torch.randn(1024, 1024, generator=G)
    error = (nf4.quantize(weight).read(0, 1024, weight) - weight).abs()
    assert float(error.mean()) == pytest.approx(0.0728, rel=0.01)
    assert nf4.quantize(weight).nbytes * 8 / weight.numel() == pytest.approx(4.127, abs=0.001)


def test_nf4_keeps_its_own_values():
    """A block that has its 16 values times one scale comes back as it was, zeros exactly."""
    values = torch.tensor(nf4.VALUES)
    weight = (values[torch.randint(16, (8, 256), generator=G)]).clone()
    weight[:, ::64] = 1.0
    assert torch.equal(nf4.quantize(weight * 0.25).read(0, 8, weight), weight * 0.25)
    assert torch.equal(nf4.quantize(torch.zeros(2, 64)).read(0, 2, weight), torch.zeros(2, 64))
    mixed = torch.cat([torch.zeros(4, 64), torch.randn(4, 64, generator=G)])
    assert torch.equal(nf4.quantize(mixed).read(0, 4, weight), torch.zeros(4, 64))


def test_nf4_rows_are_the_same_alone():
    weight = torch.randn(70, 192, generator=G)
    tiles = nf4.quantize(weight)
    whole = tiles.read(0, 70, weight).clone()
    assert torch.equal(tiles.read(33, 52, weight), whole[33:52])
    ids = torch.tensor([[69, 0], [0, 7]])
    assert torch.equal(tiles.take(ids), whole[ids])
    x = torch.randn(3, 192, generator=G, requires_grad=True)
    torch.testing.assert_close(QuantizedLinear(tiles)(x), F.linear(x, whole), rtol=1e-5, atol=1e-5)


def test_nf4_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="rows of 96 weights"):
        nf4.quantize(torch.zeros(2, 96))
    with pytest.raises(ValueError, match="no number"):
        nf4.quantize(torch.full((2, 64), torch.nan))

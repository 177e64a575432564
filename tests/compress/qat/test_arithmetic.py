"""A rounded matrix is the bits of the file, its gradient goes straight through; activations are int8 as the engine's."""

import numpy as np
import pytest
import torch

from gangpao.compress.qat.arithmetic import MeanTernary, arithmetic_of, decode, int8
from gangpao.compress.qat.layers import Rounded, RoundedLinear
from gangpao.compress.qat.scales import Scaled
from gangpao.compress.qat.types import types_of
from gangpao.compress.quantize.mixtures import ModelShape
from gangpao.formats.blocks import BY_NAME, dequantize, quantize
from gangpao.kernels import reference


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KINDS = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K TQ1_0 TQ2_0 F16 BF16 F32"


@pytest.mark.parametrize("kind", KINDS.split())
def test_what_is_computed_with_is_what_a_reader_finds(kind):
    weight = torch.nn.Parameter(draw(0, 6, 512))
    matrix = Rounded(weight, arithmetic_of(kind))
    raw = matrix.encode()
    assert raw.shape == (6, BY_NAME[kind].row_bytes(512))
    assert np.array_equal(matrix.effective().detach().numpy(), dequantize(raw, kind))
    matrix.effective().square().sum().backward()
    torch.testing.assert_close(weight.grad, 2 * matrix.effective().detach())  # straight through
    before = matrix.effective().detach().clone()
    with torch.no_grad():
        weight.add_(1)
    assert not torch.equal(matrix.effective().detach(), before)


def test_ternary_by_the_mean():
    values = draw(1, 3, 512).numpy()
    values[1, :256] = 0
    for kind in ("TQ2_0", "TQ1_0"):
        raw = MeanTernary(kind).encode(values)
        found = np.empty((3, 512), np.float32)
        decode(raw, kind, 512, found)
        groups = values.reshape(3, 2, 256)
        s = np.abs(groups).mean(-1, keepdims=True).astype(np.float16).astype(np.float32)
        with np.errstate(invalid="ignore"):
            q = np.nan_to_num(np.rint(groups / s)).clip(-1, 1)
        assert np.array_equal(found, (s * q).reshape(3, 512))
    assert 0.2 < (found != 0).mean() < 0.8  # ggml's scale would leave a few per mille


def test_linears_at_the_same_input_are_the_linears_alone():
    x = draw(2, 4, 64).requires_grad_()
    linears = [RoundedLinear(Rounded(torch.nn.Parameter(draw(i, 32, 64)), arithmetic_of("Q8_0")), None) for i in (3, 4)]
    together = RoundedLinear.together(x, linears)
    for y, linear in zip(together, linears, strict=True):
        torch.testing.assert_close(y, linear(x))
        torch.testing.assert_close(y, x @ linear.effective().T)
    gradients = torch.autograd.grad(sum(y.square().sum() for y in together), [x, *(m.weight for m in linears)])
    plain = torch.autograd.grad(sum(m(x).square().sum() for m in linears), [x, *(m.weight for m in linears)])
    for a, b in zip(gradients, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_activations_are_those_of_the_engine():
    x = 3 * draw(5, 7, 512)
    x[2, :256] = 0
    for group in (32, 256):
        q, scale = reference.quantize(x.numpy(), group)
        expected = (q.reshape(7, -1, group) * scale[..., None]).reshape(7, 512).astype(np.float32)
        assert np.array_equal(int8(x, group).numpy(), expected)
    x.requires_grad_()
    int8(x, 32).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q2_K", "Q6_K", "Q3_K"])
def test_gradients_of_scales_are_those_of_the_formula(kind):
    cols = 512
    if kind.endswith("_K"):  # any bytes are blocks; their scales are made small numbers
        raw = np.random.default_rng(0).integers(0, 256, (3, BY_NAME[kind].row_bytes(cols)), dtype=np.uint8)
        from dataclasses import replace

        from gangpao.formats.codes import codes, pack

        c = codes(raw, kind, cols)
        d = np.random.default_rng(1).random(c.d.shape).astype(np.float16).astype(np.float32) / 64
        raw = pack(replace(c, d=d, dmin=d / 2))
    else:
        raw = quantize(draw(6, 3, cols).numpy(), kind)
    matrix = Scaled(raw, kind, cols)
    assert np.array_equal(matrix.encode(), raw)
    assert np.array_equal(matrix.effective().detach().numpy(), dequantize(raw, kind))
    c, g = matrix.codes, draw(7, 3, cols).double()
    d, dmin = (torch.from_numpy(x).double().requires_grad_() for x in (c.d, c.dmin))

    def spread(x, integers):
        groups = x.repeat_interleave(integers.shape[1] // x.shape[1], 1) * torch.from_numpy(integers.astype(float))
        return groups.repeat_interleave(c.group, 1)

    plain = spread(d, c.scale) * torch.from_numpy(c.values.astype(float)) - spread(dmin, c.minimum)
    expected = torch.autograd.grad((plain * g).sum(), [d, dmin])
    (matrix.effective() * g.float()).sum().backward()
    torch.testing.assert_close(matrix.gain.grad.double(), expected[0] * d.detach(), rtol=1e-4, atol=1e-3)
    if matrix.gain_min.requires_grad:
        torch.testing.assert_close(matrix.gain_min.grad.double(), expected[1] * dmin.detach(), rtol=1e-4, atol=1e-3)


def test_types_of_tensors():
    def shape(shapes):
        return ModelShape("llama", 1, 4, 4, 0, shapes)

    shapes = {"token_embd.weight": (100, 256), "output_norm.weight": (256,), "blk.0.ffn_down.weight": (256, 320)}
    assert types_of(shape(shapes), "Q4_K_S", {}) == {"token_embd.weight": "Q6_K", "blk.0.ffn_down.weight": "Q5_0"}
    assert types_of(shape(shapes), "TQ2_0", {"*down*": "Q8_0"})["blk.0.ffn_down.weight"] == "Q8_0"
    untied = shapes | {"output.weight": (100, 256)}
    assert types_of(shape(untied), "TQ2_0", {})["token_embd.weight"] == "Q4_K"
    assert types_of(shape(untied), "Q4_0", {"token*": "Q5_K"})["token_embd.weight"] == "Q5_K"
    with pytest.raises(ValueError, match="'Q9' is no type"):
        types_of(shape(shapes), "Q9", {})
    with pytest.raises(ValueError, match="'Q9' is not a type"):
        types_of(shape(shapes), "Q4_0", {"*down*": "Q9"})

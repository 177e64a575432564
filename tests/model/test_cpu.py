"""Attention and norm for training on a CPU are torch's, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from gangpao.model import cpu
from gangpao.model.layers import Linear, RMSNorm, angles, attend, replace_linears, rotate
from gangpao.model.transformer import Transformer, layout
from tests.model.tiny import tiny


def reference(q, k, v, mask, scale, turn=None):
    if turn is not None:
        q, k = rotate(q, *turn), rotate(k, *turn)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def ours(q, k, v, *rest):
    return cpu.attention(*(x.transpose(1, 2) for x in (q, k, v)), *rest).transpose(1, 2)


def both(function, other, inputs, *rest):
    """Values and gradients of two functions at the same inputs."""
    out = []
    for f in (function, other):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        y = f(*leaves, *rest)
        torch.manual_seed(5)
        y.backward(torch.randn(y.shape).to(y.dtype))
        out.append([y.detach(), *(leaf.grad for leaf in leaves)])
    return zip(*out, strict=True)


def error(mine, theirs):
    return float((mine.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-12))


def some(batch, heads, groups, time, width, dtype=torch.float32):
    torch.manual_seed(time)
    # as they come from a projection: [B, T, N, H] turned around
    shapes = ((batch, time, n, width) for n in (heads, groups, groups))
    return [(2 * torch.randn(s)).to(dtype).transpose(1, 2) for s in shapes]


DOCUMENTS = {
    "none": None,
    "one border": [0] * 50 + [1] * 150,
    "many": [i // 7 for i in range(200)],
    "long and short": [0] * 130 + [1] * 3 + [2] * 67,
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("kept", [cpu.KEPT_BYTES, 0], ids=["kept", "made again"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
def test_attention_is_torchs(monkeypatch, documents, kept, heads):
    monkeypatch.setattr(cpu, "KEPT_BYTES", kept)
    runs = DOCUMENTS[documents]
    mask = None if runs is None else layout(torch.zeros(2, 200), torch.tensor([runs, [0] * 200]), 0)[1]
    for mine, theirs in both(ours, reference, some(2, *heads, 200, 16), mask, 0.3):
        assert error(mine, theirs) < 1e-5


@pytest.mark.parametrize("documents", ["none", "many"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_attention_that_turns_is_rope_and_then_attention(documents, heads):
    """Positions begin anew in every document, and differ between rows."""
    runs = DOCUMENTS[documents]
    numbers = None if runs is None else torch.tensor([runs, [0] * 90 + [1] * 110])
    positions, mask = layout(torch.zeros(2, 200), numbers, 0)
    turn = angles(10000.0 ** (-torch.arange(8, dtype=torch.float64) / 8), 1.0, positions.expand(2, -1))
    for mine, theirs in both(ours, reference, some(2, *heads, 200, 16), mask, 0.3, turn):
        assert error(mine, theirs) < 1e-5


@pytest.mark.parametrize("time", [1, 2, cpu.BLOCK - 1, cpu.BLOCK, cpu.BLOCK + 1, 3 * cpu.BLOCK])
def test_any_length(time):
    """At one position the gradients of q and k are zero: ours exactly, torch's up to rounding that differs between machines."""
    for mine, theirs in both(ours, reference, some(1, 2, 1, time, 8), None, 1.0):
        assert error(mine, theirs) < 1e-5 or (mine - theirs).abs().max() < 2e-5


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_in_bf16_it_errs_about_as_torchs(heads):
    inputs = some(2, *heads, 256, 32, torch.bfloat16)
    exact = [e for e, _ in both(reference, reference, [x.float() for x in inputs], None, 0.18)]
    for (mine, theirs), truth in zip(both(ours, reference, inputs, None, 0.18), exact, strict=True):
        here, there = error(mine, truth), error(theirs, truth)
        assert here < max(1.5 * there, 4e-3), (here, there)


def test_it_is_used_when_there_is_a_gradient_and_only_then():
    q, k, v = some(1, 2, 2, 70, 8)
    assert "_Attention" in type(attend(q.requires_grad_(), k, v, None, 1.0).grad_fn.next_functions[0][0]).__name__ or (
        "_Attention" in type(attend(q, k, v, None, 1.0).grad_fn).__name__
    )
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, None, 1.0), reference(q, k, v, None, 1.0), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_is_torchs(dtype):
    torch.manual_seed(1)
    x, weight = torch.randn(3, 5, 40).to(dtype) * 3, 1 + 0.2 * torch.randn(40)
    plain = lambda x, w: F.rms_norm(x.float(), (40,), None, 1e-5).to(x.dtype) * w.to(x.dtype)  # noqa: E731
    for mine, theirs in both(lambda x, w: cpu.rms_norm(x, w, 1e-5), plain, [x, weight]):
        assert mine.dtype == theirs.dtype
        tight = dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=1e-4 if tight else 2e-2, atol=1e-5 if tight else 2e-2)
    norm = RMSNorm(40, 1e-5)
    assert "RMSNorm" in type(norm(x.requires_grad_()).grad_fn).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_and_swiglu_are_torchs(dtype):
    torch.manual_seed(1)
    x, weights = torch.randn(3, 5, 40).to(dtype), [torch.randn(n, 40) for n in (24, 8, 24)]
    bound = 1e-5 if dtype == torch.float32 else 1e-2

    def one(function):
        def joined(x, *weights):
            a, b, c = function(x, weights)
            return torch.cat([a * c, b], -1)

        return joined

    plain = one(lambda x, ws: [F.linear(x, w.to(x.dtype)) for w in ws])
    for mine, theirs in both(one(cpu.products), plain, [x, *weights]):
        assert mine.dtype == theirs.dtype
        assert error(mine, theirs) < bound
    gate, up = torch.randn(3, 5, 40).to(dtype), torch.randn(3, 5, 40).to(dtype)
    for mine, theirs in both(cpu.swiglu, lambda g, u: F.silu(g) * u, [gate, up]):
        assert error(mine, theirs) < bound


def test_replaced_and_frozen_linears_are_respected():
    model = Transformer.build(tiny(vocab_size=50), seed=3)
    mlp = model.model.layers[0].mlp
    mlp.gate_proj.weight.requires_grad_(False)
    calls = []

    class Counted(Linear):
        def forward(self, x):
            calls.append(x.shape)
            return super().forward(x)

    replace_linears(
        model, lambda name, old: Counted(old.in_features, old.out_features, bias=False) if "k_proj" in name else None
    )
    hidden, _ = model(torch.randint(0, 50, (2, 30)))
    hidden.sum().backward()
    assert len(calls) == len(model.model.layers)
    assert mlp.gate_proj.weight.grad is None
    assert mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_has_the_gradients_it_would_have_without(monkeypatch, packed):
    torch.manual_seed(2)
    ids = torch.randint(0, 50, (2, 150))
    documents = (torch.arange(150) // 40).expand(2, -1) if packed else None
    found = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(cpu, "applies", lambda x: False)
        model = Transformer.build(tiny(vocab_size=50), seed=3)
        hidden, _ = model(ids, documents_BT=documents)
        torch.manual_seed(7)
        (hidden * torch.randn(hidden.shape)).sum().backward()
        found.append((hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for name, g in found[0][1].items():
        assert error(g, found[1][1][name]) < 1e-5, name


def test_full_width_is_exact():
    """Whatever library computes products of float32 on this machine, errors are those of float32."""
    before = torch.backends.mkldnn.matmul.fp32_precision
    cpu.use_full_width.cache_clear()
    try:
        changed = cpu.use_full_width()
        a, b = torch.randn(3, 200, 300), torch.randn(3, 300, 100)
        exact = a.double() @ b.double()
        assert error(a @ b, exact) < 1e-6
        assert error(torch.addmm(torch.zeros(200, 100), a[0], b[0]), exact[0]) < 1e-6
        assert changed or torch.backends.mkldnn.matmul.fp32_precision == before
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_full_width_is_taken_back_where_products_err(monkeypatch):
    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(cpu.machine, "cpu_flags", lambda: frozenset({"avx512f"}))
    monkeypatch.setattr(cpu.machine, "cpu_vendor", lambda: "AuthenticAMD")
    monkeypatch.setattr(cpu, "_errs", lambda: True)
    assert not cpu.use_full_width.__wrapped__()
    assert torch.backends.mkldnn.matmul.fp32_precision == before

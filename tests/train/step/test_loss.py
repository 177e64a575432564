"""Chunked cross-entropy equals the plain one, in value and in every gradient, whatever the chunks are."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gangpao.model.layers import replace_linears
from gangpao.model.transformer import Transformer
from gangpao.train.step import loss as loss_module
from gangpao.train.step.loss import NextToken, cross_entropy, token_losses
from tests.train.tiny import Memory, shape

R, D, V = 37, 16, 101


def problem(seed=0, ignored=0.3, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(R, D, generator=g).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=g) * 0.5).requires_grad_()
    labels = torch.randint(V, (R,), generator=g)
    labels[torch.rand(R, generator=g) < ignored] = -100
    return hidden, weight, labels


def plain(hidden, weight, labels, scale, z_loss):
    logits = hidden @ weight.T
    lse = torch.logsumexp(logits, -1)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return scale * (total + z_loss * (lse.square() * (labels != -100)).sum())


@pytest.mark.parametrize("rows_a_chunk", [1, 7, 36, 37, 1000])
@pytest.mark.parametrize("rows_in_cache", [1, 5, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_chunked_is_plain(monkeypatch, rows_a_chunk, rows_in_cache, z_loss, ignored):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", rows_a_chunk * V)
    monkeypatch.setattr(loss_module, "CACHED_LOGITS", rows_in_cache * V)
    monkeypatch.setattr(loss_module, "MIN_ROWS", 1)
    hidden, weight, labels = problem(ignored=ignored)
    ours = cross_entropy(hidden, weight, labels, scale=0.37, z_loss=z_loss)
    mine = torch.autograd.grad(ours * 1.7, [hidden, weight])  # a factor from behind must arrive too
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    reference = plain(*exact, labels, 0.37, z_loss)
    theirs = torch.autograd.grad(reference * 1.7, exact)
    assert float(ours.detach()) == pytest.approx(float(reference.detach()), rel=1e-6, abs=1e-7)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 127, 128, 2048, 5000])
@pytest.mark.parametrize("vocab", [300, 8192, 122_753])
def test_chunks_are_equal_parts_and_as_few_as_memory_allows(rows, vocab):
    size = loss_module.chunk_rows(rows, vocab)
    parts = -(-rows // size)
    assert 4 * size * vocab <= loss_module.logits_bytes(vocab)
    assert parts == 1 or rows > (parts - 1) * 3 * loss_module.rows_at_once(vocab)
    assert rows - (parts - 1) * size > size - parts


def test_huge_logits_neither_overflow_nor_lose_the_loss():
    hidden, weight, labels = problem(ignored=0.0)
    ours = cross_entropy(hidden * 1e4, weight, labels)
    exact = plain(hidden.double() * 1e4, weight.double(), labels, 1.0, 0.0)
    assert float(ours.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)


def test_bf16_adds_up_in_float32(monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 3 * V)
    monkeypatch.setattr(loss_module, "MIN_ROWS", 1)
    hidden, weight, labels = problem(dtype=torch.bfloat16)
    cross_entropy(hidden, weight, labels).backward()
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    plain(*exact, labels, 1.0, 0.0).backward()
    assert weight.grad.dtype == torch.float32
    assert hidden.grad.dtype == torch.bfloat16
    for mine, theirs in zip((hidden.grad, weight.grad), (exact[0].grad, exact[1].grad), strict=True):
        assert float((mine.double() - theirs).norm() / theirs.norm()) < 0.01


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, labels = problem()
    cross_entropy(hidden.detach(), weight, labels).backward()
    assert hidden.grad is None
    wanted = weight.grad.clone()
    weight.grad = None
    cross_entropy(hidden, weight, labels).backward()
    torch.testing.assert_close(weight.grad, wanted, rtol=0, atol=0)
    with torch.no_grad():
        assert not cross_entropy(hidden, weight, labels).requires_grad


def test_losses_of_tokens_add_up_and_each_has_its_own_gradient():
    hidden, weight, labels = problem()
    factor = torch.linspace(-1, 2, R)
    rows = token_losses(lambda h: h @ weight.T, hidden, labels, size=5)
    assert float(rows.sum().detach()) == pytest.approx(float(cross_entropy(hidden, weight, labels).detach()), rel=1e-6)
    mine = torch.autograd.grad((rows * factor).sum(), [hidden, weight])
    whole = F.cross_entropy(hidden @ weight.T, labels, ignore_index=-100, reduction="none")
    theirs = torch.autograd.grad((whole * factor).sum(), [hidden, weight])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def gradients(model, objective, batch, scale=0.01):
    model.zero_grad()
    terms = objective(model, batch, scale)
    terms.loss.backward()
    return float(terms.loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters()}


def close(one, two, rtol=1e-5, atol=1e-8):
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    for name, g in one[1].items():
        torch.testing.assert_close(g, two[1][name], rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_the_objective_is_the_full_loss_of_the_model(tied):
    model = Transformer.build(shape(tie_word_embeddings=tied), seed=3)
    batch = Memory(5).take(4)
    ours = gradients(model, NextToken(), batch)

    class Full(NextToken):
        def __call__(self, model, batch, scale):
            out = model(torch.from_numpy(batch.ids), documents_BT=torch.from_numpy(batch.documents))
            logits = model.logits(out.hidden).flatten(0, 1)
            total = F.cross_entropy(
                logits, torch.from_numpy(batch.labels).flatten(), ignore_index=-100, reduction="sum"
            )
            return loss_module.Terms(total * scale, {})

    close(ours, gradients(model, Full(), batch))


def test_recomputing_layers_changes_no_bit():
    model = Transformer.build(shape(), seed=3)
    batch = Memory(5).take(4)
    one, two = (gradients(model, NextToken(recompute=r), batch) for r in (False, True))
    assert one[0] == two[0]
    assert all(torch.equal(g, two[1][name]) for name, g in one[1].items())


def test_few_labels_and_replaced_heads_take_other_ways_to_the_same_gradient():
    model = Transformer.build(shape(tie_word_embeddings=False), seed=3)
    batch = Memory(5).take(4)
    batch.labels[:, :-3] = -100  # under three quarters: only those rows meet the head
    few = gradients(model, NextToken(), batch)

    class Wrapped(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.weight = linear.weight

        def forward(self, x):
            return F.linear(x, self.weight)

    replace_linears(model, lambda name, linear: Wrapped(linear) if name == "lm_head" else None)
    close(few, gradients(model, NextToken(), batch))
    batch.labels[:] = -100
    nothing = gradients(model, NextToken(), batch)
    assert nothing[0] == 0.0
    assert not any(g.any() for g in nothing[1].values())


def test_experts_add_their_balance_by_share_of_labels():
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.5}
    model = Transformer.build(shape(moe=moe), seed=3)
    batch = Memory(5).take(4)
    count, ids = NextToken().measure(batch)
    assert (count, ids) == (int((batch.labels != -100).sum()), batch.ids.size)
    terms = NextToken()(model, batch, 1 / count)
    assert float(terms.loss.detach()) == pytest.approx(
        float(terms.values["loss"]) + 0.5 * float(terms.values["balance"]), rel=1e-6
    )
    assert float(terms.values["balance"]) == pytest.approx(1.0, abs=0.3)


def test_rows_without_borders_need_no_mask():
    model = Transformer.build(shape(), seed=3)
    batch = Memory(5).take(4)
    batch.documents[:] = 7
    one = gradients(model, NextToken(), batch)
    batch.documents[:] = np.arange(4)[:, None]  # other numbers, still no border
    two = gradients(model, NextToken(), batch)
    assert one[0] == two[0]

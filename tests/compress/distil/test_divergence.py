"""Every loss and gradient equals a plain torch formula, in double precision; the K likeliest tokens with K = V are all of them."""

import pytest
import torch
from torch.nn import functional as F

from gangpao.compress.distil.divergence import divergence
from gangpao.compress.distil.logits import Said, Spec, distilled
from gangpao.train.step import loss as loss_module

R, D, V = 37, 12, 50
KINDS = ["forward", "reverse", "mix", "js"]


def kl(logp, logq):
    return (logp.exp() * (logp - logq)).sum(-1)


def plain(logq, logp, kind, w):
    if kind == "forward":
        return kl(logp, logq)
    if kind == "reverse":
        return kl(logq, logp)
    if kind == "mix":
        return (1 - w) * kl(logp, logq) + w * kl(logq, logp)
    m = (w * logp.exp() + (1 - w) * logq.exp()).log()
    return w * kl(logp, m) + (1 - w) * kl(logq, m)


class Known:
    """Answers that are there."""

    def __init__(self, logp, ids=None):
        self.logp, self.ids = logp, ids

    def rows(self, begin, end, like):
        return Said(self.logp[begin:end].to(like.dtype), None if self.ids is None else self.ids[begin:end])


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas(kind):
    z = (3 * draw(0, R, V)).requires_grad_()
    logp = torch.log_softmax(3 * draw(1, R, V), -1)
    expected = plain(torch.log_softmax(z, -1), logp, kind, 0.3)
    (gradient,) = torch.autograd.grad(expected.sum(), z)
    found, by_hand = divergence(torch.log_softmax(z.detach(), -1), logp, kind, 0.3)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(by_hand, gradient, rtol=1e-10, atol=1e-12)


def inputs():
    hidden, weight = draw(2, R, D).requires_grad_(), draw(3, V, D).requires_grad_()
    labels = torch.randint(V, (R,), generator=torch.Generator().manual_seed(4))
    return hidden, weight, labels, 2 * draw(5, R, V)


def check(found, expected, parameters):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (2.5, 0.0), (1.0, 0.4), (2.0, 0.25)])
def test_under_a_head_in_pieces(kind, temperature, hard, monkeypatch):
    monkeypatch.setattr(loss_module, "MIN_ROWS", 8)
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 8 * V)  # pieces of 8 rows
    hidden, weight, labels, teacher = inputs()
    logp = torch.log_softmax(teacher / temperature, -1)
    z = hidden @ weight.T
    apart = plain(torch.log_softmax(z / temperature, -1), logp, kind, 0.3).sum()
    entropy = F.cross_entropy(z, labels, reduction="sum")
    expected = 0.125 * ((1 - hard) * temperature**2 * apart + hard * entropy)
    found = distilled(hidden, weight, labels, Known(logp), Spec(kind, 0.3, temperature, hard), 0.125)
    check(found.loss, expected, [hidden, weight])
    torch.testing.assert_close(found.divergence, 0.125 * apart.detach())
    torch.testing.assert_close(found.entropy, 0.125 * entropy.detach())
    same = (z.argmax(-1) == teacher.argmax(-1)).sum()
    assert float(found.agree) == 0.125 * int(same)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, V - 1])
def test_of_the_likeliest_tokens_and_all_others_as_one(kind, k):
    hidden, weight, labels, teacher = inputs()
    logp = torch.log_softmax(teacher / 1.5, -1)
    ids = logp.topk(k).indices
    inside = torch.zeros(R, V, dtype=torch.bool).scatter_(1, ids, True)

    def merged(x):
        return torch.cat([x.gather(1, ids), x.exp().masked_fill(inside, 0).sum(-1, keepdim=True).log()], 1)

    z = hidden @ weight.T
    expected = plain(merged(torch.log_softmax(z / 1.5, -1)), merged(logp), kind, 0.6).sum() * 1.5**2
    spec = Spec(kind, 0.6, 1.5)
    check(distilled(hidden, weight, labels, Known(merged(logp), ids), spec).loss, expected, [hidden, weight])
    whole = distilled(hidden, weight, labels, Known(logp), spec).loss
    assert expected.detach() <= whole.detach() * (1 + 1e-12)  # merging outcomes hides differences


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_there_are_is_the_whole_distribution(kind):
    hidden, weight, labels, teacher = inputs()
    logp = torch.log_softmax(teacher, -1)
    top, ids = logp.topk(V)
    spec = Spec(kind, 0.6, hard=0.1)
    expected = distilled(hidden, weight, labels, Known(logp), spec).loss
    check(distilled(hidden, weight, labels, Known(top, ids), spec).loss, expected, [hidden, weight])


def test_nothing_is_kept_where_nothing_is_trained():
    hidden, weight, labels, teacher = inputs()
    logp = torch.log_softmax(teacher, -1)
    weight = weight.detach()
    sums = distilled(hidden, weight, labels, Known(logp), Spec())
    sums.loss.backward()
    assert hidden.grad is not None
    with torch.no_grad():
        again = distilled(hidden, weight, labels, Known(logp), Spec())
    assert float(again.loss) == float(sums.loss.detach())

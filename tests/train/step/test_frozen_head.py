"""Losses under a frozen head equal the plain ones, in value and in the gradient of the hidden states, whatever the tiles are."""

import pytest
import torch
from torch.nn import functional as F

from gangpao.model.layers import Linear
from gangpao.model.tiles import Stored
from gangpao.model.transformer import Transformer
from gangpao.train.step import frozen_head
from gangpao.train.step.loss import NextToken, cross_entropy, token_losses
from tests.train.step.test_loss import D, R, V, problem
from tests.train.tiny import Memory, shape


def plain(hidden, weight, labels, z_loss):
    logits = hidden @ weight.T
    lse = torch.logsumexp(logits, -1)
    losses = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    return losses + z_loss * lse.square() * (labels != -100)


@pytest.mark.parametrize(("rows", "tile"), [(1024, 1 << 20), (5, 64 * D), (36, 70 * D)])
@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_tiles_give_the_plain_losses_and_gradients(monkeypatch, rows, tile, z_loss, ignored):
    monkeypatch.setattr(frozen_head, "ROWS", rows)
    monkeypatch.setattr(frozen_head, "TILE_WEIGHTS", tile)
    hidden, weight, labels = problem(ignored=ignored)
    weight = torch.cat([weight.detach()] * 3)[: 3 * V - 7]  # several tiles, the last of another size
    labels = torch.where(labels >= 0, labels + 40, labels)
    factor = torch.linspace(-1, 2, R)
    ours = frozen_head.token_losses(hidden, labels, Stored(weight), z_loss=z_loss)
    (mine,) = torch.autograd.grad((ours * factor).sum(), hidden)
    whole = plain(hidden, weight, labels, z_loss)
    (theirs,) = torch.autograd.grad((whole * factor).sum(), hidden)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)
    with torch.no_grad():
        assert torch.equal(frozen_head.token_losses(hidden, labels, Stored(weight), z_loss=z_loss), ours)


def test_logits_of_any_size_are_fine():
    """A row whose maximum comes in the last tile, one whose logits are huge, and one that is certain of its label."""
    hidden = torch.tensor([[1.0, 0.0], [300.0, 0.0], [0.0, 40.0]], requires_grad=True)
    weight = torch.stack([torch.linspace(-1, 1, 200), torch.linspace(1, -1, 200)], 1)
    labels = torch.tensor([3, 150, 0])
    ours = frozen_head.token_losses(hidden, labels, Stored(weight))
    whole = plain(hidden, weight, labels, 0.0)
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    (mine,), (theirs,) = (torch.autograd.grad(x.sum(), hidden) for x in (ours, whole))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def frozen_head_of(model, dtype):
    head = Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    head.weight = torch.nn.Parameter(model.lm_head.weight.detach().to(dtype), requires_grad=False)
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_objective_under_a_frozen_head_is_that_of_its_floats(monkeypatch, dtype):
    model = Transformer.build(shape(tie_word_embeddings=False), seed=3)
    batch = Memory(5).take(4)
    model.lm_head = frozen_head_of(model, dtype)
    made = []
    monkeypatch.setattr(frozen_head, "token_losses", spy(frozen_head.token_losses, made))
    ours = NextToken(z_loss=0.01)(model, batch, 0.01)
    assert len(made) == (dtype == torch.bfloat16)  # floats keep the path that they had
    ours.loss.backward()
    mine = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    head = model.lm_head.weight.data.float()
    hidden = model(torch.from_numpy(batch.ids), documents_BT=torch.from_numpy(batch.documents)).hidden.flatten(0, 1)
    theirs = cross_entropy(hidden, head, torch.from_numpy(batch.labels).flatten(), scale=0.01, z_loss=0.01)
    theirs.backward()
    torch.testing.assert_close(ours.loss, theirs, rtol=1e-5, atol=0)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(mine[name], p.grad, rtol=1e-4, atol=1e-7, msg=name)


def spy(function, calls):
    def call(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return call


def test_losses_of_tokens_need_no_second_pass_under_a_frozen_head():
    hidden, weight, labels = problem()
    head = Linear(D, V, bias=False)
    head.weight = torch.nn.Parameter(weight.detach(), requires_grad=False)
    ours = token_losses(head, hidden, labels)
    assert "TokenLosses" in ours.grad_fn.name()
    head.weight.requires_grad_()
    torch.testing.assert_close(ours, token_losses(head, hidden, labels), rtol=1e-5, atol=1e-6)
    adapter = type("Adapter", (Linear,), {})(D, V, bias=False).requires_grad_(False)
    assert adapter.frozen_tiles() is None  # what a subclass adds would be left out

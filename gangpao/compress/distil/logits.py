"""A divergence from the teacher, and cross-entropy beside it, under the student's head: logits of some hundred tokens at a time.

As in gangpao/train/step/loss.py the gradients of hidden states and head are made together with the loss, so neither the student's
nor the teacher's logits of all tokens ever exist. What the loss is:

    (1 - c) tau^2 divergence(p at temperature tau, q at temperature tau) + c cross-entropy(label)

tau^2 keeps gradients as large as they are at temperature 1 (arXiv:1503.02531).
Shapes: R rows (tokens), D width, V vocabulary, K tokens of which the teacher's probability is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gangpao.compress.distil.divergence import Kind, divergence
from gangpao.train.step.loss import rows_at_once


class Said(NamedTuple):
    """What a teacher says of some rows, at a temperature. logp: [R, V]; or [R, K + 1] with ids, int64 [R, K]: of these tokens and,
    last, of all others together ([R, K] where ids are the whole vocabulary)."""

    logp: Tensor
    ids: Tensor | None = None


class Answers(Protocol):
    """A teacher's answers to the rows of a batch, in their order."""

    def rows(self, begin: int, end: int, like: Tensor) -> Said:
        """Those of rows [begin, end), in the dtype and on the device of `like`, at the temperature that was asked for."""
        ...


class Spec(NamedTuple):
    """What is computed. hard: the share c of cross-entropy; weight: see divergence."""

    kind: Kind = "forward"
    weight: float = 0.5
    temperature: float = 1.0
    hard: float = 0.0


class Sums(NamedTuple):
    """Sums over rows: the loss (the only one with a gradient), the divergence without tau^2, cross-entropy, of how many rows
    teacher and student like the same token best, and the teacher's cross-entropy (at the temperature; 0 where not all is known)."""

    loss: Tensor
    divergence: Tensor
    entropy: Tensor
    agree: Tensor
    theirs: Tensor


def distilled(
    hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor, answers: Answers, spec: Spec, scale: float = 1.0
) -> Sums:
    """The sums, each times `scale`, of rows that all have a label. Gradients go to the hidden states and the head."""
    wants = torch.is_grad_enabled()
    out = _Distilled.apply(hidden_RD, weight_VD, labels_R, answers, spec, scale, wants)  # type: ignore[no-untyped-call]
    return Sums(*out)


class _Distilled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        answers: Answers,
        spec: Spec,
        scale: float,
        wants: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        cast = weight.to(hidden.dtype)
        needs_hidden, needs_weight = wants and ctx.needs_input_grad[0], wants and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs_weight else None
        )
        totals = torch.zeros(5, dtype=wide, device=hidden.device)
        for begin, end in _pieces(len(labels), len(weight)):
            h = hidden[begin:end]
            z = F.linear(h, cast).to(wide)
            said = answers.rows(begin, end, z)
            found, gradient = piece(z, labels[begin:end], said, spec, wants and (needs_hidden or needs_weight))
            totals += found
            if gradient is None:
                continue
            gradient = gradient.to(h.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, cast, out=grad_hidden[begin:end])
            if grad_weight is not None and gradient.dtype == grad_weight.dtype:
                grad_weight.addmm_(gradient.T, h, alpha=scale)
            elif grad_weight is not None:  # the sum over pieces in float32
                grad_weight.add_(gradient.T @ h, alpha=scale)
        if grad_hidden is not None:
            grad_hidden *= scale
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        loss, *others = (totals * scale).unbind()
        ctx.mark_non_differentiable(*others)
        return loss.clone(), *others

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        upstream = gradients[0]
        grads = [None if g is None else g * upstream.to(g.dtype) for g in ctx.saved_tensors]
        return grads[0], grads[1], None, None, None, None, None


def _pieces(rows: int, vocab_size: int) -> Iterator[tuple[int, int]]:
    size = rows_at_once(vocab_size)
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)


def piece(z_RV: Tensor, labels_R: Tensor, said: Said, spec: Spec, wants: bool) -> tuple[Tensor, Tensor | None]:
    """The sums [5] of a piece of logits (see Sums), and when wanted the gradient of the loss [R, V]."""
    tau = spec.temperature
    soft = torch.log_softmax(z_RV / tau if tau != 1.0 else z_RV, dim=-1)
    if said.ids is None:
        apart, gradient = divergence(soft, said.logp, spec.kind, spec.weight)
        best, theirs = said.logp.argmax(-1), -said.logp.gather(1, labels_R[:, None]).sum()
    else:
        apart, gradient = _merged(soft, said.logp, said.ids, spec)
        likeliest = said.logp[:, : said.ids.shape[1]].argmax(-1, keepdim=True)
        best, theirs = said.ids.gather(1, likeliest)[:, 0], apart.new_zeros(())
    logq = soft if tau == 1.0 else torch.log_softmax(z_RV, dim=-1)
    hard = -logq.gather(1, labels_R[:, None])[:, 0]
    loss = (1 - spec.hard) * tau * tau * apart + spec.hard * hard
    agree = (z_RV.argmax(-1) == best).sum().to(loss.dtype)
    sums = torch.stack([loss.sum(), apart.sum(), hard.sum(), agree, theirs])
    if not wants:
        return sums, None
    gradient = gradient.mul_((1 - spec.hard) * tau)
    if spec.hard:
        gradient.add_(logq.exp(), alpha=spec.hard)
        gradient.scatter_add_(1, labels_R[:, None], torch.full_like(hard[:, None], -spec.hard))
    return sums, gradient


def _merged(soft_RV: Tensor, logp: Tensor, ids_RK: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
    """Divergence [R] and its gradient [R, V] where the teacher's tokens but K are one outcome."""
    kept = soft_RV.gather(1, ids_RK)
    if logp.shape[1] == ids_RK.shape[1]:  # nothing is left over
        apart, g = divergence(kept, logp, spec.kind, spec.weight)
        return apart, torch.zeros_like(soft_RV).scatter_(1, ids_RK, g)
    others = soft_RV.scatter(1, ids_RK, -torch.inf)
    rest = torch.logsumexp(others, dim=-1, keepdim=True)
    apart, g = divergence(torch.cat([kept, rest], dim=1), logp, spec.kind, spec.weight)
    gradient = others.sub_(rest).exp_().mul_(g[:, -1:])  # the rest's gradient goes to its tokens by their share of it
    return apart, gradient.scatter_(1, ids_RK, g[:, :-1])

"""Cross-entropy under a frozen head, which may lie in blocks or in bf16: neither [R, V] logits nor the head as floats exist.

The vocabulary goes by in tiles. For every token a running maximum and a running sum of exponentials give the logarithm of the
sum of all (the "online" softmax of arXiv:1805.02867), and the same rescaling serves sum_v p(v) w(v), from which the gradient of a
hidden state is made: sum_v p(v) w(v) - w(label). So one pass over the head is enough, with two products, where recomputing logits
in the backward pass takes four. As nothing but the hidden state has a gradient, every token may have a factor of its own (DPO).

What it gives up: the gradient is a difference of two sums where the plain way has p - 1; both are good to float32 rounding.
Shapes: R rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gangpao.model.tiles import Tiles, spans

IGNORE = -100
ROWS = 1024  # tokens at once: enough that reading the head costs little beside its products
TILE_WEIGHTS = 1 << 20  # of the head at once, 4 MiB of float32


def loss_bytes(rows: int, width: int) -> int:
    """Memory of the loss of so many rows: gradients of all hidden states; of ROWS of them logits and sums; a tile. float32."""
    at_once, words = min(rows, ROWS), max(64, TILE_WEIGHTS // width)
    return 4 * (rows * width + 2 * at_once * words + at_once * width + words * width)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, labels_R: Tensor, head: Tiles, z_loss: float, wants: bool) -> Tensor:
        wants = wants and ctx.needs_input_grad[0]
        losses = torch.empty(len(labels_R), dtype=torch.float32, device=hidden_RD.device)
        gradient = torch.empty_like(hidden_RD) if wants else None
        for start in range(0, len(labels_R), ROWS):
            part = slice(start, start + ROWS)
            losses[part], found = _rows(hidden_RD[part], labels_R[part], head, z_loss, wants)
            if gradient is not None and found is not None:
                gradient[part] = found
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None].to(gradient.dtype), None, None, None, None


def _rows(h: Tensor, labels: Tensor, head: Tiles, z_loss: float, wants: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [R] and, when wanted, their gradients float32 [R, D] with respect to the hidden states."""
    valid = labels != IGNORE
    target = torch.where(valid, labels, 0)
    peak = torch.full((len(h), 1), -torch.inf, device=h.device)
    total, picked = torch.zeros_like(peak), torch.zeros_like(peak)
    mean = (
        torch.zeros(h.shape, dtype=torch.float32, device=h.device) if wants else None
    )  # sum of p(v) w(v), times total
    for begin, end in spans(head.rows, head.cols, TILE_WEIGHTS):
        w = head.read(begin, end, h)
        logits = (h @ w.T).float()
        inside = ((target >= begin) & (target < end))[:, None]
        picked += logits.gather(1, (target - begin).clamp_(0, end - begin - 1)[:, None]) * inside
        top = torch.maximum(peak, logits.amax(1, keepdim=True))
        shrink, p = (peak - top).exp_(), logits.sub_(top).exp_()
        total.mul_(shrink).add_(p.sum(1, keepdim=True))
        peak = top
        if mean is not None:
            mean.mul_(shrink)
            if w.dtype == torch.float32:
                mean.addmm_(p, w)
            else:  # the sum over tiles in float32
                mean += p.to(w.dtype) @ w
    lse = peak + total.log()
    losses = (lse - picked) * valid[:, None]
    if z_loss:
        losses += z_loss * lse.square() * valid[:, None]
    if mean is None:
        return losses[:, 0], None
    mean *= (1 + 2 * z_loss * lse) / total
    mean -= head.take(target)
    return losses[:, 0], mean.mul_(valid[:, None])


def token_losses(hidden_RD: Tensor, labels_R: Tensor, head: Tiles, *, z_loss: float = 0.0) -> Tensor:
    """-log p(label) + z_loss * logsumexp ** 2 of every row, float32 [R], 0 where the label is -100."""
    wants = torch.is_grad_enabled()
    return _TokenLosses.apply(hidden_RD, labels_R, head, z_loss, wants)  # type: ignore[no-any-return, no-untyped-call]

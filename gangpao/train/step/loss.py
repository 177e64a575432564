"""Next-token cross-entropy that never holds the whole [tokens, V] table of logits.

The idea: with a vocabulary of 120,000 the logits of 4,096 tokens are 2 GB in float32, and as much again for their gradient.
Tokens are therefore taken some hundred at a time: logits, loss, and at once the gradients of hidden states and head, because
d loss / d logits = softmax - onehot is known as soon as the logits are. The backward pass then only hands them on. Three matrix
products instead of the four that recomputing would cost.

What it gives up: gradients of the sum only. Where each token needs its own (DPO), `token_losses` recomputes the logits, or takes
one pass over a head that is frozen (frozen_head).
Shapes: R rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gangpao.model.layers import Linear
from gangpao.train.step import frozen_head
from gangpao.train.step.frozen_head import IGNORE as IGNORE

# A piece of logits is 16 MB of float32 (larger ones are new pages from the system every time), but at least this many rows, or the
# head's gradient is rewritten too often.
CHUNK_LOGITS, MIN_ROWS = 1 << 22, 128
CACHED_LOGITS = 1 << 18  # of which a CPU makes probabilities while they lie in its cache: 1 MB of float32
SMALLEST = 1e-30  # a probability above it is a normal float32, and its logarithm has all digits


def rows_at_once(vocab_size: int) -> int:
    """Tokens whose logits exist in float32 at one time."""
    return max(MIN_ROWS, CHUNK_LOGITS // vocab_size)


def chunk_rows(rows: int, vocab_size: int) -> int:
    """Rows that go through the head at one time: thrice as many, since only their logits exist whole; in equal parts."""
    return -(-rows // max(1, -(-rows // (3 * rows_at_once(vocab_size)))))


def logits_bytes(vocab_size: int) -> int:
    """Memory of a loss at most: logits of one piece in float32, or a larger one's in the dtype of the products."""
    return 3 * 4 * rows_at_once(vocab_size) * vocab_size


class Rows(Protocol):
    """What a batch has: int64 [B, T] each. labels are -100 where nothing is predicted."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def documents(self) -> np.ndarray: ...


class Terms(NamedTuple):
    """A differentiable loss, times the scale that was asked for, and values to report, each times the scale as well."""

    loss: Tensor
    values: dict[str, Tensor]


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor, scale: float, z_loss: float, wants: bool
    ) -> Tensor:
        weight = weight_VD.to(hidden_RD.dtype)
        needs_hidden, needs_weight = wants and ctx.needs_input_grad[0], wants and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_RD) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_RD.device)
        size = chunk_rows(len(labels_R), len(weight))
        space = hidden_RD.new_empty(size, len(weight))
        for start in range(0, len(labels_R), size):
            h, labels = hidden_RD[start : start + size], labels_R[start : start + size]
            logits = torch.mm(h, weight.T, out=space[: len(h)])
            total += _to_gradient(logits, labels, z_loss, needs_hidden or needs_weight)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[start : start + size])
            if grad_weight is not None and logits.dtype == torch.float32:
                grad_weight.addmm_(logits.T, h, alpha=scale)
            elif grad_weight is not None:  # the sum over chunks in float32
                grad_weight.add_(logits.T @ h, alpha=scale)
        if grad_hidden is not None:
            grad_hidden *= scale
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype))
        return total * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = gradients
        grads = list(ctx.saved_tensors)
        # The loop puts its factor into `scale`, so this is 1 and a pass over [V, D] is saved; asking a GPU would be a wait.
        if upstream.device.type != "cpu" or upstream.item() != 1.0:
            grads = [None if g is None else g * upstream.to(g.dtype) for g in grads]
        return grads[0], grads[1], None, None, None, None


def _to_gradient(logits: Tensor, labels: Tensor, z_loss: float, wants: bool) -> Tensor:
    """Summed loss of some rows; where its gradient with respect to their logits is wanted, it takes the place of these."""
    size = max(1, (CHUNK_LOGITS if logits.is_cuda else CACHED_LOGITS) // logits.shape[1])
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    for rows, some in zip(torch.split(logits, size), torch.split(labels, size), strict=True):
        part, gradient = _rows(rows.float(), some, z_loss, wants)
        loss += part
        if gradient is not None:
            rows.copy_(gradient)
    return loss


def _rows(logits: Tensor, labels: Tensor, z_loss: float, wants: bool) -> tuple[Tensor, Tensor | None]:
    """Summed loss of float32 logits and, when wanted, its gradient."""
    valid = labels != IGNORE
    index = torch.where(valid, labels, 0)[:, None]
    picked = logits.gather(1, index)
    gradient, picked_logp = _softmax(logits, index, wants)
    loss = -(picked_logp[:, 0] * valid).sum()
    lse = picked - picked_logp
    if z_loss:
        loss = loss + z_loss * (lse[:, 0].square() * valid).sum()
    if gradient is None:
        return loss, None
    if z_loss:
        gradient *= 1 + 2 * z_loss * lse
    gradient.scatter_add_(1, index, torch.full_like(picked, -1.0))
    if labels.is_cuda or not bool(valid.all()):  # a GPU would have to wait for the answer
        gradient *= valid[:, None]
    return loss, gradient


def _softmax(logits: Tensor, index: Tensor, wants: bool) -> tuple[Tensor | None, Tensor]:
    """Probabilities, when wanted, and the log-probability of `index` [R, 1]."""
    # One exponential fewer, 2.5 times as fast. A GPU would have to wait for the answer whether all are large enough.
    if wants and not logits.is_cuda:
        p = torch.softmax(logits, dim=-1)
        picked = p.gather(1, index)
        if float(picked.min()) > SMALLEST:
            return p, picked.log()
    logp = torch.log_softmax(logits, dim=-1)
    picked = logp.gather(1, index)
    return (logp.exp_() if wants else None), picked


def cross_entropy(
    hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor, *, scale: float = 1.0, z_loss: float = 0.0
) -> Tensor:
    """scale * sum of -log p(label), and of z_loss * logsumexp ** 2, over rows whose label is not -100."""
    wants = torch.is_grad_enabled()
    return _ChunkedCrossEntropy.apply(hidden_RD, weight_VD, labels_R, scale, z_loss, wants)  # type: ignore[no-any-return, no-untyped-call]


def token_losses(head: Callable[[Tensor], Tensor], hidden_RD: Tensor, labels_R: Tensor, size: int = 512) -> Tensor:
    """-log p(label) of every row, float32 [R], 0 where the label is -100; logits are made again for the backward pass.

    `head` may be any module (adapters, quantized weights), and every row may have its own gradient. Under a frozen head nothing is
    made again.
    """
    if isinstance(head, Linear) and (tiles := head.frozen_tiles()) is not None:
        return frozen_head.token_losses(hidden_RD, labels_R, tiles)

    def part(h: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(head(h).float(), labels, ignore_index=IGNORE, reduction="none")

    out = []
    for h, labels in zip(torch.split(hidden_RD, size), torch.split(labels_R, size), strict=True):
        out.append(checkpoint(part, h, labels, use_reentrant=False) if torch.is_grad_enabled() else part(h, labels))
    return torch.cat(out)


def hidden_states(
    model: nn.Module, batch: Rows, *, dtype: torch.dtype | None, recompute: bool, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """The model's hidden states [B, T, D] of packed rows, ready for the head, and the experts' balancing loss (None without them).

    device: where the model computes, when its weights lie elsewhere.
    """
    device = device or next(model.parameters()).device
    borders = batch.documents[:, 1:] != batch.documents[:, :-1]
    bordered = bool(borders.any())  # without one, plain causal attention says the same faster
    ids = torch.from_numpy(np.ascontiguousarray(batch.ids)).to(device)
    documents = torch.from_numpy(np.ascontiguousarray(batch.documents)).to(device) if bordered else None
    hidden, balance = model(ids, documents_BT=documents, dtype=dtype, recompute=recompute)
    return hidden, balance


class NextToken:
    """The objective of pretraining and SFT: cross-entropy of the next token, plus what experts and z-loss add.

    device: where the model computes, when its weights lie elsewhere (offloaded).
    """

    def __init__(
        self,
        *,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
        z_loss: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        self.dtype, self.recompute, self.z_loss, self.device = dtype, recompute, z_loss, device

    def measure(self, batch: Rows) -> tuple[int, int]:
        """(labels, ids) of a batch."""
        return int((batch.labels != IGNORE).sum()), batch.ids.size

    def __call__(self, model: nn.Module, batch: Rows, scale: float) -> Terms:
        """The summed loss of a batch times `scale`, which is 1 / (labels of the whole step)."""
        hidden, balance = hidden_states(model, batch, dtype=self.dtype, recompute=self.recompute, device=self.device)
        labels = torch.from_numpy(np.ascontiguousarray(batch.labels)).to(hidden.device)
        hidden, labels, count = _where_labelled(hidden.flatten(0, 1), labels.flatten(), batch.labels)
        head = model.get_submodule("lm_head")
        loss = self._cross_entropy(head, hidden, labels, scale)
        values = {"loss": loss.detach()}
        if balance is not None:
            config: Any = model.config
            values["balance"] = balance.detach() * (count * scale)
            loss = loss + balance * (config.moe.router_aux_loss_coef * count * scale)
        return Terms(loss, values)

    def _cross_entropy(self, head: nn.Module, hidden: Tensor, labels: Tensor, scale: float) -> Tensor:
        tiles = head.frozen_tiles() if isinstance(head, Linear) else None
        plain = type(head) is Linear and getattr(head, "bias", None) is None
        if plain and (tiles is None or head.weight.dtype == hidden.dtype):
            assert isinstance(head, Linear)
            return cross_entropy(hidden, head.weight, labels, scale=scale, z_loss=self.z_loss)
        if tiles is not None:  # in blocks or in a smaller dtype
            return frozen_head.token_losses(hidden, labels, tiles, z_loss=self.z_loss).sum() * scale
        return token_losses(head, hidden, labels).sum() * scale  # an adapter: its own forward


def _where_labelled(hidden: Tensor, labels: Tensor, known: np.ndarray) -> tuple[Tensor, Tensor, int]:
    """Rows that have a label, when the rest is worth leaving out of the head's products, and how many they are."""
    index = np.flatnonzero(known.reshape(-1) != IGNORE)
    if 4 * len(index) > 3 * known.size or not len(index):
        return hidden, labels, len(index)
    chosen = torch.from_numpy(index).to(hidden.device)
    return hidden[chosen], labels[chosen], len(index)

"""Log-probabilities of the answers in packed rows, with logits in pieces only.

Answers lie end to end in rows and never see one another (`documents`), so nothing is padded. The head is multiplied only where a
label is, some hundred positions at a time, and again in the backward pass: a vocabulary of 120,000 and ten thousand labels would be
5 GB of logits, and as much for their gradient.

Shapes: B rows of T ids, R labels in the order of the rows, S answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.train.step.loss import IGNORE, Rows, hidden_states, rows_at_once, token_losses

NONE = -1  # the number of an answer where there is no label


class Answers(Rows, Protocol):
    """Packed rows whose labels belong to answers: int64 [B, T], from 0 to S - 1 without a gap, -1 where there is no label."""

    @property
    def sequences(self) -> np.ndarray: ...


class Preferences(Answers, Protocol):
    """Answers of which each is desirable or not, bool [S]; in pairs: chosen, rejected, chosen, rejected ..."""

    @property
    def desirable(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Packed:
    """Answers that an objective packed itself."""

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    sequences: np.ndarray


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is called. See gangpao.train.step.loss.NextToken."""

    dtype: torch.dtype | None = None
    recompute: bool = False
    device: torch.device | None = None


class Labelled(NamedTuple):
    """What a forward pass says of the labels: float32 log-probabilities [R], the answer of each, int64 [R], tokens of each answer,
    float32 [S], and the experts' balancing loss, None without experts."""

    logps: Tensor
    sequences: Tensor
    lengths: Tensor
    balance: Tensor | None

    def sums(self) -> Tensor:
        """Log-probabilities of whole answers [S]."""
        return self.add(self.logps)

    def answers(self, batch: Answers, asked: Answers) -> Labelled:
        """The labels of `batch` alone, where `asked` had more in the same rows."""
        if batch is asked:
            return self
        kept = (batch.labels != IGNORE)[asked.labels != IGNORE]
        keep = torch.from_numpy(kept).to(self.logps.device)
        sequences = self.sequences[keep]
        lengths = torch.bincount(sequences, minlength=len(self.lengths)).float()
        return Labelled(self.logps[keep], sequences, lengths, self.balance)

    def add(self, values_R: Tensor) -> Tensor:
        """A value of every label, added up in its answer [S]."""
        return torch.zeros_like(self.lengths).index_add(0, self.sequences, values_R)


def answers_in(batch: Answers) -> int:
    """How many answers there are. Raises ValueError where numbers and labels do not belong together."""
    labelled = batch.labels != IGNORE
    if not np.array_equal(labelled, batch.sequences != NONE):
        raise ValueError("a batch of answers has labels without an answer's number, or numbers without a label")
    numbers = np.unique(batch.sequences[labelled])
    if not np.array_equal(numbers, np.arange(len(numbers))):
        raise ValueError(
            f"the answers of a batch must be numbered from 0 without a gap, these are {numbers[:8].tolist()}; an answer without a "
            "token to learn has to be dropped before"
        )
    return len(numbers)


def label_logps(model: nn.Module, batch: Answers, settings: Settings) -> Labelled:
    """One forward pass. Differentiable unless gradients are switched off."""
    count = answers_in(batch)
    hidden, balance = hidden_states(
        model, batch, dtype=settings.dtype, recompute=settings.recompute, device=settings.device
    )
    index = np.flatnonzero(batch.labels.reshape(-1) != IGNORE)

    def chosen(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.reshape(-1)[index])).to(hidden.device)

    sequences = chosen(batch.sequences)
    rows = hidden.flatten(0, 1)[torch.from_numpy(index).to(hidden.device)]
    config: Any = model.config
    head = model.get_submodule("lm_head")
    logps = -token_losses(head, rows, chosen(batch.labels), rows_at_once(config.vocab_size))
    lengths = torch.bincount(sequences, minlength=count).float()
    return Labelled(logps, sequences, lengths, balance)


def with_balance(
    model: nn.Module, labelled: Labelled, loss: Tensor, values: dict[str, Tensor], weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and values, with what the experts add times `weight`."""
    if labelled.balance is None:
        return loss, values
    config: Any = model.config
    added = labelled.balance * weight
    return loss + added * config.moe.router_aux_loss_coef, values | {"balance": added.detach()}

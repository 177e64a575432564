"""The objective of distillation for the one training loop, and the one that held-out rows are measured by.

    loss = divergence of logits (with its share of cross-entropy) + a * hidden states + b * attention

each a sum over labelled tokens (logits.py, inner.py). Rows do not depend on one another, so lanes may part them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.compress.distil.inner import (
    Alike,
    Inner,
    Pair,
    Projections,
    Seen,
    Taps,
    attentions_apart,
    looked_at,
    states_apart,
)
from gangpao.compress.distil.logits import Spec, distilled
from gangpao.compress.distil.teacher import Lesson, Teacher, labelled
from gangpao.train.step.loss import IGNORE, Rows, Terms, hidden_states
from gangpao.tune.objectives.logps import Settings


class InnerSpec(NamedTuple):
    """What is compared inside. *_weight: the factors a and b, 0 for nothing."""

    hidden_weight: float = 0.0
    hidden_kind: Alike = "mse"
    hidden_pairs: tuple[Pair, ...] = ()
    attention_weight: float = 0.0
    attention_kind: Seen = "kl"
    attention_pairs: tuple[Pair, ...] = ()


class Distil:
    """The objective. taps: on the student, where anything inside is compared; projections: a part of the model that is trained."""

    separable = True

    def __init__(
        self, teacher: Teacher, spec: Spec, settings: Settings, *,
        inner: InnerSpec | None = None, taps: Taps | None = None, projections: Projections | None = None,
    ) -> None:  # fmt: skip
        self.teacher, self.spec, self.settings = teacher, spec, settings
        self.inner, self.taps, self.projections = inner or InnerSpec(), taps, projections

    def measure(self, batch: Rows) -> tuple[int, int]:
        """(labels, ids) of a batch."""
        return int((batch.labels != IGNORE).sum()), batch.ids.size

    def __call__(self, model: nn.Module, batch: Rows, scale: float) -> Terms:
        """The summed loss of a batch times `scale`, which is 1 / (labels of the whole step)."""
        lesson = self.teacher.lesson(batch, self.spec.temperature)
        if self.taps is None:
            hidden, balance, seen = *_hidden(model, batch, self.settings), None
        else:
            with self.taps.looking() as seen:
                hidden, balance = _hidden(model, batch, self.settings)
        found = distilled(
            labelled(hidden, batch), head_weight(model), _labels(batch, hidden), lesson.answers, self.spec, scale
        )
        loss, values = found.loss, {"kl": found.divergence.detach(), "ce": found.entropy.detach()}
        if seen is not None:
            loss, values = self._with_inner(loss, values, batch, seen, lesson, scale)
        if balance is not None:
            config: Any = model.config
            count = self.measure(batch)[0]
            values["balance"] = balance.detach() * (count * scale)
            loss = loss + balance * (config.moe.router_aux_loss_coef * count * scale)
        return Terms(loss, {"loss": loss.detach(), **values})

    def _with_inner(
        self, loss: Tensor, values: dict[str, Tensor], batch: Rows, seen: Inner, lesson: Lesson, scale: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        spec, theirs = self.inner, lesson.inner
        assert theirs is not None
        if spec.hidden_weight:
            found = loss.new_zeros(())
            for pair in spec.hidden_pairs:
                ours = labelled(seen.hidden[pair[0]], batch)
                ours = self.projections(ours, pair) if self.projections is not None else ours
                target = labelled(theirs.hidden[pair[1]], batch).to(ours.dtype)
                found = found + states_apart(_wide(ours), _wide(target), spec.hidden_kind).sum()
            found = found * (scale / len(spec.hidden_pairs))
            loss, values = loss + spec.hidden_weight * found, values | {"hidden": found.detach()}
        if spec.attention_weight:
            found, counted = loss.new_zeros(()), torch.from_numpy(batch.labels != IGNORE).to(loss.device)
            for s, t in spec.attention_pairs:
                with torch.no_grad():
                    target = looked_at(*theirs.attention[t])
                ours = looked_at(*seen.attention[s])
                found = found + attentions_apart(ours, target.to(ours.dtype), spec.attention_kind)[counted].sum()
            found = found * (scale / len(spec.attention_pairs))
            loss, values = loss + spec.attention_weight * found, values | {"attention": found.detach()}
        return loss, values


class Heldout:
    """What held-out rows are measured by: forward KL at temperature 1 ("loss" and "kl"), cross-entropy ("ce"), the
    share of tokens where teacher and student like the same one best ("top1"), and the teacher's cross-entropy ("teacher_ce", 0
    where only the likeliest tokens of its answers are known)."""

    separable = True

    def __init__(self, teacher: Teacher, settings: Settings) -> None:
        self.teacher, self.settings = teacher, settings

    def measure(self, batch: Rows) -> tuple[int, int]:
        """(labels, ids) of a batch."""
        return int((batch.labels != IGNORE).sum()), batch.ids.size

    def __call__(self, model: nn.Module, batch: Rows, scale: float) -> Terms:
        """Sums over a batch, times `scale`."""
        answers = self.teacher.lesson(batch, 1.0).answers
        hidden, _ = _hidden(model, batch, self.settings)
        found = distilled(labelled(hidden, batch), head_weight(model), _labels(batch, hidden), answers, Spec(), scale)
        values = {"kl": found.divergence, "ce": found.entropy, "top1": found.agree, "teacher_ce": found.theirs}
        return Terms(found.loss, {"loss": found.divergence, **values})


def head_weight(model: nn.Module) -> Tensor:
    """The matrix under which the student's logits are made, with its gradient; that of a layer which rounds, rounded."""
    head = model.get_submodule("lm_head")
    effective = getattr(head, "effective", None)
    weight: Any = effective() if callable(effective) else head.weight
    out: Tensor = weight
    return out


def _hidden(model: nn.Module, batch: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    return hidden_states(model, batch, dtype=settings.dtype, recompute=settings.recompute, device=settings.device)


def _labels(batch: Rows, like: Tensor) -> Tensor:
    flat = batch.labels.reshape(-1)
    return torch.from_numpy(np.ascontiguousarray(flat[flat != IGNORE])).to(like.device)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

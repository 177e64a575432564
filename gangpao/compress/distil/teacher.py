"""The teacher at work: a frozen model, in whatever it lies (floats, blocks of a GGUF file), asked about a batch without a gradient.

Its logits are made for the same rows and in the same pieces as the student's, so they never exist for all tokens either. What it
said can be kept on the disk instead (store.py); then it works once, however often the student sees a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gangpao.compress.distil.inner import Inner, Taps
from gangpao.compress.distil.logits import Answers, Said
from gangpao.model.transformer import Transformer
from gangpao.train.step.loss import IGNORE, Rows, hidden_states
from gangpao.tune.base.load import Base


class Lesson(Protocol):
    """What the teacher has for one batch: answers to its labelled rows; states and attention of its layers where asked for."""

    @property
    def answers(self) -> Answers: ...
    @property
    def inner(self) -> Inner | None: ...


class Teacher(Protocol):
    """Who is asked about batches. temperature: of the answers."""

    def lesson(self, batch: Rows, temperature: float) -> Lesson:
        """About the labelled tokens of a batch, in the order of its rows."""
        ...


class Working:
    """A model that is asked when it is needed. taps: what is looked at inside it."""

    def __init__(
        self, model: Transformer, dtype: torch.dtype | None, device: torch.device, taps: Taps | None = None
    ) -> None:
        self.model, self.dtype, self.device, self.taps = model, dtype, device, taps

    @torch.no_grad()
    def lesson(self, batch: Rows, temperature: float) -> _Heard:
        """One forward pass."""
        if self.taps is None:
            hidden, _ = hidden_states(self.model, batch, dtype=self.dtype, recompute=False, device=self.device)
            return _Heard(self.model, labelled(hidden, batch), temperature, None)
        with self.taps.looking() as inner:
            hidden, _ = hidden_states(self.model, batch, dtype=self.dtype, recompute=False, device=self.device)
        return _Heard(self.model, labelled(hidden, batch), temperature, inner)


class _Heard:
    """A batch's hidden states [R, D] in front of the teacher's head."""

    def __init__(self, model: Transformer, hidden: Tensor, temperature: float, inner: Inner | None) -> None:
        self.model, self.hidden, self.temperature, self.inner = model, hidden, temperature, inner

    @property
    def answers(self) -> _Heard:
        return self

    @torch.no_grad()
    def rows(self, begin: int, end: int, like: Tensor) -> Said:
        z = self.model.lm_head(self.hidden[begin:end]).to(like.dtype)
        return Said(torch.log_softmax(z / self.temperature if self.temperature != 1.0 else z, dim=-1))


def labelled(hidden_BTD: Tensor, batch: Rows) -> Tensor:
    """The rows [R, D] of what is learned, in the order of the batch."""
    flat = hidden_BTD.flatten(0, 1)
    index = np.flatnonzero(batch.labels.reshape(-1) != IGNORE)
    return flat if len(index) == len(flat) else flat[torch.from_numpy(index).to(flat.device)]


def check_same_words(student: Base, teacher: Base) -> None:
    """Raises ValueError where an id means another word to the teacher: their distributions cannot be compared."""
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"{student.path} has {student.config.vocab_size:,} tokens, the teacher {teacher.path} {teacher.config.vocab_size:,}: "
            "distillation compares probabilities token by token; take a teacher with the student's tokenizer"
        )
    for text in _PROBES:
        ours, theirs = _ids(student, text), _ids(teacher, text)
        if ours != theirs:
            raise ValueError(
                f"{student.path} and the teacher {teacher.path} cut {text!r} into other tokens ({ours[:8]} and {theirs[:8]}): "
                "take a teacher with the student's tokenizer"
            )


_PROBES = ("The quick brown fox, 12345 times.", "小钢炮在手机上运行", "def f(x):\n    return x + 1\n")


def _ids(base: Base, text: str) -> Sequence[int]:
    return list(base.tokenizer.encode(text))

"""Layers that should resemble the teacher's: hidden states after them, and what their attention looks at.

A pair (s, t) says that layer s of the student is to do what layer t of the teacher does, both from 0. The usual pairs are even,
last to last: with n and m layers, s goes with the layer in which the teacher has done the same share of its work.

    mse      hidden states divided by their root mean square, mean over the width of the squared difference
    cosine   1 - cosine
    kl, mse  of attention: KL(teacher || student) of each query's probabilities, or their summed squared difference, mean over heads

Where widths differ the student's states go through a matrix that is learned with it and thrown away; where numbers of heads differ
the probabilities are first averaged, over groups of heads or over all. Sums are over labelled tokens, means over pairs.

Layers are looked at through hooks, each thread for itself, as lanes compute several batches at once. Attention is computed once
more for its probabilities, which no kernel for training keeps: [B, N, T, T] floats of every pair, so take short rows.
Shapes: B rows of T tokens, R of them labelled, D width, N heads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gangpao.model.layers import Attention, Linear, rotate
from gangpao.model.transformer import Transformer

Pair = tuple[int, int]
Alike = Literal["mse", "cosine"]
Seen = Literal["kl", "mse"]
_EPS = 1e-6


def even_pairs(student: int, teacher: int) -> tuple[Pair, ...]:
    """Every layer of the student with one of the teacher's, last to last; some of a shallower teacher's teach twice."""
    return tuple((s, max(0, math.ceil((s + 1) * teacher / student - 1e-9) - 1)) for s in range(student))


def checked_pairs(pairs: Sequence[Pair] | None, student: int, teacher: int) -> tuple[Pair, ...]:
    """The pairs that were asked for, or the usual ones. Raises ValueError for a layer that does not exist."""
    if pairs is None:
        return even_pairs(student, teacher)
    for s, t in pairs:
        if not (0 <= s < student and 0 <= t < teacher):
            raise ValueError(
                f"layers: [{s}, {t}] pairs layer {s} of the student (0 to {student - 1}) with layer {t} of the teacher (0 to "
                f"{teacher - 1}); count from 0"
            )
    return tuple(dict.fromkeys(pairs))


@dataclass(slots=True)
class Inner:
    """What was seen in a pass: hidden states [B, T, D] after layers, and inputs of attentions."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, tuple[Any, ...]] = field(default_factory=dict)


class Taps:
    """Hooks on layers of a model. hidden, attention: which layers are looked at."""

    def __init__(self, model: Transformer, hidden: Sequence[int], attention: Sequence[int]) -> None:
        self.model, self._local, self._hooks = model, threading.local(), []
        for i in set(hidden):
            self._hooks.append(model.model.layers[i].register_forward_hook(self._after(i)))
        for i in set(attention):
            module = getattr(model.model.layers[i], "self_attn", None)
            if not isinstance(module, Attention):
                raise ValueError(
                    f"layer {i} has latent attention (MLA) or Gated DeltaNet, which cannot be compared: leave attention out"
                )
            self._hooks.append(module.register_forward_pre_hook(self._before(i)))

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def looking(self) -> Iterator[Inner]:
        """What is seen by this thread inside."""
        self._local.inner = inner = Inner()
        try:
            yield inner
        finally:
            self._local.inner = None

    def _after(self, layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            inner: Inner | None = getattr(self._local, "inner", None)
            if inner is not None:
                inner.hidden[layer] = output[0]

        return hook

    def _before(self, layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            inner: Inner | None = getattr(self._local, "inner", None)
            if inner is not None:
                inner.attention[layer] = (module, *inputs[:4])

        return hook


def states_apart(student_RD: Tensor, teacher_RD: Tensor, kind: Alike) -> Tensor:
    """How far hidden states of the same width are apart, [R]."""
    if kind == "cosine":
        return 1 - torch.cosine_similarity(student_RD, teacher_RD, dim=-1)
    return (_unit(student_RD) - _unit(teacher_RD)).square().mean(-1)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)


def looked_at(module: Attention, x_BTD: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """Logarithms of attention's probabilities [B, N, T, T], -inf where nothing may be seen."""
    batch, time, _ = x_BTD.shape

    def heads(linear: Linear, norm: nn.Module | None) -> Tensor:
        y = linear(x_BTD).view(batch, time, -1, module.head_dim)
        return rotate((norm(y) if norm is not None else y).transpose(1, 2), cos, sin)

    q, k = heads(module.q_proj, module.q_norm), heads(module.k_proj, module.k_norm)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q @ k.transpose(2, 3)) * module.head_dim**-0.5
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is None:
        mask = torch.ones(time, time, dtype=torch.bool, device=scores.device).tril()
    return torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)


def attentions_apart(student_BNTT: Tensor, teacher_BNTT: Tensor, kind: Seen) -> Tensor:
    """How far logarithms of probabilities are apart, mean over heads: [B, T]."""
    n, m = student_BNTT.shape[1], teacher_BNTT.shape[1]
    if n != m:
        groups = math.gcd(n, m)
        student_BNTT, teacher_BNTT = _averaged(student_BNTT, groups), _averaged(teacher_BNTT, groups)
    p = teacher_BNTT.exp()
    if kind == "mse":
        return (student_BNTT.exp() - p).square().sum(-1).mean(1)
    difference = (teacher_BNTT - student_BNTT).masked_fill(~torch.isfinite(teacher_BNTT), 0.0)
    return (p * difference).sum(-1).mean(1)


def _averaged(logs: Tensor, groups: int) -> Tensor:
    share = logs.shape[1] // groups
    grouped = logs.reshape(len(logs), groups, share, *logs.shape[2:])
    seen = torch.isfinite(grouped[:, :, 0])
    mean = torch.logsumexp(grouped.masked_fill(~torch.isfinite(grouped), -1e30), dim=2) - math.log(share)
    return mean.masked_fill(~seen, -torch.inf)


class Projections(nn.Module):
    """A matrix for each pair whose widths differ, student to teacher, orthonormal at first."""

    def __init__(self, pairs: Sequence[Pair], student: int, teacher: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.of = nn.ModuleDict()
        for s, t in pairs if student != teacher else ():
            linear = Linear(student, teacher, bias=False)
            values = torch.randn(max(student, teacher), min(student, teacher), generator=generator)
            basis = torch.linalg.qr(values)[0]
            linear.weight = nn.Parameter(basis if teacher >= student else basis.T.contiguous())
            self.of[f"{s}-{t}"] = linear

    def forward(self, x: Tensor, pair: Pair) -> Tensor:
        """The student's states as wide as the teacher's."""
        name = f"{pair[0]}-{pair[1]}"
        out: Tensor = self.of[name](x) if name in self.of else x
        return out

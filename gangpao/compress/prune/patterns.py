"""Which weights stay of n in every m neighbours of a row, for one matrix with what its input is like.

    magnitude   the largest |w|
    wanda       the largest |w| * root mean square of the input (arXiv:2306.11695)
    sparsegpt   the largest w^2 / [H^-1]_jj, column by column; those behind take over the error of what goes
                (arXiv:2301.00774)

Of equal ones the first stays.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

PatternBy = Literal["magnitude", "wanda", "sparsegpt"]
_BLOCK = 128


def numbers(pattern: str) -> tuple[int, int]:
    """(n, m) of "n:m"."""
    n, _, m = pattern.partition(":")
    return int(n), int(m)


def mask_of(scores: Tensor, n: int, m: int) -> Tensor:
    """bool, like scores [R, C]: the n highest in every m of a row."""
    groups = scores.view(len(scores), -1, m)
    order = torch.sort(groups, dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True).view(scores.shape)


def pruned(weight: Tensor, moment: Tensor | None, by: PatternBy, pattern: str, damping: float) -> tuple[Tensor, Tensor]:
    """(weights with zeros, bool mask of what stays), [R, C]. moment: mean of x x^T, float64 [C, C]; magnitude needs none."""
    n, m = numbers(pattern)
    if by == "magnitude":
        mask = mask_of(weight.abs(), n, m)
        return weight * mask, mask
    assert moment is not None
    if by == "wanda":
        mask = mask_of(weight.abs().double() * moment.diagonal().clamp_min(0).sqrt(), n, m)
        return weight * mask, mask
    return _sparsegpt(weight, moment, n, m, damping)


def _sparsegpt(weight: Tensor, moment: Tensor, n: int, m: int, damping: float) -> tuple[Tensor, Tensor]:
    w, size = weight.double().clone(), weight.shape[1]
    mean = float(moment.diagonal().mean())
    if mean == 0:
        mask = mask_of(weight.abs(), n, m)
        return weight * mask, mask
    h = moment + damping * mean * torch.eye(size, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)
    mask = torch.ones_like(w, dtype=torch.bool)
    block = max(m, _BLOCK // m * m)
    for start in range(0, size, block):
        end = min(start + block, size)
        errors = torch.zeros(len(w), end - start, dtype=torch.float64)
        for j in range(start, end):
            if j % m == 0:
                group = slice(j, j + m)
                mask[:, group] = mask_of(w[:, group].square() / upper.diagonal()[group].square(), n, m)
            new = w[:, j] * mask[:, j]
            errors[:, j - start] = (w[:, j] - new) / upper[j, j]
            w[:, j:end] -= errors[:, j - start, None] * upper[j, j:end]
            w[:, j] = new
        w[:, end:] -= errors @ upper[start:end, end:]
    return (w * mask).to(weight.dtype), mask

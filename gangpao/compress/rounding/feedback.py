"""A matrix rounded with the data in view: what a column's rounding breaks, the columns behind it mend.

The error that counts is that of the products, (W - Q) H (W - Q)^T summed over rows, with H = X^T X of the inputs. GPTQ
(arXiv:2210.17323) goes through the columns once and spreads each rounding error over those that are still free. A block's scales
are chosen when its turn comes, from weights that already carry the errors before them; d and dmin at its beginning, a group's
whole numbers at the group's beginning.

Behind it comes descent (`descend`): values, scales, minima, d and dmin one kind after the other, each set to the best that its
type can say while all else stands. The error is a square in each of them, so the nearest number to the best real one is the best
whole one, and no move makes it larger.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangpao.compress.rounding.grids import Grid, Held, best_floats, fit_block, half, whole_scales

_TRIES = 12  # scales looked at for a group


def damped(hessian: Tensor, damping: float, shrink: float = 0.0) -> Tensor:
    """H with what hangs together taken back by a share, and a share of its mean diagonal added to the diagonal.

    Inputs that are always zero get that alone. shrink: 0 believes all of H, 1 its diagonal only.
    """
    diagonal = hessian.diagonal()
    out = hessian * (1 - shrink)
    out.diagonal().copy_(diagonal + damping * diagonal.mean().clamp_min(1e-12))
    return out


def errors(weights: Tensor, dense: Tensor, hessian: Tensor) -> Tensor:
    """(W - Q) H (W - Q)^T of each row [R], float32."""
    gap = weights - dense
    return ((gap @ hessian) * gap).sum(1)


def plain(weights: Tensor, importance: Tensor, grid: Grid) -> Held:
    """Every block for itself: scales by search, each value to the nearest level. importance: weight [C] of each column."""
    held = Held.empty(grid, *weights.shape)
    for begin in range(0, weights.shape[1], grid.block):
        x = weights[:, begin : begin + grid.block]
        _put_scales(held, begin, fit_block(x, importance[begin : begin + grid.block], grid, _TRIES))
        for at in range(begin, begin + grid.block, grid.group):
            step, offset = _of_group(held, at)
            inverse = _inverse(step)
            held.values[:, at : at + grid.group] = grid.nearest((weights[:, at : at + grid.group] + offset) * inverse)
    return held


def feed_back(weights: Tensor, hessian: Tensor, grid: Grid) -> Held:
    """Rounded by error feedback. weights [R, C]; hessian [C, C], damped."""
    work, held = weights.clone(), Held.empty(grid, *weights.shape)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    diagonal = upper.diagonal()
    matters = diagonal**-2
    for begin in range(0, weights.shape[1], grid.block):
        end = begin + grid.block
        fitted = fit_block(work[:, begin:end], matters[begin:end], grid, _TRIES)
        _put_scales(held, begin, fitted)
        moved = torch.empty(len(weights), grid.block)
        for at in range(begin, end, grid.group):
            if grid.two_floors and at > begin:
                _scale_again(held, work, matters, at)
            step, offset = _of_group(held, at)
            _columns(held, work, upper, moved, (begin, at), (step[:, 0], offset[:, 0]))
            if at + grid.group < end:
                done = slice(at - begin, at - begin + grid.group)
                work[:, at + grid.group : end] -= moved[:, done] @ upper[at : at + grid.group, at + grid.group : end]
        work[:, end:] -= moved @ upper[begin:end, end:]
    return held


def _columns(
    held: Held, work: Tensor, upper: Tensor, moved: Tensor, at: tuple[int, int], scales: tuple[Tensor, Tensor]
) -> None:
    """The columns of one group, one after the other; what each leaves goes into `moved` and into the rest of the group."""
    begin, first = at
    step, offset = scales
    grid, end = held.grid, first + held.grid.group
    inverse = _inverse(step)
    local = work[:, first:end].T.contiguous()  # columns lie side by side in memory: three times as fast
    values, gaps = torch.empty_like(local), torch.empty_like(local)
    rest = upper[first:end, first:end]
    for j in range(grid.group):
        values[j] = grid.nearest((local[j] + offset) * inverse)
        gaps[j] = (local[j] - (values[j] * step - offset)) / rest[j, j]
        if j + 1 < grid.group:
            local[j + 1 :] -= rest[j, j + 1 :, None] * gaps[j]
    held.values[:, first:end] = values.T
    moved[:, first - begin : end - begin] = gaps.T


def _inverse(step: Tensor) -> Tensor:
    """1 / step, zero where it is."""
    return torch.where(step == 0, 0.0, 1 / torch.where(step == 0, 1.0, step))


def _put_scales(held: Held, begin: int, fitted: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    grid = held.grid
    group, block = begin // grid.group, begin // grid.block
    scale, minimum, d, dmin = fitted
    held.scale[:, group : group + grid.groups] = scale
    held.minimum[:, group : group + grid.groups] = minimum
    held.d[:, block], held.dmin[:, block] = d, dmin


def _scale_again(held: Held, work: Tensor, matters: Tensor, at: int) -> None:
    """The whole numbers of one group from its weights as they are now; d and dmin stand."""
    grid = held.grid
    x = work[:, at : at + grid.group]
    a = matters[at : at + grid.group].expand_as(x)
    d, dmin = held.d[:, at // grid.block], held.dmin[:, at // grid.block]
    scale, minimum, _ = whole_scales(x, a, grid, d, dmin, best_floats(x, a, grid, _TRIES))
    held.scale[:, at // grid.group], held.minimum[:, at // grid.group] = scale, minimum


def _of_group(held: Held, at: int) -> tuple[Tensor, Tensor]:
    """Step and offset [R, 1] of the group that begins at a column."""
    grid = held.grid
    group, block = at // grid.group, at // grid.block
    step = held.d[:, block] * held.scale[:, group]
    return step[:, None], (held.dmin[:, block] * held.minimum[:, group])[:, None]


# --- descent


def descend(held: Held, weights: Tensor, hessian: Tensor, passes: int) -> None:
    """Better values, scales, minima, d and dmin where they are, `passes` times through all blocks. hessian: damped."""
    grid = held.grid
    gap = held.dense() - weights
    for _ in range(passes):
        for begin in range(0, weights.shape[1], grid.block):
            end = begin + grid.block
            inner = hessian[begin:end, begin:end]
            slope = gap @ hessian[:, begin:end]  # half the gradient by the block's weights
            part = _Part(held, begin, gap[:, begin:end], slope, inner)
            for at in range(0, grid.block, grid.group):
                part.values(at)
                if grid.two_floors:
                    part.scales(at)
            part.floats()
            gap[:, begin:end] = part.gap


class _Part:
    """One block of all rows while it is bettered: gap = Q - W [R, block], slope = gap H [R, block] of the whole rows."""

    def __init__(self, held: Held, begin: int, gap: Tensor, slope: Tensor, inner: Tensor) -> None:
        self.held, self.grid, self.begin = held, held.grid, begin
        self.gap, self.slope, self.inner = gap.clone(), slope, inner

    def _moved(self, change: Tensor, at: int) -> None:
        """Q's columns from `at` on were changed by so much [R, k]."""
        end = at + change.shape[1]
        self.gap[:, at:end] += change
        self.slope += change @ self.inner[at:end]

    def values(self, at: int) -> None:
        """Each value of a group."""
        grid, end = self.grid, at + self.grid.group
        step = _of_group(self.held, self.begin + at)[0][:, 0]
        inverse = _inverse(step)
        q = self.held.values[:, self.begin + at : self.begin + end]
        inner = self.inner[at:end, at:end]
        values, slope = q.T.contiguous(), self.slope[:, at:end].T.contiguous()
        change = torch.empty_like(slope)
        still = step == 0
        for j in range(grid.group):
            new = grid.nearest(values[j] - slope[j] / inner[j, j] * inverse)
            new = torch.where(still, values[j], new)
            change[j] = (new - values[j]) * step
            values[j] = new
            slope += inner[j, :, None] * change[j]
        q.copy_(values.T)
        self._moved(change.T, at)

    def scales(self, at: int) -> None:
        """Scale, then minimum, of one group."""
        grid, held = self.grid, self.held
        group, block = (self.begin + at) // grid.group, self.begin // grid.block
        q = held.values[:, self.begin + at : self.begin + at + grid.group]
        self._along(held.scale[:, group], q * held.d[:, block, None], at, grid.scales)
        if grid.most_minimum:
            low = -held.dmin[:, block, None].expand_as(q)
            self._along(held.minimum[:, group], low, at, (0, grid.most_minimum))

    def _along(self, number: Tensor, direction: Tensor, at: int, ends: tuple[int, int]) -> None:
        """Change whole numbers [R], in place, whose part of the weights is number * direction [R, k]."""
        end = at + direction.shape[1]
        curve = ((direction @ self.inner[at:end, at:end]) * direction).sum(1)
        wish = -(self.slope[:, at:end] * direction).sum(1) / curve.clamp_min(1e-30)
        new = (number + wish).round().clamp(*ends)
        new = torch.where(curve > 1e-30, new, number)
        self._moved((new - number)[:, None] * direction, at)
        number.copy_(new)

    def floats(self) -> None:
        """d, then dmin, of the block."""
        grid, held = self.grid, self.held
        block, groups = (
            self.begin // grid.block,
            slice(self.begin // grid.group, self.begin // grid.group + grid.groups),
        )
        q = held.values[:, self.begin : self.begin + grid.block]
        self._float(held.d[:, block], q * held.scale[:, groups].repeat_interleave(grid.group, 1))
        if grid.most_minimum:
            self._float(held.dmin[:, block], -held.minimum[:, groups].repeat_interleave(grid.group, 1))

    def _float(self, number: Tensor, direction: Tensor) -> None:
        curve = ((direction @ self.inner) * direction).sum(1)
        wish = -(self.slope * direction).sum(1) / curve.clamp_min(1e-30)
        new = torch.where(curve > 1e-30, half(number + wish), number)
        self._moved((new - number)[:, None] * direction, 0)
        number.copy_(new)

"""What each type can say, and numbers held on it: values, scales of groups, one or two floats a block.

A weight is d * scale * value - dmin * minimum. values are levels of the type, scale and minimum whole numbers of a group of 16 or
32 weights, d and dmin F16 numbers of a block of 32 or 256. Search for scales knows how much each column matters; all of it works on
many rows at once, [R, ...], in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gangpao.formats.codes import Codes, codes, group, levels, pack

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """One type. block: weights that share d (and dmin); group: weights that share a scale. scales: smallest and largest whole
    number that a scale may be, (1, 1) where a block has d alone. most_minimum: largest minimum; 1 where dmin is the offset itself,
    of either sign; 0 where there is none."""

    kind: str
    block: int
    group: int
    levels: tuple[int, ...]
    scales: tuple[int, int] = (1, 1)
    most_minimum: int = 0
    middles: Tensor | None = field(default=None, compare=False)

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return self.block // self.group

    @property
    def two_floors(self) -> bool:
        """Whether groups have scales of their own, in units of the block's d."""
        return self.scales != (1, 1)

    def nearest(self, x: Tensor) -> Tensor:
        """The level next to each number."""
        if self.middles is None:
            return x.round().clamp_(self.levels[0], self.levels[-1])
        levels = torch.tensor(self.levels, dtype=x.dtype)
        return levels[torch.bucketize(x, self.middles)]


def _grid(kind: str, block: int, group: int, scales: tuple[int, int] = (1, 1), most_minimum: int = 0) -> Grid:
    values = levels(kind)
    even = bool((np.diff(values) == 1).all())
    middles = None if even else torch.from_numpy((values[1:] + values[:-1]) / 2)
    return Grid(kind, block, group, tuple(int(v) for v in values), scales, most_minimum, middles)


GRIDS = {
    grid.kind: grid
    for grid in (
        _grid("Q4_0", 32, 32),
        _grid("Q4_1", 32, 32, most_minimum=1),
        _grid("Q5_0", 32, 32),
        _grid("Q5_1", 32, 32, most_minimum=1),
        _grid("Q8_0", 32, 32),
        _grid("IQ4_NL", 32, 32),
        _grid("Q2_K", 256, 16, (0, 15), 15),
        _grid("Q3_K", 256, 16, (-32, 31)),
        _grid("Q4_K", 256, 32, (0, 63), 63),
        _grid("Q5_K", 256, 32, (0, 63), 63),
        _grid("Q6_K", 256, 16, (-128, 127)),
        _grid("IQ4_XS", 256, 32, (-32, 31)),
        _grid("TQ1_0", 256, 256),
        _grid("TQ2_0", 256, 256),
    )
}


@dataclass
class Held:
    """A matrix [R, C] on its grid, in float32 tensors. values [R, C]; scale, minimum [R, C / group], whole numbers; d, dmin
    [R, C / block], F16 numbers."""

    grid: Grid
    values: Tensor
    scale: Tensor
    minimum: Tensor
    d: Tensor
    dmin: Tensor

    @classmethod
    def empty(cls, grid: Grid, rows: int, cols: int) -> Held:
        """Zeros, with scales and minima of one where the type has none of its own."""
        groups, blocks = cols // grid.group, cols // grid.block
        ones = torch.ones(rows, groups)
        return cls(
            grid, torch.zeros(rows, cols), ones, ones.clone() if grid.most_minimum else torch.zeros(rows, groups),
            torch.zeros(rows, blocks), torch.zeros(rows, blocks),
        )  # fmt: skip

    def step(self) -> Tensor:
        """d * scale of every group [R, C / group]."""
        return self.d.repeat_interleave(self.grid.groups, 1) * self.scale

    def offset(self) -> Tensor:
        """dmin * minimum of every group [R, C / group]."""
        return self.dmin.repeat_interleave(self.grid.groups, 1) * self.minimum

    def dense(self) -> Tensor:
        """The weights [R, C], in the float steps of a reader."""
        rows, cols = self.values.shape
        grouped = self.values.view(rows, -1, self.grid.group)
        return (grouped * self.step()[..., None] - self.offset()[..., None]).view(rows, cols)

    def rows(self, at: slice | Tensor) -> Held:
        """Some of the rows."""
        return Held(self.grid, *(t[at] for t in self.tensors()))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """values, scale, minimum, d, dmin."""
        return self.values, self.scale, self.minimum, self.d, self.dmin

    def put(self, at: slice | Tensor, other: Held) -> None:
        """Overwrite some of the rows."""
        for mine, new in zip(self.tensors(), other.tensors(), strict=True):
            mine[at] = new


def half(x: Tensor) -> Tensor:
    """The nearest F16 numbers, as float32."""
    return x.clamp(-65504, 65504).half().float()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, zero where b is."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))


# --- groups: the float step (and offset) that fit best


def _stretches(grid: Grid, tries: int) -> Iterator[float]:
    """Levels that the largest number of a group may stand for: the outermost, and some way on both sides of it."""
    ends = [grid.levels[0]]
    if len(grid.levels) <= 8 or grid.middles is not None or grid.levels[-1] == -grid.levels[0]:
        ends.append(grid.levels[-1])
    reach = 0.35 if len(grid.levels) <= 8 else 0.15
    each = max(tries // len(ends), 1)
    for end in ends:
        for i in range(each):
            yield end * (1 + reach * (2 * (i + 0.5) / each - 1))


def _best_step(x: Tensor, a: Tensor, grid: Grid, tries: int) -> Tensor:
    """Steps [...] for groups x [..., k] with weights a that leave the least weighted square error, each with its own levels."""
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best, gain = torch.zeros_like(extreme[..., 0]), torch.full_like(extreme[..., 0], -1.0)
    for level in _stretches(grid, tries):
        q = grid.nearest(_ratio(torch.full_like(extreme, level), extreme) * x)
        top, bottom = (a * q * x).sum(-1), (a * q * q).sum(-1)
        step = _ratio(top, bottom)
        found = top * step
        better = found > gain
        best, gain = torch.where(better, step, best), torch.where(better, found, gain)
    return best


def _line(x: Tensor, q: Tensor, a: Tensor, free: bool) -> tuple[Tensor, Tensor]:
    """Step and offset [...] of least weighted error for x = step * q - offset; offset at least zero unless free."""
    s, sq, sqq = a.sum(-1), (a * q).sum(-1), (a * q * q).sum(-1)
    sx, sqx = (a * x).sum(-1), (a * q * x).sum(-1)
    det = s * sqq - sq * sq
    step, offset = _ratio(s * sqx - sq * sx, det), _ratio(sq * sqx - sqq * sx, det)
    flat = det <= 1e-9 * s * sqq
    alone = _ratio(sqx, sqq)
    if not free:
        flat = flat | (offset < 0)
    return torch.where(flat, alone, step).clamp_min(0), torch.where(flat, torch.zeros_like(offset), offset)


def _best_line(x: Tensor, a: Tensor, grid: Grid, tries: int) -> tuple[Tensor, Tensor]:
    """Steps and offsets [...] for groups x [..., k]."""
    free = not grid.two_floors
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    if not free:
        low = low.clamp_max(0)
    most = grid.levels[-1]
    step, offset = ((high - low) / most)[..., 0], -low[..., 0]
    least = torch.full_like(step, torch.inf)
    for i in range(tries):
        span = most * (0.55 + 0.55 * (i + 0.5) / tries) if most <= 3 else most * (0.85 + 0.25 * (i + 0.5) / tries)
        q = grid.nearest(_ratio(torch.full_like(high, span), high - low) * (x - low))
        s, o = _line(x, q, a, free)
        error = (a * (x - s[..., None] * q + o[..., None]) ** 2).sum(-1)
        better = error < least
        step, offset = torch.where(better, s, step), torch.where(better, o, offset)
        least = torch.where(better, error, least)
    return step, offset


def best_floats(x: Tensor, a: Tensor, grid: Grid, tries: int) -> tuple[Tensor, Tensor]:
    """Step and offset [...] of groups x [..., k] with weights a [..., k], as floats that no block has rounded yet."""
    if grid.most_minimum:
        return _best_line(x, a, grid, tries)
    step = _best_step(x, a, grid, tries)
    return step, torch.zeros_like(step)


# --- blocks: whole numbers for the groups' scales


def whole_scales(
    x: Tensor, a: Tensor, grid: Grid, d: Tensor, dmin: Tensor, wish: tuple[Tensor, Tensor], reach: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and minimum [...] of groups x [..., k], and the error that they leave; d, dmin [...] are fixed.

    wish: float step and offset to look around, `reach` scales on both sides.
    """
    low, high = grid.scales
    middle = _ratio(wish[0], d).round()
    best = least = None
    for change in range(-reach, reach + 1):
        scale = (middle + change).clamp(low, high)
        step, offset = (d * scale)[..., None], wish[1][..., None]
        inverse = _ratio(torch.ones_like(step), step)
        if grid.most_minimum:
            q = grid.nearest((x + offset) * inverse)
            offset = _ratio((a * (step * q - x)).sum(-1), a.sum(-1))
            minimum = _ratio(offset, dmin).round().clamp(0, grid.most_minimum)
        else:
            minimum = torch.zeros_like(scale)
        offset = (dmin * minimum)[..., None]
        q = grid.nearest((x + offset) * inverse)
        error = (a * (step * q - offset - x) ** 2).sum(-1)
        if least is None or best is None:
            best, least = (scale, minimum), error
            continue
        better = error < least
        best = (torch.where(better, scale, best[0]), torch.where(better, minimum, best[1]))
        least = torch.where(better, error, least)
    assert best is not None
    assert least is not None
    return best[0], best[1], least


def fit_block(x: Tensor, a: Tensor, grid: Grid, tries: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scale, minimum [R, groups] and d, dmin [R] of one block of rows x [R, block] with weights a [block] or [R, block]."""
    x = x.view(len(x), grid.groups, grid.group)
    a = a.expand(len(x), grid.block).reshape(x.shape) if a.ndim == 1 else a.reshape(x.shape)
    step, offset = best_floats(x, a, grid, tries)
    one = torch.ones(len(x), grid.groups)
    if not grid.two_floors:
        d, dmin = half(step[:, 0]), half(offset[:, 0])
        return one, one if grid.most_minimum else torch.zeros_like(one), d, dmin
    low, high = grid.scales
    extreme = step.gather(1, step.abs().argmax(1, keepdim=True))[:, 0]
    most = offset.amax(1)
    best: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    least = torch.full_like(extreme, torch.inf)
    ends = [high, high * 0.93] if low == 0 else [low, low * 0.96, low * 0.92, high]
    for end in ends:
        d = half(extreme / end)
        dmin = half(most / grid.most_minimum) if grid.most_minimum else torch.zeros_like(d)
        scale, minimum, error = whole_scales(x, a, grid, d[:, None], dmin[:, None], (step, offset))
        total = error.sum(1)
        better = total < least
        new = (scale, minimum, d, dmin)
        if best is not None:
            scale, minimum = (torch.where(better[:, None], n, b) for n, b in zip(new[:2], best[:2], strict=True))
            d, dmin = (torch.where(better, n, b) for n, b in zip(new[2:], best[2:], strict=True))
        best = scale, minimum, d, dmin
        least = torch.where(better, total, least)
    assert best is not None
    return best[0], best[1], best[2], best[3]


# --- bytes


def packed(held: Held) -> Bytes:
    """The rows of the file, uint8 [R, row bytes]."""
    values, scale, minimum = (t.numpy().astype(np.int16) for t in (held.values, held.scale, held.minimum))
    repeats = held.grid.group // group(held.grid.kind)  # ternary types have one scale a block, and are told of it by 32
    scale, minimum = np.repeat(scale, repeats, axis=1), np.repeat(minimum, repeats, axis=1)
    return pack(Codes(held.grid.kind, values, scale, minimum, held.d.numpy(), held.dmin.numpy()))


def unpacked(raw: Bytes, grid: Grid, cols: int) -> Held:
    """The inverse of `packed`."""
    found = codes(raw, grid.kind, cols)
    every = grid.group // found.group
    parts = (found.values, found.scale[:, ::every], found.minimum[:, ::every], found.d, found.dmin)
    return Held(grid, *(torch.from_numpy(np.ascontiguousarray(p).astype(np.float32)) for p in parts))

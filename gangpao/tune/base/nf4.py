"""NF4 with double quantization (QLoRA, arXiv:2305.14314): 4.13 bits a weight, for a base that comes as floats.

The idea: weights are about normal, so the 16 values are quantiles of the normal distribution, times the largest weight of 64. Those
largest weights take 8 bits themselves: their mean over the matrix is taken off, and 256 of them share a scale.

The second step differs from bitsandbytes in one way: its 8-bit codes are logarithmic, ours are evenly spaced, because what is left
without the mean is small and of one size. Rows must be whole blocks of 64 weights (`fits`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gangpao.model.tiles import scratch

BLOCK, SHARED = 64, 256  # weights of a largest one; largest ones of a scale
# Appendix E of the paper; a zero is exact.
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def fits(cols: int) -> bool:
    """Whether rows of this many weights are whole blocks."""
    return cols % BLOCK == 0


class NF4:
    """A matrix [rows, cols] in NF4; made by `quantize`. Follows Tiles, on the device of the weights it was made of."""

    def __init__(self, shape: tuple[int, int], codes: Tensor, largest: Tensor, scales: Tensor, mean: Tensor) -> None:
        self.rows, self.cols = shape
        self.codes, self.largest, self.scales, self.mean = codes, largest, scales, mean
        values = torch.tensor(VALUES, device=codes.device)
        bytes_ = torch.arange(256, device=codes.device)
        self._pairs = torch.stack([values[bytes_ & 15], values[bytes_ >> 4]], dim=1)  # two weights of a byte

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(t.nbytes for t in (self.codes, self.largest, self.scales, self.mean))

    def read(self, begin: int, end: int, like: Tensor) -> Tensor:
        """Rows [begin, end); see Tiles."""
        out = scratch(end - begin, self.cols, torch.float32, self.codes.device)
        self._write(out, begin, end)
        if like.dtype != out.dtype:
            out = scratch(end - begin, self.cols, like.dtype, out.device).copy_(out)
        return out.to(like.device)

    def take(self, ids: Tensor) -> Tensor:
        """Rows of ids [N], float32."""
        wanted, place = torch.unique(ids.reshape(-1), return_inverse=True)
        out = torch.empty(len(wanted), self.cols, device=self.codes.device)
        for i, row in enumerate(wanted.tolist()):
            self._write(out[i : i + 1], row, row + 1)
        return out[place].view(*ids.shape, self.cols)

    def _write(self, out: Tensor, begin: int, end: int) -> None:
        first, last = begin * self.cols // BLOCK, end * self.cols // BLOCK
        codes = self.codes[first * BLOCK // 2 : last * BLOCK // 2].int()
        torch.index_select(self._pairs, 0, codes, out=out.view(-1, 2))
        out.view(-1, BLOCK).mul_(_unpacked(self.largest, self.scales, self.mean, first, last)[:, None])


def _unpacked(largest: Tensor, scales: Tensor, mean: Tensor, first: int, last: int) -> Tensor:
    """The largest weights of blocks [first, last), float32."""
    shared = scales[torch.arange(first, last, device=scales.device) // SHARED]
    return largest[first:last] * shared + mean


def quantize(weight: Tensor) -> NF4:
    """A matrix [rows, cols] of floats as NF4. Raises ValueError for rows that are not whole blocks, and for what is no number."""
    rows, cols = weight.shape
    if not fits(cols):
        raise ValueError(f"rows of {cols} weights are not whole blocks of {BLOCK}")
    blocks = weight.detach().float().reshape(-1, BLOCK)
    exact = blocks.abs().amax(1)
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("a weight is no number: the checkpoint is damaged or its training diverged")
    mean = exact.mean()
    rest = torch.nn.functional.pad(exact - mean, (0, -len(exact) % SHARED)).view(-1, SHARED)
    scales = rest.abs().amax(1) / 127
    steps = torch.where(scales == 0, 1.0, scales)[:, None]
    largest = (rest / steps).round().clamp_(-127, 127).to(torch.int8).view(-1)[: len(exact)]
    # Codes are chosen for the largest weights as they will be read.
    known = _unpacked(largest, scales, mean, 0, len(exact))
    values = torch.tensor(VALUES, device=weight.device)
    borders = (values[1:] + values[:-1]) / 2
    codes = torch.bucketize(blocks / torch.where(known == 0, 1.0, known)[:, None], borders).to(torch.uint8)
    pairs = codes.view(-1, 2)
    return NF4((rows, cols), pairs[:, 0] | pairs[:, 1] << 4, largest, scales, mean)

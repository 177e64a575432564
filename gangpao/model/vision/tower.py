"""VisionTower: pieces of pictures in, rows of the language model out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gangpao.formats.vision import VisionModel
from gangpao.formats.vision.positions import sines_2d
from gangpao.model.init import parameter_seed
from gangpao.model.vision.encoder import Encoder
from gangpao.model.vision.merger import KINDS, Times

Part = Literal["encoder", "merger"]


class Patches(Protocol):
    """A piece of a picture (images/slices.py). values: float32 [rows * columns, 3 * patch^2]; grid: (rows, columns)."""

    @property
    def values(self) -> NDArray[np.float32]: ...

    @property
    def grid(self) -> tuple[int, int]: ...


class VisionTower(nn.Module):
    """An encoder and a merger, as a row says. text_size: width of the language model."""

    def __init__(self, vision: VisionModel, text_size: int) -> None:
        super().__init__()
        self.vision, self.text_size = vision, text_size
        self.encoder = Encoder(vision.encoder)
        self.merger = KINDS[vision.merger.kind](vision.merger, vision.encoder.hidden_size, text_size)

    @classmethod
    def build(cls, vision: VisionModel, text_size: int, *, seed: int = 0, device: str = "cpu") -> VisionTower:
        """A tower with random weights, the same for the same seed: normal with std 0.02, biases 0, norms 1."""
        with torch.device("meta"):
            tower = cls(vision, text_size)
        tower.to_empty(device=device)
        tower.initialize(seed)
        return tower

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill every parameter. Each has a generator of its own, so a value depends on seed, name and shape alone."""
        for name, parameter in self.named_parameters():
            if name.endswith("pos_embed"):
                side = round(len(parameter) ** 0.5)
                parameter.copy_(torch.from_numpy(sines_2d(self.text_size, side, side).copy()))
            elif name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name or ".ln_" in name:
                parameter.fill_(1.0)
            else:
                generator = torch.Generator(device="cpu").manual_seed(parameter_seed(seed, name))
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))

    def encode(
        self, pieces: Sequence[Patches], *, packed: bool = False, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """Hidden states of the patches behind the encoder, [patches, D] a piece (behind a window merger a quarter of them).

        packed: all pieces in one pass, faster on a GPU and for small pieces; a product over more rows may add its terms in another
        order, so the last bits may differ from one piece after another, which is the default. dtype: of the computation, else
        that of the weights.
        """
        return [x for group in _groups(pieces, packed) for x in self._encoded(group, dtype)[0]]

    def forward(
        self,
        pieces: Sequence[Patches],
        *,
        times: Times | None = None,
        packed: bool = False,
        dtype: torch.dtype | None = None,
    ) -> list[Tensor]:
        """Rows of the language model, [rows, text_size] a piece. packed, dtype: as in `encode`.

        times: of MiniCPM-V 4.5, one list for consecutive pieces that become one set of rows (frames of a video, their times; -1: a
        picture). Raises ValueError for pieces that do not fit the model.
        """
        if times is None:
            groups, moments = _groups(pieces, packed), None
        else:
            groups, moments = _groups(pieces, packed=True), times
        out = []
        for group in groups:
            states, grids = self._encoded(group, dtype)
            out += self.merger(torch.cat(states) if len(states) > 1 else states[0], grids, moments)
        return out

    def _encoded(
        self, pieces: Sequence[Patches], dtype: torch.dtype | None
    ) -> tuple[list[Tensor], list[tuple[int, int]]]:
        weight = self.encoder.embeddings.patch_embedding.weight
        for piece in pieces:
            rows, columns = piece.grid
            if piece.values.shape != (rows * columns, weight.shape[1]) or rows * columns < 1:
                raise ValueError(
                    f"a piece of {rows} x {columns} patches has values of shape {list(piece.values.shape)}, and "
                    f"{[rows * columns, weight.shape[1]]} is needed: it was cut for another model"
                )
        values = torch.cat([torch.from_numpy(np.ascontiguousarray(piece.values)) for piece in pieces])
        x, grids = self.encoder(
            values.to(device=weight.device, dtype=dtype or weight.dtype), [piece.grid for piece in pieces]
        )
        return list(x.split_with_sizes([rows * columns for rows, columns in grids])), grids

    def train_only(self, *parts: Part) -> None:
        """Freeze all but these parts. A resampler's stored table of positions is never trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in parts and not name.endswith("pos_embed"))


def _groups(pieces: Sequence[Patches], packed: bool) -> list[list[Patches]]:
    if not pieces:
        return []
    return [list(pieces)] if packed else [[piece] for piece in pieces]

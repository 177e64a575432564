"""The language model and its tower as one module, called with ids alone: rows of pictures are ids behind the vocabulary.

Names of parameters are those of the language model, and vision.* for the tower, so that methods, optimizers and checkpoints of a
tuning treat it as any model. What a step computes of a picture is computed once for all places in which it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gangpao.images.canvas import MarkIds
from gangpao.model.config import ModelConfig
from gangpao.model.transformer import Output, Transformer
from gangpao.model.vision.tower import VisionTower
from gangpao.tune.pictures.features import Features
from gangpao.tune.pictures.places import positions
from gangpao.tune.pictures.table import PictureTable, in_batch


class SeeingModel(nn.Module):
    """A Transformer with a VisionTower. features: what a frozen encoder says, where that is kept. marks: tokens of the marks of a
    model that has pictures on a canvas."""

    def __init__(
        self,
        language: Transformer,
        tower: VisionTower,
        table: PictureTable,
        features: Features | None = None,
        marks: MarkIds | None = None,
    ) -> None:
        super().__init__()
        assert marks is not None or not table.vision.canvas, "a canvas needs the tokens of its marks"
        self.marks = marks
        self.model, self.lm_head, self.vision = language.model, language.lm_head, tower
        self._language = [language]  # in a list: its parameters are those of the two above
        self.table, self.features = table, features

    @property
    def config(self) -> ModelConfig:
        """Of the language model."""
        return self._language[0].config

    def forward(
        self,
        ids_BT: Tensor,
        *,
        documents_BT: Tensor | None = None,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> Output:
        """Hidden states after every id, as Transformer gives them."""
        seen = ids_BT.detach().cpu().numpy()
        places, numbers, which = in_batch(seen.ravel(), self.table)
        rows = on_canvas = None
        if len(places):
            if self.marks is not None and self.table.vision.canvas:
                documents = None if documents_BT is None else documents_BT.cpu().numpy()
                on_canvas = torch.from_numpy(positions(seen, documents, self.table, self.marks)).to(ids_BT.device)
            found = self._rows(numbers, dtype, recompute)
            rows = (torch.from_numpy(places).to(ids_BT.device), found[torch.from_numpy(which).to(found.device)])
            ids_BT = torch.where(ids_BT < self.table.vocab_size, ids_BT, 0)  # any id: rows take its place
        return self._language[0](  # type: ignore[no-any-return]
            ids_BT, documents_BT=documents_BT, positions_3BT=on_canvas, rows=rows, dtype=dtype, recompute=recompute
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, float32 [..., V]."""
        return self._language[0].logits(hidden)

    def _rows(self, numbers: Sequence[int], dtype: torch.dtype | None, recompute: bool) -> Tensor:
        """Rows of these pictures, one picture after another, [R, D]."""
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())
        if self.features is not None:
            states = self.features.of(numbers)
            grids = [grid for number in numbers for grid in self.table.entries[number].plan.grids]
            weight = next(self.vision.merger.parameters())
            with torch.set_grad_enabled(learns):
                return torch.cat(self.vision.merger(states.to(weight.device, dtype or weight.dtype), grids))
        self.vision.encoder.recompute = recompute
        pieces = [piece for number in numbers for piece in self.table.pieces(number).pieces]
        with torch.set_grad_enabled(learns):
            return torch.cat(self.vision(pieces, packed=True, dtype=dtype))


def encoded(tower: VisionTower, table: PictureTable, number: int) -> np.ndarray:
    """What the encoder says of a picture, float32 [patches, hidden]."""
    with torch.no_grad():
        return torch.cat(tower.encode(table.pieces(number).pieces)).float().cpu().numpy()

"""Rows of pictures in the places of token embeddings, and both models as one module.

    splice(embeddings, places, rows)     the embeddings, with rows in their places
    VisionLanguage                       ids, pieces and their places in -> hidden states out, as the Transformer gives them

Embeddings of texts are scaled (MiniCPM's scale_emb) before rows are put in; rows are never scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gangpao.model.layers import splice
from gangpao.model.transformer import Output, Transformer
from gangpao.model.vision.merger import Times
from gangpao.model.vision.tower import Patches, VisionTower

__all__ = ["IGNORED", "Place", "VisionLanguage", "flat_places", "splice", "without_rows"]
IGNORED = -100  # a label that counts for nothing
Place = tuple[
    int, int
]  # the sequence of a batch and the position where the rows of a piece begin; the others follow it
Trained = Literal["encoder", "merger", "language"]


def flat_places(starts: Sequence[Place], counts: Sequence[int], batch: int, time: int) -> Tensor:
    """Places in the flattened [batch * time] of rows that begin at `starts`, counts[i] of them. ValueError for one outside."""
    if len(starts) != len(counts):
        raise ValueError(f"{len(starts)} places are given for {len(counts)} pieces of pictures")
    out = []
    for (sequence, position), count in zip(starts, counts, strict=True):
        if not (0 <= sequence < batch and position >= 0 and position + count <= time):
            raise ValueError(
                f"the {count} rows of a piece at position {position} of sequence {sequence} are not within "
                f"{batch} sequences of {time} positions: was the prompt cut?"
            )
        out.append(torch.arange(count) + sequence * time + position)
    return torch.cat(out) if out else torch.zeros(0, dtype=torch.long)


def without_rows(labels_BT: Tensor, starts: Sequence[Place], counts: Sequence[int]) -> Tensor:
    """Labels in which rows of pictures count for nothing (IGNORED)."""
    places = flat_places(starts, counts, *labels_BT.shape)
    out = labels_BT.clone()
    out.view(-1)[places.to(out.device)] = IGNORED
    return out


class VisionLanguage(nn.Module):
    """A VisionTower and a Transformer. Parameters: vision.encoder.*, vision.merger.*, language.*."""

    def __init__(self, vision: VisionTower, language: Transformer) -> None:
        super().__init__()
        if vision.text_size != language.config.hidden_size:
            raise ValueError(
                f"the merger gives rows of {vision.text_size} numbers, the language model takes {language.config.hidden_size}"
            )
        self.vision, self.language = vision, language

    def forward(
        self,
        ids_BT: Tensor,
        pieces: Sequence[Patches] = (),
        places: Sequence[Place] = (),
        *,
        times: Times | None = None,
        documents_BT: Tensor | None = None,
        positions_3BT: Tensor | None = None,
        packed: bool = False,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> Output:
        """Hidden states after every id; `logits` of the language model turns them into scores.

        ids_BT: with any id of the vocabulary in the places of rows (the marks' filler). pieces: of all pictures of the batch;
        places: where the rows of each begin (with times: of each group). positions_3BT: of a row with a canvas
        (images/canvas.py). The rest as in VisionTower and Transformer; recompute is for both. Raises ValueError where pieces
        and places do not fit.
        """
        rows = self.rows(pieces, times=times, packed=packed, dtype=dtype, recompute=recompute)
        where = flat_places(places, [len(piece) for piece in rows], *ids_BT.shape)
        output: Output = self.language(
            ids_BT,
            documents_BT=documents_BT,
            positions_3BT=positions_3BT,
            rows=(where, torch.cat(rows)) if rows else None,
            dtype=dtype,
            recompute=recompute,
        )
        return output

    def rows(
        self,
        pieces: Sequence[Patches],
        *,
        times: Times | None = None,
        packed: bool = False,
        dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> list[Tensor]:
        """Rows of each piece, [rows, D], without a gradient where no part of the tower is trained."""
        self.vision.encoder.recompute = recompute
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters())):
            out: list[Tensor] = self.vision(pieces, times=times, packed=packed, dtype=dtype)
        return out

    def train_only(self, *parts: Trained) -> None:
        """Freeze all but these parts."""
        self.vision.train_only(*(part for part in parts if part != "language"))
        self.language.requires_grad_("language" in parts)

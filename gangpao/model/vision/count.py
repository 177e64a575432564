"""What sight costs, from the row alone: parameters of the encoder and the merger, FLOPs of a picture. Without torch; a test counts
the parameters of real modules on the meta device and finds the same."""

from __future__ import annotations

from dataclasses import dataclass

from gangpao.formats.vision import VisionModel
from gangpao.images.slices import sizes


@dataclass(frozen=True, slots=True)
class SightParameters:
    """Parameters of both parts; a resampler's stored table of positions is one of its tensors and counts."""

    encoder: int
    merger: int

    @property
    def total(self) -> int:
        return self.encoder + self.merger


@dataclass(frozen=True, slots=True)
class PictureCost:
    """Of one picture: pieces that it is cut into, their patches, rows of the language model, FLOPs of encoder and merger."""

    pieces: int
    patches: int
    rows: int
    flops: float


def sight_parameters(vision: VisionModel, text_size: int) -> SightParameters:
    """Exact counts."""
    return SightParameters(_encoder(vision), _merger(vision, text_size))


def _encoder(vision: VisionModel) -> int:
    e = vision.encoder
    d, norm = e.hidden_size, 2 * e.hidden_size
    attention = 4 * d * d + (4 if e.key_bias else 3) * d
    layer = attention + 2 * d * e.intermediate_size + e.intermediate_size + d + 2 * norm
    patches = 3 * e.patch_size**2 * d + (d if e.patch_bias else 0)
    positions = (2 * e.prefix_tokens + e.table[0] * e.table[1]) * d
    window = 0
    if e.merge_after is not None:
        window = attention + norm + 2 * 4 * d + 16 * d * e.intermediate_size + 4 * e.intermediate_size
        window += 4 * e.intermediate_size * d + d
    return patches + positions + e.layers * layer + window + norm * (e.first_norm + e.final_norm)


def _merger(vision: VisionModel, text_size: int) -> int:
    m, width = vision.merger, vision.encoder.hidden_size
    if m.kind == "mlp":
        inner = m.hidden_size or text_size
        return width * inner + inner + inner * text_size + text_size
    if m.kind == "merge":
        inside = 8 * width + (4 * width) ** 2 + 4 * width
        last = 4 * width * text_size + text_size
        return m.times * inside + (m.times - 1) * (4 * width * width + width) + last
    tables = m.queries * text_size * (2 if m.query_table or m.key_table == "stored" else 1)
    kv = width * text_size if width != text_size else 0
    return tables + kv + 4 * text_size * (text_size + 1) + 6 * text_size + text_size**2


def picture_cost(vision: VisionModel, text_size: int, width: int, height: int) -> PictureCost:
    """Of a picture of width x height pixels: two FLOPs for a multiply-add of every weight that a patch meets, and attention of all
    patches of a piece over all."""
    plan = sizes(width, height, vision)
    flops = sum(_piece_flops(vision, text_size, rows * columns) for rows, columns in plan.grids)
    return PictureCost(len(plan.grids), sum(h * w for h, w in plan.grids), sum(plan.tokens), flops)


def _piece_flops(vision: VisionModel, text_size: int, patches: int) -> float:
    e, m, d = vision.encoder, vision.merger, vision.encoder.hidden_size
    weights = 4 * d * d + 2 * d * e.intermediate_size

    def layers(count: int, seen: int) -> float:
        return count * seen * (2.0 * weights + 4.0 * d * seen)

    whole = patches + e.prefix_tokens
    if e.merge_after is None or e.merge_skipped:
        flops, left = layers(e.layers, whole), patches
    else:
        left = patches // 4
        flops = layers(e.merge_after, whole) + layers(e.layers - e.merge_after, left)
        flops += patches * (8.0 * d * d + 16.0 * d) + left * 2.0 * (
            16 * d * e.intermediate_size + 4 * e.intermediate_size * d
        )
    flops += 2.0 * patches * 3 * e.patch_size**2 * d
    if m.kind == "mlp":
        inner = m.hidden_size or text_size
        return flops + 2.0 * left * (d * inner + inner * text_size)
    if m.kind == "merge":
        for i in range(m.times):
            left //= 4
            flops += 2.0 * left * ((4 * d) ** 2 + 4 * d * (text_size if i == m.times - 1 else d))
        return flops
    keys = 2.0 * left * (d * text_size + 2 * text_size**2) + 4.0 * m.queries * left * text_size
    return flops + keys + 2.0 * m.queries * 3 * text_size**2

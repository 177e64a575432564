"""An encoder of one matrix: small, fast, and its rows depend on every pixel. And pictures for it."""

from io import BytesIO

import numpy as np
from PIL import Image

from gangpao.formats.vision import Encoder, Marks, Merger, Slicing, VisionModel
from gangpao.images.look import Picture, look

# The pieces are named in tokens that every vocabulary has, so that any tiny model can see with it.
MARKS = Marks(
    image=("<|im_start|>", "<|im_end|>"), slice=("<|im_end|>", "<|im_end|>"), behind="\n", filler="<|endoftext|>"
)
VISION = VisionModel(
    "linear", ("linear",), Encoder(layers=1, hidden_size=16, heads=1, intermediate_size=16),
    Merger(queries=5), Slicing(resolution=56, max_slices=4), MARKS,
)  # fmt: skip


class LinearSight:
    """rows = mix [tokens, 16] @ bands of patches [16, 588] @ matrix [588, text_size]; calls: pieces that were encoded."""

    def __init__(self, text_size: int = 64, vision: VisionModel = VISION, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.vision = vision
        self.text_size = text_size
        patch = vision.encoder.patch_size
        self._mix = rng.standard_normal((64, 16)).astype(np.float32)
        self._matrix = (rng.standard_normal((3 * patch * patch, text_size)) * 0.2).astype(np.float32)
        self.calls = 0

    @property
    def nbytes(self) -> int:
        return self._mix.nbytes + self._matrix.nbytes

    def encode(self, piece, check=lambda: None):
        check()
        self.calls += 1
        bands = np.array_split(np.arange(len(piece.values)), 16)
        pooled = np.stack([piece.values[b].sum(axis=0) if len(b) else np.zeros(piece.values.shape[1]) for b in bands])
        return (self._mix[: piece.tokens] @ pooled.astype(np.float32) @ self._matrix / len(piece.values)).astype(
            np.float32
        )


def png(width: int = 40, height: int = 40, seed: int | None = 0) -> bytes:
    """A file of noise, or without a seed of one grey."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(width: int = 40, height: int = 40, seed: int = 0) -> Picture:
    """The same, looked at; up to 56 x 56 it is one piece."""
    return look(png(width, height, seed))

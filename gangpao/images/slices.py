"""A picture cut as a vision model's row says: an overview, and slices of a larger copy, each as patches.

    sizes(width, height, vision)   -> Plan    the arithmetic alone, from a size in pixels
    pieces(pixels, vision)         -> Pieces  the same with values: Piece.values [patches, patch * patch * 3], normalised
    resized(pixels, width, height) -> pixels  Pillow's filters, horizontally first and then vertically

Rule "area": a picture of more than resolution ** 2 pixels is cut into a grid that fits its aspect; overview and slices have about
resolution ** 2 pixels each and keep the aspect, their sides are multiples of Slicing.multiple, and nothing is padded. Every number
is rounded where MiniCPM-V's own code rounds it, half to even, because another order changes sizes (497 x 1278).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gangpao.formats.vision import Pixels, Slicing, VisionModel, joined
from gangpao.optional import needed

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Size = tuple[int, int]

MAX_SLICES = 64
MAX_PATCHES = 4096  # of one piece: attention grows with the square of it
MAX_SIDE_PATCHES = 64  # of a square one
MAX_PATCH = 64  # pixels
_STRIP = 1 << 20  # pixels that Pillow holds at once


@dataclass(frozen=True, slots=True)
class Plan:
    """How a picture is cut. overview: (width, height) in pixels; columns and rows of slices, both 0 where it is not sliced;
    refined: the size of the copy that is cut, (0, 0) where none is; grids: (rows, columns) of patches of each piece, the
    overview first; tokens: rows of the language model of each piece."""

    overview: Size
    columns: int
    rows: int
    refined: Size
    grids: tuple[Size, ...]
    tokens: tuple[int, ...]

    @property
    def cell(self) -> Size:
        """(width, height) of a slice in pixels."""
        return (self.refined[0] // self.columns, self.refined[1] // self.rows) if self.columns else (0, 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """values: [rows * columns, 3 * patch * patch], patches row by row, a patch as [3, patch, patch] flattened; grid:
    (rows, columns) of patches; tokens: rows of the language model."""

    values: Floats
    grid: Size
    tokens: int


@dataclass(frozen=True, slots=True)
class Pieces:
    """The overview first, then slices row by row; columns and rows of slices, both 0 where it is not sliced."""

    columns: int
    rows: int
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(piece.tokens for piece in self.pieces)


def sizes(width: int, height: int, vision: VisionModel, *, max_slices: int | None = None) -> Plan:
    """The cut of a picture of width x height pixels; max_slices: instead of the row's (1: never sliced).

    Raises ValueError for sizes, rows and numbers of slices out of bounds.
    """
    slicing = vision.slicing
    most = slicing.max_slices if max_slices is None else max_slices
    _check(width, height, vision, most)
    if slicing.rule == "square":
        overview, columns, rows, cell = (slicing.resolution, slicing.resolution), 0, 0, (0, 0)
    else:
        columns, rows = _grid(width, height, slicing, most)
        overview = _fitted(width, height, slicing, larger=columns == 0)
        cell = _cell(width, height, columns, rows, slicing) if columns else (0, 0)
    patch = vision.encoder.patch_size
    shapes = (overview,) + (cell,) * (columns * rows)
    grids = tuple((h // patch, w // patch) for w, h in shapes)
    for h, w in grids[:2]:
        if h * w > MAX_PATCHES:
            raise ValueError(
                f"a picture of {width} x {height} pixels is too narrow for {vision.name}: it would become {w} x {h} patches, "
                f"at most {MAX_PATCHES:,} are allowed; cut it"
            )
    tokens = tuple(_tokens(grid, vision) for grid in grids)
    return Plan(overview, columns, rows, (cell[0] * columns, cell[1] * rows), grids, tokens)


def pieces(pixels: Bytes, vision: VisionModel, *, max_slices: int | None = None) -> Pieces:
    """The pieces of a picture, uint8 [height, width, 3]. Raises ValueError as `sizes` does."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 [height, width, 3], not {pixels.dtype} {list(pixels.shape)}")
    height, width, _ = pixels.shape
    plan = sizes(width, height, vision, max_slices=max_slices)
    cut = _cut(pixels, plan, vision)
    found = (
        Piece(patches(one, vision.encoder.patch_size, vision.pixels), grid, tokens)
        for one, grid, tokens in zip(cut, plan.grids, plan.tokens, strict=True)
    )
    return Pieces(plan.columns, plan.rows, tuple(found))


def _cut(pixels: Bytes, plan: Plan, vision: VisionModel) -> Iterator[Bytes]:
    """The pixels of each piece; a picture is resized for the overview and for the slices, each from the original."""
    resample = vision.pixels.resample
    yield resized(pixels, *plan.overview, resample)
    if plan.columns:
        refined = resized(pixels, *plan.refined, resample)
        width, height = plan.cell
        for top in range(0, plan.refined[1], height):
            for left in range(0, plan.refined[0], width):
                yield refined[top : top + height, left : left + width]


def resized(pixels: Bytes, width: int, height: int, resample: str = "bicubic") -> Bytes:
    """uint8 [height, width, 3] by Pillow's filter, rounded to uint8 after each of two passes: horizontally, then vertically.

    Pillow itself goes vertically first for some tall pictures, and which ones depends on its version.
    """
    with needed("PIL", "a picture"):
        from PIL import Image

    kind = Image.Resampling[resample.upper()]
    if width != pixels.shape[1]:
        out = np.empty((pixels.shape[0], width, 3), np.uint8)
        step = max(1, _STRIP // max(pixels.shape[1], width))
        for top in range(0, len(pixels), step):
            strip = Image.fromarray(np.ascontiguousarray(pixels[top : top + step]))
            out[top : top + step] = np.asarray(strip.resize((width, strip.height), kind))
        pixels = out
    if height != pixels.shape[0]:
        out = np.empty((height, width, 3), np.uint8)
        step = max(1, _STRIP // max(pixels.shape[0], height))
        for left in range(0, width, step):
            strip = Image.fromarray(np.ascontiguousarray(pixels[:, left : left + step]))
            out[:, left : left + step] = np.asarray(strip.resize((strip.width, height), kind))
        pixels = out
    return pixels


def patches(pixels: Bytes, patch: int, norm: Pixels) -> Floats:
    """[rows * columns, 3 * patch * patch]: value / 255, minus mean, divided by std, in the order of a convolution's weight."""
    levels = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)[:, None]
    table = (levels - np.array(norm.mean, np.float32)) / np.array(norm.std, np.float32)
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    out = np.empty((rows, columns, 3, patch, patch), np.float32)
    grid = pixels.reshape(rows, patch, columns, patch, 3)
    for channel in range(3):
        out[:, :, channel] = table[:, channel][grid[..., channel].transpose(0, 2, 1, 3)]
    return out.reshape(rows * columns, 3 * patch * patch)


def _tokens(grid: Size, vision: VisionModel) -> int:
    """Rows of the language model that a piece of (rows, columns) patches becomes."""
    if vision.merger.kind == "resampler":
        return vision.merger.queries
    return grid[0] * grid[1] // joined(vision.encoder, vision.merger) ** 2


def _check(width: int, height: int, vision: VisionModel, most: int) -> None:
    slicing, patch = vision.slicing, vision.encoder.patch_size
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has none")
    if not 1 <= most <= MAX_SLICES:
        raise ValueError(f"a picture is cut into 1 to {MAX_SLICES} slices, not {most}")
    if not (1 <= patch <= MAX_PATCH and patch <= slicing.resolution <= MAX_SIDE_PATCHES * patch):
        raise ValueError(
            f"{vision.name}: pieces of {slicing.resolution} pixels a side in patches of {patch} cannot be; at most "
            f"{MAX_SIDE_PATCHES} x {MAX_SIDE_PATCHES} patches are allowed"
        )
    step, least = (
        slicing.multiple if slicing.rule == "area" else slicing.resolution,
        patch * joined(vision.encoder, vision.merger),
    )
    if step < 1 or step % least:
        raise ValueError(f"{vision.name}: {step} pixels are no multiple of {least}, the patches that become one row")


def _grid(width: int, height: int, slicing: Slicing, most: int) -> Size:
    """(columns, rows) of slices whose aspect is nearest to the picture's by logarithm; (0, 0): not sliced."""
    ideal = min(math.ceil(width * height / slicing.resolution**2), most)
    if ideal <= 1:
        return 0, 0
    aspect = math.log(width / height)
    best, least = (1, 1), math.inf
    for count in (ideal - 1, ideal, ideal + 1):
        if count == 1 or count > most:
            continue
        for columns in (n for n in range(1, count + 1) if count % n == 0):
            rows = count // columns
            error = abs(aspect - math.log(columns / rows))
            tied = slicing.ties == "more_rows" and error == least and rows > best[1]
            if error < least or tied:
                best, least = (columns, rows), error
    return best


def _fitted(width: float, height: float, slicing: Slicing, *, larger: bool) -> Size:
    """(width, height) of at most resolution ** 2 pixels (larger: of about as many), the aspect kept, then to multiples."""
    if width * height > slicing.resolution**2 or larger:
        aspect = width / height
        height = int(slicing.resolution / math.sqrt(aspect))
        width = int(height * aspect)  # by the cut height, as the official code has it
    return _to_multiple(width, slicing.multiple), _to_multiple(height, slicing.multiple)


def _cell(width: int, height: int, columns: int, rows: int, slicing: Slicing) -> Size:
    """(width, height) of a slice."""
    return _fitted(_to_multiple(width, columns) / columns, _to_multiple(height, rows) / rows, slicing, larger=True)


def _to_multiple(length: float, of: int) -> int:
    """The nearest multiple, half to even, and at least one."""
    return max(round(length / of) * of, of)

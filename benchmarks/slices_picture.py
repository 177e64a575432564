"""How a model that sees cuts a picture, drawn for the documentation: the picture, its overview with its patches, and its slices.

    python benchmarks/slices_picture.py --out docs/images/vision-slices.png [--model minicpm-v-2.6] [--size 800x600]

The picture is drawn by `gangpao data pictures` (shapes and hands), so nothing is needed beside gangpao. No words are in it: one
picture serves both languages. The last line is JSON.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gangpao.data.pictures import hands, shapes
from gangpao.formats.vision import VISION
from gangpao.images import slices

GAP, INK, LINE = 24, (37, 99, 235), (255, 255, 255)


def drawn(width: int, height: int) -> np.ndarray:
    """A picture of shapes and hands, [height, width, 3]."""
    half = height // 2
    out = Image.new("RGB", (width, height), (236, 234, 228))
    choose = random.Random(7)
    for index, kind in enumerate((hands, shapes, shapes, hands, shapes, hands)):
        column, row = index % 3, index // 3
        tile = kind.draw(choose, False, half).picture.resize((width // 3, half))
        out.paste(tile, (column * (width // 3), row * half))
    return np.asarray(out)


def sheet(pixels: np.ndarray, name: str) -> tuple[Image.Image, slices.Plan]:
    """The picture, an arrow, the overview with its patches and the slices, side by side."""
    vision = VISION[name]
    height, width, _ = pixels.shape
    plan = slices.sizes(width, height, vision)
    overview = Image.fromarray(slices.resized(pixels, *plan.overview))
    draw, patch = ImageDraw.Draw(overview), vision.encoder.patch_size
    for x in range(patch, overview.width, patch):
        draw.line([(x, 0), (x, overview.height)], LINE)
    for y in range(patch, overview.height, patch):
        draw.line([(0, y), (overview.width, y)], LINE)
    refined = Image.fromarray(slices.resized(pixels, *plan.refined))
    wide, tall = plan.cell
    gaps = (plan.columns - 1) * GAP // 2, (plan.rows - 1) * GAP // 2
    out_height = max(height, overview.height, refined.height + gaps[1])
    out = Image.new("RGB", (width + overview.width + refined.width + gaps[0] + 4 * GAP, out_height), (255, 255, 255))
    out.paste(Image.fromarray(pixels), (0, (out_height - height) // 2))
    out.paste(overview, (width + 2 * GAP, (out_height - overview.height) // 2))
    left, top = width + overview.width + 4 * GAP, (out_height - refined.height - gaps[1]) // 2
    for index in range(plan.rows * plan.columns):
        row, column = divmod(index, plan.columns)
        piece = refined.crop((column * wide, row * tall, (column + 1) * wide, (row + 1) * tall))
        out.paste(piece, (left + column * (wide + GAP // 2), top + row * (tall + GAP // 2)))
    arrows = ImageDraw.Draw(out)
    for x in (width + GAP // 2, width + overview.width + 5 * GAP // 2):
        arrows.polygon([(x, out_height // 2 - GAP), (x + GAP, out_height // 2), (x, out_height // 2 + GAP)], INK)
    return out, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--model", default="minicpm-v-2.6", choices=[n for n, r in VISION.items() if r.slicing.rule == "area"]
    )
    parser.add_argument("--size", default="800x600")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    found, plan = sheet(drawn(width, height), asked.model)
    found = found.resize((1040, round(found.height * 1040 / found.width)), Image.Resampling.LANCZOS)
    found.quantize(48, dither=Image.Dither.NONE).save(asked.out, optimize=True)
    about = {
        "overview": plan.overview,
        "columns": plan.columns,
        "rows": plan.rows,
        "slice": plan.cell,
        "tokens": plan.tokens,
    }
    print(json.dumps({"picture": str(asked.out), "bytes": asked.out.stat().st_size} | about))


if __name__ == "__main__":
    main()

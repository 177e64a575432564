"""Fonts for drawn text: Pillow's own, those that matplotlib carries where it is installed, and files that are named.

None of the first two has Chinese characters: Chinese text needs a file, for example Noto Sans SC, LXGW WenKai or WenQuanYi.
A character that a font does not have is refused by name, since a model would learn to read boxes.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CARRIED = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf", "DejaVuSans-Bold.ttf")


def latin() -> tuple[Path | None, ...]:
    """Fonts with Latin letters that are here without being named. None: Pillow's own."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else Path()
    return (None, *(folder / name for name in _CARRIED if (folder / name).is_file()))


@cache
def load(path: Path | None, pixels: int) -> Font:
    """A font at a height in pixels. Raises ValueError for a file that is no font."""
    if path is None:
        return ImageFont.load_default(pixels)
    try:
        return ImageFont.truetype(str(path), pixels)
    except OSError as error:
        raise ValueError(f"{path} is no font that can be read ({error}): name a .ttf, .otf or .ttc file") from error


@cache
def lacks(path: Path | None, text: str) -> str:
    """The characters of a text that a font draws as its box for unknown ones."""
    font = load(path, 32)
    unknown = {_drawn(font, "\U0010fffe"), _drawn(font, "\ufffe")}
    return "".join(c for c in text if not c.isspace() and _drawn(font, c) in unknown)


def check(paths: Sequence[Path], text: str) -> None:
    """Raises ValueError naming the first font that lacks characters of a text, and these."""
    for path in paths:
        if missing := lacks(path, text):
            raise ValueError(
                f"{path} has no glyph for {len(missing)} characters ({missing[:12]}): name a font that has them, for Chinese text "
                "for example Noto Sans SC"
            )


def _drawn(font: Font, character: str) -> bytes:
    mask = font.getmask(character, "L")
    return bytes(f"{mask.size}", "ascii") + bytes(mask)

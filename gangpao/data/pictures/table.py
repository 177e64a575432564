"""The kinds of pictures, by name: what one shows, how large it is, and where it comes from."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from gangpao.data.pictures import charts, hands, shapes
from gangpao.data.pictures.scene import Scene

Draw = Callable[[Random, bool, int], Scene]


@dataclass(frozen=True, slots=True)
class Kind:
    """draw: makes a picture, None: it is read from a file. size: pixels of a side where none is asked for."""

    what: str
    size: int = 0
    draw: Draw | None = None


KINDS: dict[str, Kind] = {
    "shapes": Kind("one or two coloured shapes, asked about in English and Chinese", 64, shapes.draw),
    "strings": Kind("eight characters to read; Chinese ones with --font", 112),
    "charts": Kind("bar and line charts with questions", 112, charts.draw),
    "hands": Kind("rock, paper, scissors", 64, hands.draw),
    "figures": Kind("figures with captions from a tar archive (--from)"),
    "dishes": Kind("photos of dishes with Chinese names from a tar archive (--from)"),
    "easy-vqa": Kind("easy-VQA from its wheel (--from) or as it is installed"),
}

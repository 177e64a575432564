"""What all kinds of drawn pictures share: the picture with its questions, colours with their names, and drawing without steps.

A kind is a function of (random, unseen, size) -> Scene. unseen: only variations that training never draws (angles, grounds, skins),
so that a test on them measures what was understood and not what was remembered.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Question = tuple[str, str]  # what is asked, and the answer

SCALE = 4  # drawn this many times as large, then made small: edges without steps

DESCRIBE = ("describe the image.", "描述这张图。")

# name: (English, Chinese, red, green, blue); the colours of easy-VQA.
COLOURS: dict[str, tuple[str, Colour]] = {
    "red": ("红色", (214, 40, 40)),
    "green": ("绿色", (44, 160, 64)),
    "blue": ("蓝色", (42, 84, 214)),
    "yellow": ("黄色", (240, 208, 40)),
    "black": ("黑色", (24, 24, 24)),
    "gray": ("灰色", (128, 128, 128)),
    "brown": ("棕色", (130, 78, 34)),
    "teal": ("青色", (0, 142, 142)),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, RGB, and what is asked about it, in the order in which it is asked. about: what is in it, for programs.
    description: asks for all that is there, and says it."""

    picture: Image.Image
    questions: tuple[Question, ...]
    about: Mapping[str, Any]
    description: Question | None = None


class Canvas:
    """A square that is drawn on in pixels of the finished picture, as fractions where wanted."""

    def __init__(self, size: int, ground: Colour) -> None:
        self.size = size
        self.image = Image.new("RGB", (size * SCALE, size * SCALE), ground)
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[float, float]], fill: Colour, outline: Colour | None = None) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill, outline)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.draw.ellipse([(v * SCALE) for v in (x - radius, y - radius, x + radius, y + radius)], fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: Colour) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(scaled, fill, max(1, round(width * SCALE)), joint="curve")

    def finished(self, random: Random, noise: float = 0.0) -> Image.Image:
        """The picture at its size, with noise of that standard deviation in units of 255."""
        small = self.image.resize((self.size, self.size), Image.Resampling.BOX)
        if not noise:
            return small
        drawn = np.random.default_rng(random.getrandbits(64)).normal(0, noise, (self.size, self.size, 3))
        return Image.fromarray(np.clip(np.asarray(small, np.float64) + drawn, 0, 255).astype(np.uint8))


def ground(random: Random, unseen: bool) -> Colour:
    """A light ground. Training has warm and neutral ones, a test bluish ones."""
    base = random.randint(205, 245)
    if unseen:
        return (base - random.randint(14, 24), base - random.randint(4, 10), base)
    warm = random.randint(0, 14)
    return (base, base - warm // 2, base - warm)


def shifted(colour: Colour, random: Random, by: int = 14) -> Colour:
    """A colour of the same name, a little other."""
    r, g, b = (min(255, max(0, value + random.randint(-by, by))) for value in colour)
    return (r, g, b)


def near(a: Colour, b: Colour, distance: int = 70) -> bool:
    """Whether two colours are hard to tell apart."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) < distance


def chosen(random: Random, questions: list[Question], most: int) -> tuple[Question, ...]:
    """Up to `most` of these questions in a random order."""
    return tuple(random.sample(questions, min(most, len(questions))))


def described(questions: list[Question]) -> Question | None:
    """The one of these that asks for everything."""
    return next((one for one in questions if one[0] in DESCRIBE), None)
